"""SentencePiece BPE (Llama 1 and 2, Mixtral) from a GGUF's tokens and their scores.

Neighbours are merged while their joint text is a token, best score first, then leftmost; what is
no token falls back to bytes. The ``tokenizers`` library does the merging from a list of pairs, made
here as converters do: every way of cutting a token into two tokens, best score first.
"""

import re

import numpy as np
from tokenizers import Regex, Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Split

from q4run.errors import FormatError
from q4run.text.long_text import encode_in_chunks
from q4run.text.vocabulary import SURROGATE, TokenType, Vocabulary

SPACE = "▁"
# Making the pairs takes the squared length of every token; real ones need a hundredth of this.
_MOST_WORK = 10**9
_WORD_START = re.compile(f"(?<=[^{SPACE}])(?={SPACE})")


class SentencePieceBPE:
    """Plain text to token ids as SentencePiece's BPE, and a token's text to its bytes."""

    add_bos = True

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._library, self._safe_cut = _build(vocabulary)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text in which no token is special; the prefixed space is in it already."""
        return encode_in_chunks(self._library, text.replace(" ", SPACE), self._safe_cut)

    @staticmethod
    def token_bytes(text: bytes) -> bytes:
        """The bytes that an ordinary token stands for whose text, in UTF-8, is ``text``."""
        return text.replace(SPACE.encode(), b" ")


def _build(vocabulary: Vocabulary) -> tuple[Tokenizer, re.Pattern[str] | None]:
    """The library's tokenizer, and where a text may be cut (None: nowhere)."""
    hidden = vocabulary.unreachable()
    words = vocabulary.of_type(TokenType.NORMAL, hidden)
    if sum(len(word) ** 2 for word in words) > _MOST_WORK:
        raise FormatError("tokenizer.ggml.tokens has tokens far too long for a vocabulary")

    ids = words | vocabulary.of_type(TokenType.BYTE, hidden)
    unknown = add_unknown(vocabulary, ids)
    merges = _merges(words, vocabulary.scores)
    library = Tokenizer(BPE(ids, merges, unk_token=unknown, fuse_unk=True, byte_fallback=True))

    if any(_WORD_START.search(word) for word in words):
        return library, None
    # No token spans the start of a word, so words merge apart as they do together, and faster.
    library.pre_tokenizer = Split(Regex(f"{SPACE}+[^{SPACE}]*|[^{SPACE}]+"), "isolated")
    return library, _WORD_START


def add_unknown(vocabulary: Vocabulary, ids: dict[str, int]) -> str | None:
    """Adds the token for what is no token to ``ids``, and returns its text; None without one."""
    if vocabulary.unknown_id is None:
        return None
    unknown = SURROGATE.sub("�", vocabulary.tokens[vocabulary.unknown_id])
    ids[unknown] = vocabulary.unknown_id
    return unknown


def _merges(words: dict[str, int], scores: np.ndarray | None) -> list[tuple[str, str]]:
    """Every way to join two words into a third, the third with the best score first.

    Without scores, and among equal ones, the lowest id first: in the order of training.
    """
    ranked = list(words)
    if scores is not None:
        own = scores[list(words.values())]
        if np.isnan(own).any():
            raise FormatError("tokenizer.ggml.scores has values that are not numbers (NaN)")
        ranked = [ranked[index] for index in np.argsort(-own, kind="stable")]
    same = {word: word for word in words}  # pairs of these strings, not of copies
    pairs = []
    for word in ranked:
        for cut in range(1, len(word)):
            left, right = same.get(word[:cut]), same.get(word[cut:])
            if left is not None and right is not None:
                pairs.append((left, right))
    return pairs
