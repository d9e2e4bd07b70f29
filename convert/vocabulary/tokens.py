"""The token list of a model, in id order, whatever kind of tokenizer it comes from."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf

from q4run.convert.config import read_json
from q4run.errors import FormatError
from q4run.text.sentencepiece import SPACE
from q4run.text.vocabulary import SpacePrefix, byte_of

NORMAL = int(gguf.TokenType.NORMAL)
CONTROL = int(gguf.TokenType.CONTROL)
USER_DEFINED = int(gguf.TokenType.USER_DEFINED)
UNUSED = int(gguf.TokenType.UNUSED)
BYTE = int(gguf.TokenType.BYTE)

ADDED_SCORE = -1000.0
UNUSED_SCORE = -10000.0


@dataclass
class Vocabulary:
    """What ``tokenizer.ggml.*`` says of a vocabulary.

    ``model`` is "gpt2" or "gemma4" (BPE, with ``merges``) or "llama" (SentencePiece BPE, with
    ``scores``); ``pre`` names the pre-tokenizer. ``special_ids`` holds the ids the tokenizer's own
    file gives, under "bos", "eos", "unk", "pad". ``add_bos`` and ``add_eos`` are None where it
    does not say.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    special_ids: dict[str, int] = field(default_factory=dict)
    add_bos: bool | None = None
    add_eos: bool | None = None
    space_prefix: SpacePrefix | None = None
    notes: list[str] = field(default_factory=list)


class TokenTable:
    """Tokens being put in their places; the holes are filled at the end.

    Every method raises ``FormatError``, naming ``where``, for an id outside the vocabulary (whose
    size is that of the embedding matrix), but for added tokens, which are left out then. Of two
    tokens with the same text the first keeps it, and the other's place is a hole.
    """

    def __init__(self, n_vocab: int, where: str) -> None:
        self.where = where
        self.n_vocab = n_vocab
        self._places: list[tuple[str, int, float] | None] = [None] * n_vocab
        self._ids: dict[str, int] = {}
        self._beyond: list[str] = []
        self._twice: list[str] = []

    def put(self, token_id: Any, text: Any, kind: int, score: float = 0.0) -> None:
        """Places a token; one that is there already is replaced, as added tokens may do."""
        if not isinstance(text, str):
            raise FormatError(f"{self.where}: a token's text is {text!r:.60}, not a string")
        if type(token_id) is not int or not 0 <= token_id < self.n_vocab:
            raise FormatError(
                f"{self.where}: token {text!r:.60} has the id {token_id!r:.30}, "
                f"but the model has {self.n_vocab} tokens"
            )
        if self._ids.get(text, token_id) != token_id:
            self._twice.append(text)
            return
        before = self._places[token_id]
        if before is not None:
            del self._ids[before[0]]
        self._places[token_id] = (text, kind, score)
        self._ids[text] = token_id

    def put_added(self, token_id: Any, text: Any, kind: int) -> None:
        """Places a token that was added to a vocabulary, unless the model has no embedding for it:
        tools that pad a vocabulary often give it one token more than the matrix has rows."""
        if type(token_id) is int and token_id >= self.n_vocab and isinstance(text, str):
            self._beyond.append(text)
        else:
            self.put(token_id, text, kind, ADDED_SCORE)

    def is_free(self, token_id: int) -> bool:
        return self._places[token_id] is None

    def finish(self) -> tuple[list[str], list[int], list[float]]:
        """Tokens, types and scores; an id without a token becomes the unused token ``[PADn]``."""
        places = [
            place or (self._padding(token_id), UNUSED, UNUSED_SCORE)
            for token_id, place in enumerate(self._places)
        ]
        return (
            [text for text, _, _ in places],
            [kind for _, kind, _ in places],
            [score for _, _, score in places],
        )

    def notes(self) -> list[str]:
        """What a person should be told about tokens that were left out."""
        notes = []
        if self._beyond:
            beyond = _shown(self._beyond)
            notes.append(f"left out, for the model has only {self.n_vocab} embeddings: {beyond}")
        if self._twice:
            notes.append(f"left out, for an earlier token has the text: {_shown(self._twice)}")
        return notes

    def _padding(self, token_id: int) -> str:
        """The text of an unused token, which no other has."""
        text = f"[PAD{token_id}]"
        while text in self._ids:
            text += "_"
        return text


def _shown(texts: list[str]) -> str:
    more = f" and {len(texts) - 5} more" if len(texts) > 5 else ""
    return ", ".join(f"{text!r:.40}" for text in texts[:5]) + more


def put_added_tokens(table: TokenTable, added: Any) -> None:
    """Places the ``added_tokens`` of a ``tokenizer.json``: special ones are control tokens."""
    if not isinstance(added, list):
        raise FormatError(f"{table.where}: added_tokens is not a list")
    for entry in added:
        if not isinstance(entry, dict):
            raise FormatError(f"{table.where}: an added token is not an object")
        kind = CONTROL if entry.get("special") is True else USER_DEFINED
        table.put_added(entry.get("id"), entry.get("content"), kind)


def read_added_decoder(folder: Path) -> Iterator[tuple[int, str, int]]:
    """Yields id, text and type of the added tokens that ``tokenizer_config.json`` lists, if any.

    Raises ``FormatError`` for an entry that is none.
    """
    path = folder / "tokenizer_config.json"
    decoder = read_json(path).get("added_tokens_decoder") if path.is_file() else None
    if decoder is None:
        return
    if not isinstance(decoder, dict):
        raise FormatError(f"{path}: added_tokens_decoder is not an object")
    for key, entry in decoder.items():
        text = entry.get("content") if isinstance(entry, dict) else None
        if not (key.isascii() and key.isdigit() and len(key) < 12) or not isinstance(text, str):
            raise FormatError(f"{path}: added_tokens_decoder has the bad entry {key!r:.60}")
        yield int(key), text, CONTROL if entry.get("special") is True else USER_DEFINED


def spell_spaces(vocabulary: Vocabulary) -> None:
    """Writes a SentencePiece vocabulary's user-defined tokens as they stand in a text: readers of
    GGUF look for them before spaces become "▁"."""
    for token_id, text in enumerate(vocabulary.tokens):
        if vocabulary.types[token_id] == USER_DEFINED:
            vocabulary.tokens[token_id] = text.replace(SPACE, " ")


def is_byte_token(text: str) -> bool:
    """Whether a token's text is that of a byte, ``<0x0A>`` and the like."""
    return byte_of(text.encode("utf-8", "replace")) is not None


def post_processor_ends(tokenizer: dict[str, Any]) -> tuple[str | None, str | None]:
    """The special tokens a ``tokenizer.json`` puts before and after every text, if any."""
    processor = tokenizer.get("post_processor")
    if not isinstance(processor, dict):
        return None, None
    processors = processor.get("processors", [processor])
    for step in processors if isinstance(processors, list) else []:
        if not isinstance(step, dict) or step.get("type") != "TemplateProcessing":
            continue
        parts = step.get("single")
        if not isinstance(parts, list) or not parts:
            continue
        return _special_token(parts[0]), _special_token(parts[-1])
    return None, None


def _special_token(part: Any) -> str | None:
    special = part.get("SpecialToken") if isinstance(part, dict) else None
    text = special.get("id") if isinstance(special, dict) else None
    return text if isinstance(text, str) else None
