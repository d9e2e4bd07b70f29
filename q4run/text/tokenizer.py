"""Token ids of a text and text of token ids, as the vocabulary in a GGUF says."""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Protocol

import numpy as np

from q4run.errors import Error
from q4run.text.bpe import load_bpe
from q4run.text.sentencepiece import SPACE, SentencePieceBPE
from q4run.text.vocabulary import (
    SURROGATE,
    SpacePrefix,
    TokenType,
    Vocabulary,
    byte_of,
    read_vocabulary,
)

_HIDDEN = (TokenType.CONTROL, TokenType.UNKNOWN)
_EMPTY = (TokenType.UNDEFINED, TokenType.UNUSED)
_SPECIAL = (*_HIDDEN, TokenType.USER_DEFINED)


class _PlainText(Protocol):
    """What byte-level BPE and SentencePiece have in common."""

    add_bos: bool

    def encode(self, text: str) -> list[int]: ...

    def token_bytes(self, text: bytes) -> bytes: ...


class Tokenizer:
    """Text to token ids and back. Made by ``load_tokenizer``; keeps no reference to the metadata.

    ``stop_ids`` are the tokens that end a generation; ``add_bos`` says whether a text starts with
    ``bos_id`` (None where the vocabulary has no such token, as ``eos_id``). ``notes`` are what a
    person should be told once.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        sentencepiece = vocabulary.model == "llama"
        self._plain: _PlainText
        self._plain = SentencePieceBPE(vocabulary) if sentencepiece else load_bpe(vocabulary)
        self._space_prefix = vocabulary.space_prefix if sentencepiece else SpacePrefix.NEVER
        self.notes = vocabulary.notes
        self.n_vocab = len(vocabulary.tokens)
        self.bos_id = vocabulary.bos_id
        self.eos_id = vocabulary.eos_id
        self.stop_ids = vocabulary.stop_ids
        self.add_bos = (
            vocabulary.add_bos
            if vocabulary.add_bos is not None
            else (self._plain.add_bos and vocabulary.bos_id is not None)
        )
        self._types = vocabulary.types.tobytes()
        empty = np.flatnonzero(vocabulary.types == TokenType.UNUSED)
        self._never = np.union1d(empty, sorted(vocabulary.suppressed)).astype(np.int64)
        # One blob for all texts: 100,000 strings of their own would take ten times as much.
        encoded = [text.encode("utf-8", "surrogateescape") for text in vocabulary.tokens]
        self._texts = b"".join(encoded)
        self._ends = np.fromiter(accumulate(map(len, encoded)), np.int64, len(encoded))
        special = np.flatnonzero(np.isin(vocabulary.types, _SPECIAL)).tolist()
        self._special = {vocabulary.tokens[id]: id for id in special}

    def encode(
        self,
        text: str,
        *,
        add_bos: bool | None = None,
        special: bool = False,
        at_start: bool = True,
    ) -> list[int]:
        """Token ids of ``text``.

        ``add_bos`` None follows the file, but puts no second BOS before one that the text brings
        along. With ``special`` the texts of control and user-defined tokens become those tokens;
        without, only user-defined ones, and no text can become a control token. Where two such
        texts overlap, the one that starts first counts, and the longest of those.
        The file's ``add_eos_token`` is not followed: what is encoded here is to be continued.
        A lone surrogate counts as U+FFFD. ``at_start`` False: the text goes on after another, as
        ``starts_text`` of the token before it says, so that a SentencePiece vocabulary puts no
        space before it.
        """
        if not text.isascii() and SURROGATE.search(text):
            text = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        ids: list[int] = []
        begins = at_start
        for part in self._parts(text, special):
            if isinstance(part, int):
                ids.append(part)
                begins = self.starts_text(part)
            else:
                ids += self._plain.encode(self._with_space(part) if begins else part)
        if add_bos is None:
            add_bos = self.add_bos and ids[:1] != [self.bos_id]
        if add_bos:
            if self.bos_id is None:
                raise Error("this vocabulary has no BOS token to begin with (add_bos)")
            ids.insert(0, self.bos_id)
        return ids

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of ``ids``; bytes that are no UTF-8 become U+FFFD.

        ``special`` also renders control tokens. The one space that ``encode`` puts before a text
        in a SentencePiece vocabulary is taken off again.
        """
        text = bytearray()
        at_start = True
        for id in ids:
            text += self.piece(id, special=special, at_start=at_start)
            at_start = self.starts_text(id) or (at_start and id == self.bos_id)
        return text.decode("utf-8", "replace")

    def piece(self, id: int, *, special: bool = False, at_start: bool = False) -> bytes:
        """The bytes that token ``id`` adds to a decoded text; none for unused tokens.

        ``at_start``: the token is the first of a text, or comes right after a special token, where
        ``encode`` may have put a space.
        """
        piece = self.token_bytes(id)
        kind = self._types[id]
        if kind in _EMPTY or (kind in _HIDDEN and not special):
            return b""
        if at_start and self._space_prefix != SpacePrefix.NEVER and kind == TokenType.NORMAL:
            return piece.removeprefix(b" ")
        return piece

    def starts_text(self, id: int) -> bool:
        """Whether what follows token ``id`` is encoded as a text of its own."""
        if self._space_prefix == SpacePrefix.FIRST:
            return False
        return self._types[id] in _SPECIAL

    def never_sampled(self, n_logits: int) -> np.ndarray:
        """The ids below ``n_logits`` that no answer may have, int64 and ascending: unused tokens,
        those that the file suppresses, and those beyond the vocabulary."""
        return np.concatenate((self._never, np.arange(self.n_vocab, n_logits)))

    def _with_space(self, text: str) -> str:
        """A text that begins, with the space before it that a SentencePiece vocabulary puts."""
        if self._space_prefix == SpacePrefix.NEVER:
            return text
        if self._space_prefix != SpacePrefix.EVERY and text.startswith((" ", SPACE)):
            return text
        return " " + text

    def token_bytes(self, id: int) -> bytes:
        """The bytes that token ``id`` stands for: perhaps part of a UTF-8 sequence only.

        For a control token, its name. Raises ``Error`` for an id outside the vocabulary.
        """
        if not 0 <= id < self.n_vocab:
            raise Error(f"token id {id} is outside the vocabulary of {self.n_vocab} tokens")
        start = self._ends[id - 1] if id else 0
        text = self._texts[start : self._ends[id]]
        kind = self._types[id]
        if kind in _SPECIAL:
            return text
        if kind == TokenType.BYTE:
            byte = byte_of(text)
            return text if byte is None else bytes([byte])
        return self._plain.token_bytes(text)

    def _parts(self, text: str, special: bool) -> Iterator[str | int]:
        """The text cut at special tokens: non-empty strings and token ids."""
        present = [
            name
            for name, id in self._special.items()
            if name in text and (special or self._types[id] == TokenType.USER_DEFINED)
        ]
        end = 0
        if present:
            pattern = "|".join(map(re.escape, sorted(present, key=len, reverse=True)))
            for match in re.finditer(pattern, text):
                if match.start() > end:
                    yield text[end : match.start()]
                yield self._special[match.group()]
                end = match.end()
        if end < len(text):
            yield text[end:]


def load_tokenizer(metadata: Mapping[str, Any], pre: str | None = None) -> Tokenizer:
    """The tokenizer that the metadata of a GGUF describes.

    ``pre`` names a pre-tokenizer to take in place of the file's. Raises ``UnsupportedError`` for a
    tokenizer model or pre-tokenizer that is not known, naming it and those that are, and
    ``FormatError`` for a vocabulary that contradicts itself.
    """
    return Tokenizer(read_vocabulary(metadata, pre))
