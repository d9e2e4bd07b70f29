"""GGUF metadata values: scanned and checked at once, arrays turned into Python when wanted.

A vocabulary has hundreds of thousands of strings: opening a file only steps over them (every
length checked) and keeps their bytes. Strings become Python through UTF-8 with
``surrogateescape``, so that tokens which are not valid UTF-8, as llama.cpp accepts them, keep
their bytes: ``value.encode("utf-8", "surrogateescape")`` gives them back.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from gguf import GGUFValueType

from q4run.gguf_file.cursor import U32, Cursor

# No known model nests arrays, and scanning millions of small ones would take minutes.
MAX_ARRAY_DEPTH = 4
MAX_NESTED_ARRAYS = 1 << 16

_SCALARS = {
    GGUFValueType.UINT8: struct.Struct("<B"),
    GGUFValueType.INT8: struct.Struct("<b"),
    GGUFValueType.UINT16: struct.Struct("<H"),
    GGUFValueType.INT16: struct.Struct("<h"),
    GGUFValueType.UINT32: struct.Struct("<I"),
    GGUFValueType.INT32: struct.Struct("<i"),
    GGUFValueType.FLOAT32: struct.Struct("<f"),
    GGUFValueType.BOOL: struct.Struct("<?"),
    GGUFValueType.UINT64: struct.Struct("<Q"),
    GGUFValueType.INT64: struct.Struct("<q"),
    GGUFValueType.FLOAT64: struct.Struct("<d"),
}


class GGUFArray:
    """A metadata array whose bytes are checked; its Python values are made on first use."""

    __slots__ = ("_bytes", "_length", "_values", "count", "element_type")

    def __init__(
        self, element_type: GGUFValueType, count: int, data: bytes, length: struct.Struct
    ) -> None:
        self.element_type = element_type
        self.count = count
        self._bytes = data
        self._length = length
        self._values: list[Any] | None = None

    @classmethod
    def of(cls, element_type: GGUFValueType, values: list[Any]) -> GGUFArray:
        """An array of values that are no file's yet."""
        array = cls(element_type, len(values), b"", U32)
        array._values = values
        return array

    def values(self) -> list[Any]:
        """The elements: int, float, bool, str or nested lists; the same list every time."""
        data = self._bytes
        if self._values is None:
            self._values, _ = _decode(data, 0, self.element_type, self.count, self._length)
            self._bytes = b""
        return self._values


class Metadata(Mapping[str, Any]):
    """The metadata of a file as Python values; arrays are decoded on first access."""

    def __init__(self, entries: dict[str, Any]) -> None:
        self._entries = entries

    def __getitem__(self, key: str) -> Any:
        value = self._entries[key]
        return value.values() if isinstance(value, GGUFArray) else value

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def array(self, key: str) -> GGUFArray | None:
        """The array under ``key``, not decoded yet; None if there is none or it is no array."""
        value = self._entries.get(key)
        return value if isinstance(value, GGUFArray) else None


def read_value(cursor: Cursor) -> tuple[GGUFValueType, Any]:
    """The next value with its type: int, float, bool, str or GGUFArray. Raises FormatError."""
    value_type = _read_type(cursor)
    return value_type, _read_value_of(value_type, cursor)


def _read_value_of(value_type: GGUFValueType, cursor: Cursor) -> Any:
    if value_type == GGUFValueType.ARRAY:
        element_type, count = _read_array_start(cursor)
        start = cursor.position
        _skip_elements(cursor, element_type, count, depth=1)
        data = bytes(memoryview(cursor.buffer)[start : cursor.position])
        return GGUFArray(element_type, count, data, cursor.length)
    if value_type == GGUFValueType.STRING:
        return cursor.take(cursor.count(least_bytes=1)).decode("utf-8", "surrogateescape")
    if value_type == GGUFValueType.BOOL:
        return _take_bools(cursor, 1) == b"\1"
    return cursor.number(_SCALARS[value_type])


def _read_type(cursor: Cursor) -> GGUFValueType:
    type_id = cursor.number(U32)
    try:
        return GGUFValueType(type_id)
    except ValueError:
        raise cursor.damaged(f"has the unknown value type {type_id}") from None


def _read_array_start(cursor: Cursor) -> tuple[GGUFValueType, int]:
    element_type = _read_type(cursor)
    if element_type == GGUFValueType.STRING:
        least_bytes = cursor.length.size
    elif element_type == GGUFValueType.ARRAY:
        least_bytes = U32.size + cursor.length.size
    else:
        least_bytes = _SCALARS[element_type].size
    return element_type, cursor.count(least_bytes)


def _skip_elements(cursor: Cursor, element_type: GGUFValueType, count: int, depth: int) -> None:
    if element_type == GGUFValueType.STRING:
        cursor.skip_strings(count)
    elif element_type == GGUFValueType.ARRAY:
        cursor.n_arrays += count
        if depth == MAX_ARRAY_DEPTH or cursor.n_arrays > MAX_NESTED_ARRAYS:
            raise cursor.damaged("nests arrays more than any model does")
        for _ in range(count):
            inner_type, inner_count = _read_array_start(cursor)
            _skip_elements(cursor, inner_type, inner_count, depth + 1)
    elif element_type == GGUFValueType.BOOL:
        _take_bools(cursor, count)
    else:
        n_bytes = count * _SCALARS[element_type].size
        cursor.load(n_bytes)
        cursor.position += n_bytes


def _take_bools(cursor: Cursor, count: int) -> bytes:
    flags = cursor.take(count)
    if flags.translate(None, b"\0\1"):
        raise cursor.damaged("has a truth value that is neither 0 nor 1")
    return flags


def _decode(
    data: bytes, position: int, element_type: GGUFValueType, count: int, length: struct.Struct
) -> tuple[list[Any], int]:
    """The elements that start at ``position`` of bytes already checked, and where they end."""
    if element_type == GGUFValueType.STRING:
        return _decode_strings(data, position, count, length)
    if element_type == GGUFValueType.ARRAY:
        arrays = []
        for _ in range(count):
            inner_type = GGUFValueType(U32.unpack_from(data, position)[0])
            inner_count = length.unpack_from(data, position + U32.size)[0]
            position += U32.size + length.size
            inner, position = _decode(data, position, inner_type, inner_count, length)
            arrays.append(inner)
        return arrays, position
    layout = _SCALARS[element_type]
    end = position + count * layout.size
    return np.frombuffer(data[position:end], np.dtype(layout.format)).tolist(), end


def _decode_strings(
    data: bytes, position: int, count: int, length: struct.Struct
) -> tuple[list[str], int]:
    unpack, width = length.unpack_from, length.size
    strings = []
    for _ in range(count):
        start = position + width
        position = start + unpack(data, position)[0]
        strings.append(data[start:position].decode("utf-8", "surrogateescape"))
    return strings, position
