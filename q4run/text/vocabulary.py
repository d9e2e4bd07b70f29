"""The vocabulary in a GGUF's metadata, checked: tokens, their types, the special ones.

Keys ``tokenizer.ggml.*`` as the GGUF specification names them; what a file leaves out is filled
in as llama.cpp does (``src/llama-vocab.cpp``), except that a BPE file without a BOS or EOS id has
none (llama.cpp takes token 11, right for one old model only).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any

import numpy as np

from q4run.errors import FormatError, UnsupportedError
from q4run.text.ends import stops_by_key, stops_by_text
from q4run.text.keys import (
    SPACE_PREFIX_KEY,
    read_flag,
    read_ids,
    read_numbers,
    read_string,
    read_strings,
    read_token_id,
)

# Metadata strings that are not UTF-8 come with surrogates for the bytes at fault (surrogateescape).
SURROGATE = re.compile("[\ud800-\udfff]")

# The tokenizer model, and the name of its pre-tokenizer.
GEMMA4 = "gemma4"
MODELS = {
    "gpt2": "byte-level BPE",
    "llama": "SentencePiece BPE",
    GEMMA4: "BPE over UTF-8 with byte tokens",
}


class TokenType(IntEnum):
    """The values of ``tokenizer.ggml.token_type``."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_BYTE = re.compile(rb"<0x([0-9A-Fa-f]{2})>")


class SpacePrefix(StrEnum):
    """Where SentencePiece text gets the space that makes its first word like any other.

    A text is what stands at the beginning, and again after every special token.
    """

    NEVER = "never"
    EVERY = (
        "every"  # before every text: llama.cpp's way, and the models' that prepend by a normaliser
    )
    ALWAYS = "always"  # before every text that does not begin with a space
    FIRST = "first"  # the same, but only where nothing stands before it


@dataclass(frozen=True)
class Vocabulary:
    """What a file says of its tokens; ``ids`` maps every text to its id, ``types`` is uint8 (n,).

    ``scores`` is float32 (n,), or None where the file has none. ``suppressed`` are ids that are
    never to be generated.
    ``notes`` are what a person should be told once.
    """

    model: str
    pre: str
    tokens: list[str]
    ids: dict[str, int]
    types: np.ndarray
    scores: np.ndarray | None
    merges: Sequence[str] | None
    bos_id: int | None
    eos_id: int | None
    unknown_id: int | None
    stop_ids: frozenset[int]
    suppressed: frozenset[int]
    add_bos: bool | None
    space_prefix: SpacePrefix
    notes: tuple[str, ...]

    def unreachable(self) -> set[str]:
        """The texts of the tokens that plain text never becomes: control, unknown, not UTF-8."""
        hidden = np.isin(self.types, (TokenType.CONTROL, TokenType.UNKNOWN))
        texts = {self.tokens[id] for id in np.flatnonzero(hidden)}
        return texts | {text for text in self.tokens if SURROGATE.search(text)}

    def of_type(self, kind: TokenType, hidden: set[str]) -> dict[str, int]:
        """The tokens of one type, without the ``hidden`` ones, and their ids, in order."""
        ids = np.flatnonzero(self.types == kind).tolist()
        texts = ((self.tokens[id], id) for id in ids)
        return {text: id for text, id in texts if text not in hidden}


def read_vocabulary(metadata: Mapping[str, Any], pre: str | None = None) -> Vocabulary:
    """Read and check the ``tokenizer.ggml.*`` keys.

    ``pre`` names a pre-tokenizer to take in place of the file's. Of tokens with the same text the
    last is the one that a text becomes. Raises ``UnsupportedError`` for a tokenizer model that is
    not in ``MODELS`` and ``FormatError`` for keys that are missing, of the wrong type or in
    contradiction with each other.
    """
    model = read_string(metadata, "tokenizer.ggml.model", None)
    if model not in MODELS:
        known = ", ".join(f"{name} ({what})" for name, what in MODELS.items())
        raise UnsupportedError(
            f"tokenizer {model[:80]!r} (tokenizer.ggml.model) is not supported; known: {known}"
        )
    tokens = _tokens(metadata)
    ids = {text: id for id, text in enumerate(tokens)}
    pre, notes = _pre_tokenizer(metadata, model, pre)
    notes += _duplicates(tokens, ids)

    sentencepiece = model == "llama"
    bos_id = read_token_id(metadata, "bos", len(tokens), 1 if sentencepiece else None)
    eos_id = read_token_id(metadata, "eos", len(tokens), 2 if sentencepiece else None)
    unknown_id = read_token_id(metadata, "unknown", len(tokens), 0 if sentencepiece else None)
    types = _types(metadata, tokens, bos_id, eos_id, unknown_id)
    by_text = stops_by_text(ids)
    types[sorted(by_text)] = TokenType.CONTROL

    add_bos = read_flag(metadata, "tokenizer.ggml.add_bos_token", None)
    if add_bos and bos_id is None:
        raise FormatError("tokenizer.ggml.add_bos_token is true, but there is no bos_token_id")
    return Vocabulary(
        model=model,
        pre=pre,
        tokens=tokens,
        ids=ids,
        types=types,
        scores=read_numbers(metadata, "tokenizer.ggml.scores", len(tokens), np.float32),
        merges=read_strings(metadata, "tokenizer.ggml.merges"),
        bos_id=bos_id,
        eos_id=eos_id,
        unknown_id=unknown_id,
        stop_ids=stops_by_key(metadata, len(tokens), eos_id) | by_text,
        suppressed=read_ids(metadata, "tokenizer.ggml.suppress_tokens", len(tokens)),
        add_bos=None if pre == GEMMA4 else add_bos,
        space_prefix=_space_prefix(metadata, sentencepiece),
        notes=tuple(notes),
    )


def _pre_tokenizer(
    metadata: Mapping[str, Any], model: str, forced: str | None
) -> tuple[str, list[str]]:
    """The name of the pre-tokenizer to take, and what is to be told about it."""
    if model == "llama":
        notes = [f"--pre {forced} changes nothing: SentencePiece does not cut words"]
        return "default", notes if forced else []
    stated = read_string(metadata, "tokenizer.ggml.pre", "")
    if model == GEMMA4:
        stated = GEMMA4
    if forced:
        said = f"the file's {stated[:80]!r}" if stated else "none in the file"
        return forced, [f"text is cut into words as {forced!r} does (--pre), in place of {said}"]
    if stated:
        return stated, []
    return "default", [
        "THE FILE DOES NOT SAY HOW TEXT IS CUT INTO WORDS (tokenizer.ggml.pre is missing): the"
        " default is taken, and answers may be much worse; name the right one with --pre, or take"
        " a newer conversion of the model"
    ]


def _duplicates(tokens: list[str], ids: dict[str, int]) -> list[str]:
    """What is to be told about tokens that have the text of a later one."""
    earlier = [text for id, text in enumerate(tokens) if ids[text] != id]
    if not earlier:
        return []
    one, they = (
        ("1 token has", "it") if len(earlier) == 1 else (f"{len(earlier)} tokens have", "they")
    )
    return [f"{one} the text of a later one ({earlier[0][:40]!r}): no text becomes {they} again"]


def _space_prefix(metadata: Mapping[str, Any], sentencepiece: bool) -> SpacePrefix:
    if not read_flag(metadata, "tokenizer.ggml.add_space_prefix", sentencepiece):
        return SpacePrefix.NEVER
    own = read_string(metadata, SPACE_PREFIX_KEY, SpacePrefix.EVERY)
    if own not in tuple(SpacePrefix):
        raise UnsupportedError(
            f"{SPACE_PREFIX_KEY} is {own[:40]!r}; known: {', '.join(SpacePrefix)}"
        )
    return SpacePrefix(own)


def byte_of(text: bytes) -> int | None:
    """The value of a byte token's text, ``<0x0A>`` and the like; None if it is not one."""
    match = _BYTE.fullmatch(text)
    return int(match[1], 16) if match else None


def _tokens(metadata: Mapping[str, Any]) -> list[str]:
    tokens = read_strings(metadata, "tokenizer.ggml.tokens")
    if not tokens:
        raise FormatError("the file has no vocabulary (tokenizer.ggml.tokens is missing or empty)")
    return [text or f"[EMPTY_{id}]" for id, text in enumerate(tokens)]


def _types(
    metadata: Mapping[str, Any],
    tokens: list[str],
    bos_id: int | None,
    eos_id: int | None,
    unknown_id: int | None,
) -> np.ndarray:
    """The type of every token, uint8 (n,); guessed from ids and texts in files older than types."""
    given = read_numbers(metadata, "tokenizer.ggml.token_type", len(tokens), np.int64)
    if given is not None:
        given[(given < 0) | (given > max(TokenType))] = TokenType.UNDEFINED
        return given.astype(np.uint8)
    types = np.full(len(tokens), TokenType.NORMAL, np.uint8)
    byte_ids = [
        id
        for id, text in enumerate(tokens)
        if byte_of(text.encode("utf-8", "surrogateescape")) is not None
    ]
    types[byte_ids] = TokenType.BYTE
    types[[id for id in (bos_id, eos_id) if id is not None]] = TokenType.CONTROL
    types[[id for id in (unknown_id,) if id is not None]] = TokenType.UNKNOWN
    return types
