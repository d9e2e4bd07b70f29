"""The vocabulary in a GGUF's metadata, checked: tokens, their types, the special ones.

Keys ``tokenizer.ggml.*`` as the GGUF specification names them; what a file leaves out is filled
in as llama.cpp does (``src/llama-vocab.cpp``), except that a BPE file without a BOS or EOS id has
none (llama.cpp takes token 11, right for one old model only).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from q4run.errors import FormatError, UnsupportedError

# Metadata strings that are not UTF-8 come with surrogates for the bytes at fault (surrogateescape).
SURROGATE = re.compile("[\ud800-\udfff]")

MODELS = {"gpt2": "byte-level BPE", "llama": "SentencePiece BPE"}


class TokenType(IntEnum):
    """The values of ``tokenizer.ggml.token_type``."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


# Texts that end a generation whatever the file says of them: llama.cpp's list, and Llama 4's
# <|eot|> and <|eom|>, which its files give as eos or eot only one at a time.
_END_LIST = """
</s> <eos> <EOT> _<EOT> [EOT] [EOS] [e~[
<|eot_id|> <|eom_id|> <|eot|> <|eom|> <|im_end|> <|end|> <|return|> <|call|> <|calls|>
<|flush|> <|endoftext|> <|end_of_text|> <end_of_turn> <end_of_utterance> <turn|>
<|tool_response> <｜end▁of▁sentence｜>
<|fim_pad|> <fim-pad> <fim_pad> <PAD> [PAD]
<|fim_repo|> <|repo_name|> <fim-repo> <REPO> <reponame> <|file_sep|>
"""
_END_TEXTS = frozenset(_END_LIST.split())
_BYTE = re.compile(rb"<0x([0-9A-Fa-f]{2})>")
_END_KEYS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")


@dataclass(frozen=True)
class Vocabulary:
    """What a file says of its tokens; ``ids`` maps every text to its id, ``types`` is uint8 (n,).

    ``scores`` is float32 (n,), or None where the file has none.
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
    add_bos: bool | None
    add_space_prefix: bool

    def unreachable(self) -> set[str]:
        """The texts of the tokens that plain text never becomes: control, unknown, not UTF-8."""
        hidden = np.isin(self.types, (TokenType.CONTROL, TokenType.UNKNOWN))
        texts = {self.tokens[id] for id in np.flatnonzero(hidden)}
        return texts | {text for text in self.tokens if SURROGATE.search(text)}


def read_vocabulary(metadata: Mapping[str, Any]) -> Vocabulary:
    """Read and check the ``tokenizer.ggml.*`` keys.

    Raises ``UnsupportedError`` for a tokenizer model that is not in ``MODELS`` and ``FormatError``
    for keys that are missing, of the wrong type or in contradiction with each other.
    """
    model = _text(metadata, "tokenizer.ggml.model", None)
    if model not in MODELS:
        known = ", ".join(f"{name} ({what})" for name, what in MODELS.items())
        raise UnsupportedError(
            f"tokenizer {model[:80]!r} (tokenizer.ggml.model) is not supported; known: {known}"
        )
    tokens = _tokens(metadata)
    ids = {text: id for id, text in enumerate(tokens)}
    if len(ids) != len(tokens):
        twice = next(text for id, text in enumerate(tokens) if ids[text] != id)
        raise FormatError(f"tokenizer.ggml.tokens has {twice[:80]!r} twice; the file is damaged")

    sentencepiece = model == "llama"
    bos_id = _token_id(metadata, "bos", len(tokens), 1 if sentencepiece else None)
    eos_id = _token_id(metadata, "eos", len(tokens), 2 if sentencepiece else None)
    unknown_id = _token_id(metadata, "unknown", len(tokens), 0 if sentencepiece else None)
    types = _types(metadata, tokens, bos_id, eos_id, unknown_id)
    stop_ids = {_token_id(metadata, key, len(tokens), None) for key in _END_KEYS} | {eos_id}
    by_text = _stops_by_text(ids)
    types[sorted(by_text)] = TokenType.CONTROL

    add_bos = _flag(metadata, "tokenizer.ggml.add_bos_token", None)
    if add_bos and bos_id is None:
        raise FormatError("tokenizer.ggml.add_bos_token is true, but there is no bos_token_id")
    return Vocabulary(
        model=model,
        pre=_text(metadata, "tokenizer.ggml.pre", "default") or "default",
        tokens=tokens,
        ids=ids,
        types=types,
        scores=_numbers(metadata, "tokenizer.ggml.scores", len(tokens), np.float32),
        merges=_strings(metadata, "tokenizer.ggml.merges"),
        bos_id=bos_id,
        eos_id=eos_id,
        unknown_id=unknown_id,
        stop_ids=frozenset(id for id in stop_ids if id is not None) | by_text,
        add_bos=add_bos,
        add_space_prefix=bool(_flag(metadata, "tokenizer.ggml.add_space_prefix", sentencepiece)),
    )


def byte_of(text: bytes) -> int | None:
    """The value of a byte token's text, ``<0x0A>`` and the like; None if it is not one."""
    match = _BYTE.fullmatch(text)
    return int(match[1], 16) if match else None


def _tokens(metadata: Mapping[str, Any]) -> list[str]:
    tokens = _strings(metadata, "tokenizer.ggml.tokens")
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
    given = _numbers(metadata, "tokenizer.ggml.token_type", len(tokens), np.int64)
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


def _stops_by_text(ids: Mapping[str, int]) -> frozenset[int]:
    """The tokens whose text alone says that they end a generation."""
    found = {text for text in _END_TEXTS if text in ids}
    # In these vocabularies <|end|> ends a message within an answer, and </s> is an ordinary text.
    if {"<|return|>", "<|call|>"} <= found or {"<|calls|>", "<|flush|>"} <= found:
        found.discard("<|end|>")
    if "<|tool_response>" in found:
        found.discard("</s>")
    return frozenset(ids[text] for text in found)


def _text(metadata: Mapping[str, Any], key: str, default: str | None) -> Any:
    value = metadata.get(key, default)
    if value is not None and not isinstance(value, str):
        raise FormatError(f"{key} is not a string")
    if value is None and default is None:
        raise FormatError(f"the file has no tokenizer ({key} is missing)")
    return value


def _flag(metadata: Mapping[str, Any], key: str, default: bool | None) -> bool | None:
    value = metadata.get(key, default)
    if value is not None and not isinstance(value, bool):
        raise FormatError(f"{key} is not a boolean")
    return value


def _token_id(
    metadata: Mapping[str, Any], name: str, n_vocab: int, default: int | None
) -> int | None:
    """The id in ``tokenizer.ggml.NAME_token_id``; the default where it is outside the vocabulary.

    Converters write ids such as 2³² − 1 for "none".
    """
    key = f"tokenizer.ggml.{name}_token_id"
    value = metadata.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise FormatError(f"{key} is not an integer")
    if value is not None and 0 <= value < n_vocab:
        return value
    return default if default is not None and default < n_vocab else None


def _strings(metadata: Mapping[str, Any], key: str) -> Sequence[str] | None:
    value = metadata.get(key)
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
        raise FormatError(f"{key} is not an array of strings")
    return value


def _numbers(metadata: Mapping[str, Any], key: str, n_vocab: int, dtype: type) -> np.ndarray | None:
    """A copy of the first ``n_vocab`` numbers under ``key``, or None where the key is missing."""
    value = metadata.get(key)
    if value is None:
        return None
    try:
        array = np.array(value)
    except ValueError:
        array = np.array(None)
    kinds = "iu" if np.issubdtype(dtype, np.integer) else "iuf"
    if array.ndim != 1 or (array.size and array.dtype.kind not in kinds):
        raise FormatError(f"{key} is not an array of numbers of the right type")
    if array.size < n_vocab:
        raise FormatError(f"{key} has {array.size} entries for {n_vocab} tokens")
    return array[:n_vocab].astype(dtype)
