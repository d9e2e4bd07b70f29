"""Reading keys of a GGUF's metadata that say what a tokenizer does, each checked for its type."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from q4run.errors import FormatError

# Keys of q4run's own, where GGUF has none: all tokens that end an answer, for eos, eot and eom name
# three at most; and how SentencePiece text gets its space (`SpacePrefix`).
STOP_IDS_KEY = "tokenizer.q4run.stop_token_ids"
SPACE_PREFIX_KEY = "tokenizer.q4run.space_prefix"


def read_string(metadata: Mapping[str, Any], key: str, default: str | None) -> Any:
    """Returns a string; raises FormatError where there is none and no default."""
    value = metadata.get(key, default)
    if value is not None and not isinstance(value, str):
        raise FormatError(f"{key} is not a string")
    if value is None and default is None:
        raise FormatError(f"the file has no tokenizer ({key} is missing)")
    return value


def read_flag(metadata: Mapping[str, Any], key: str, default: bool | None) -> bool | None:
    """Returns a boolean, or the default."""
    value = metadata.get(key, default)
    if value is not None and not isinstance(value, bool):
        raise FormatError(f"{key} is not a boolean")
    return value


def read_token_id(
    metadata: Mapping[str, Any], name: str, n_vocab: int, default: int | None
) -> int | None:
    """Returns the id in ``tokenizer.ggml.NAME_token_id``; the default where that is no token.

    Converters write ids such as 2³² − 1 for "none".
    """
    key = f"tokenizer.ggml.{name}_token_id"
    value = metadata.get(key)
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise FormatError(f"{key} is not an integer")
    if value is not None and 0 <= value < n_vocab:
        return value
    return default if default is not None and default < n_vocab else None


def read_strings(metadata: Mapping[str, Any], key: str) -> Sequence[str] | None:
    """Returns an array of strings, or None where the key is missing."""
    value = metadata.get(key)
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
        raise FormatError(f"{key} is not an array of strings")
    return value


def read_numbers(
    metadata: Mapping[str, Any], key: str, n_vocab: int, dtype: type
) -> np.ndarray | None:
    """Returns a copy of the first ``n_vocab`` numbers under ``key``; None where it is missing."""
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


def read_ids(metadata: Mapping[str, Any], key: str, n_vocab: int) -> frozenset[int]:
    """Returns the token ids in an array, those outside the vocabulary left out."""
    value = metadata.get(key)
    if value is None:
        return frozenset()
    if not isinstance(value, list | tuple) or not all(type(id) is int for id in value):
        raise FormatError(f"{key} is not an array of integers")
    return frozenset(id for id in value if 0 <= id < n_vocab)
