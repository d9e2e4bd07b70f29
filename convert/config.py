"""Reading ``config.json`` and its neighbours: files from strangers, checked as they are read."""

import json
import math
from pathlib import Path
from typing import Any

from q4run.errors import FormatError
from q4run.gguf_file.magic import refuse_lfs_pointer

MAX_FILE_BYTES = 512 * 2**20
MAX_COUNT = 2**31 - 1


def read_file(path: Path) -> bytes:
    """The bytes of a file that goes with the weights.

    Raises ``FormatError`` when it cannot be read, is too large, or is a Git LFS pointer.
    """
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise FormatError(f"{path}: {size} bytes are too many for this file of a checkpoint")
        data = path.read_bytes()
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror}") from None
    refuse_lfs_pointer(path, data)
    return data


def read_json(path: Path) -> dict[str, Any]:
    """The object a JSON file holds.

    Raises ``FormatError`` as `read_file`, and where it is not a JSON object.
    """
    data = read_file(path)
    try:
        value = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{path}: holds {type(value).__name__}, not a JSON object")
    return value


class Config:
    """The hyperparameters of a ``config.json`` (or of one object within it).

    Every getter takes the default that ``transformers`` takes where the key is absent or null, and
    raises ``FormatError``, naming file and key, for a value of the wrong type or out of range.
    """

    def __init__(self, values: dict[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def key_of(self, *keys: str) -> str:
        """The first of several names of one key that is there; the first of all if none is."""
        return next((key for key in keys if key in self), keys[0])

    def with_defaults(self, defaults: dict[str, Any]) -> "Config":
        """The same with ``defaults`` for keys that are absent or null.

        `transformers` leaves away what its class of the family has by default.
        """
        told = {key: value for key, value in self.values.items() if value is not None}
        return Config(defaults | told, self.where)

    def integer(self, key: str, default: int | None = None, *, low: int = 1) -> int:
        """An integer of at least ``low`` that fits into the 32 bits GGUF has for it."""
        value = self._value(key, default)
        if not isinstance(value, int) or isinstance(value, bool):
            raise self.bad(key, "an integer")
        if not low <= value <= MAX_COUNT:
            raise self.bad(key, f"between {low} and {MAX_COUNT}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number greater than zero."""
        value = self._value(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise self.bad(key, "a number")
        if not (math.isfinite(value) and value > 0):
            raise self.bad(key, "a positive number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        """True or false; the numbers that older checkpoints hold count by whether they are zero."""
        value = self._value(key, default)
        if not isinstance(value, bool | int):
            raise self.bad(key, "true or false")
        return bool(value)

    def text(self, key: str, default: str | None = None) -> str:
        """A string."""
        value = self._value(key, default)
        if not isinstance(value, str):
            raise self.bad(key, "a string")
        return value

    def items(self, key: str, kind: type) -> list[Any] | None:
        """A list of ``kind`` (int or str), or None where the key is absent, null or empty."""
        value = self.values.get(key)
        if not value:
            return None
        if not isinstance(value, list) or not all(type(item) is kind for item in value):
            raise self.bad(key, f"a list of {kind.__name__}")
        return value

    def section(self, key: str) -> "Config | None":
        """The object under ``key``, or None where it is absent or null."""
        value = self.values.get(key)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.bad(key, "an object")
        return Config(value, f"{self.where}: {key}")

    def bad(self, key: str, wanted: str) -> FormatError:
        """The error for a value that is not what it must be."""
        shown = repr(self.values.get(key))
        return FormatError(f"{self.where}: {key} is {shown[:60]}, but must be {wanted}")

    def _value(self, key: str, default: Any) -> Any:
        value = self.values.get(key)
        if value is None:
            value = default
        if value is None:
            raise FormatError(f"{self.where}: {key} is missing")
        return value
