"""Hand-made GGUF bytes for tests: any version, either byte order, and every way to be wrong.

gguf.GGUFWriter writes only version 3 and only sound files; here each piece is bytes that a
test may replace.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gguf import GGUFValueType

_FORMATS = {
    GGUFValueType.UINT8: "B",
    GGUFValueType.INT8: "b",
    GGUFValueType.UINT16: "H",
    GGUFValueType.INT16: "h",
    GGUFValueType.UINT32: "I",
    GGUFValueType.INT32: "i",
    GGUFValueType.FLOAT32: "f",
    GGUFValueType.BOOL: "?",
    GGUFValueType.UINT64: "Q",
    GGUFValueType.INT64: "q",
    GGUFValueType.FLOAT64: "d",
}


@dataclass(frozen=True)
class Builder:
    """Encodes the pieces of a GGUF file in one version (1: 32-bit lengths) and byte order."""

    version: int = 3
    order: str = "<"

    def u32(self, number: int) -> bytes:
        return struct.pack(f"{self.order}I", number)

    def u64(self, number: int) -> bytes:
        return struct.pack(f"{self.order}Q", number)

    def length(self, number: int) -> bytes:
        return self.u32(number) if self.version == 1 else self.u64(number)

    def string(self, text: str | bytes) -> bytes:
        data = text.encode() if isinstance(text, str) else text
        return self.length(len(data)) + data

    def array(self, element_type: int, elements: Sequence[bytes]) -> bytes:
        """An array value without its type id: element type, count, encoded elements."""
        return self.u32(element_type) + self.length(len(elements)) + b"".join(elements)

    def scalar(self, value_type: GGUFValueType, value: Any) -> bytes:
        if value_type == GGUFValueType.STRING:
            return self.string(value)
        return struct.pack(self.order + _FORMATS[value_type], value)

    def entry(self, key: str | bytes, value_type: int, value: bytes) -> bytes:
        """One metadata entry with an encoded value."""
        return self.string(key) + self.u32(value_type) + value

    def number(self, key: str, value: int, value_type: int = GGUFValueType.UINT32) -> bytes:
        return self.entry(key, value_type, self.scalar(GGUFValueType(value_type), value))

    def text(self, key: str | bytes, value: str | bytes) -> bytes:
        return self.entry(key, GGUFValueType.STRING, self.string(value))

    def array_of(self, key: str, element_type: GGUFValueType, values: Sequence[Any]) -> bytes:
        elements = [self.scalar(element_type, value) for value in values]
        return self.entry(key, GGUFValueType.ARRAY, self.array(element_type, elements))

    def tensor(self, name: str | bytes, ne: Sequence[int], type_id: int, offset: int) -> bytes:
        """One entry of the tensor directory; ``ne`` has the fastest axis first."""
        dimensions = b"".join(self.length(n) for n in ne)
        start = self.string(name) + self.u32(len(ne)) + dimensions
        return start + self.u32(type_id) + self.u64(offset)

    def header(
        self,
        entries: Sequence[bytes] = (),
        tensors: Sequence[bytes] = (),
        *,
        n_entries: int | None = None,
        n_tensors: int | None = None,
    ) -> bytes:
        """Everything before the padding; the counts are right unless given."""
        return b"".join(
            [
                b"GGUF",
                self.u32(self.version),
                self.length(len(tensors) if n_tensors is None else n_tensors),
                self.length(len(entries) if n_entries is None else n_entries),
                *entries,
                *tensors,
            ]
        )

    def file(
        self,
        entries: Sequence[bytes] = (),
        tensors: Sequence[bytes] = (),
        data: bytes = b"",
        *,
        alignment: int = 32,
    ) -> bytes:
        """A whole file: header, padding to ``alignment`` (write the key yourself), data."""
        header = self.header(entries, tensors)
        return header + bytes(-len(header) % alignment) + data


def rich_file(version: int = 3, order: str = "<") -> bytes:
    """A small sound file with every value type, nested arrays and several tensor types."""
    build = Builder(version, order)
    values = {
        GGUFValueType.UINT8: 255,
        GGUFValueType.INT8: -128,
        GGUFValueType.UINT16: 65535,
        GGUFValueType.INT16: -32768,
        GGUFValueType.UINT32: 2**32 - 1,
        GGUFValueType.INT32: -(2**31),
        GGUFValueType.FLOAT32: 0.5,
        GGUFValueType.BOOL: True,
        GGUFValueType.STRING: "héllo",
        GGUFValueType.UINT64: 2**64 - 1,
        GGUFValueType.INT64: -(2**63),
        GGUFValueType.FLOAT64: 0.1,
    }
    scalars = [
        build.entry(f"scalar.{kind.name.lower()}", kind, build.scalar(kind, value))
        for kind, value in values.items()
    ]
    arrays = [
        build.array_of(f"array.{kind.name.lower()}", kind, [value, value])
        for kind, value in values.items()
    ]
    inner = [
        build.array(GGUFValueType.UINT8, [b"\1", b"\2"]),
        build.array(GGUFValueType.STRING, [build.string("a"), build.string("")]),
        build.array(GGUFValueType.FLOAT32, []),
    ]
    nested = build.entry(
        "array.array", GGUFValueType.ARRAY, build.array(GGUFValueType.ARRAY, inner)
    )
    entries = [build.text("general.architecture", "llama"), *scalars, *arrays, nested]
    tensors = [
        build.tensor("token_embd.weight", [64, 3], 0, 0),  # F32, 768 bytes
        build.tensor("blk.0.attn_q.weight", [32, 2], 2, 768),  # Q4_0, 36 bytes
        build.tensor("blk.0.ffn_up_exps.weight", [256, 1, 2], 34, 832),  # TQ1_0, 108 bytes
        build.tensor("blk.0.attn_norm.weight", [5], 30, 960),  # BF16, 10 bytes
        build.tensor("scale", [], 0, 992),  # F32, 4 bytes
    ]
    return build.file(entries, tensors, bytes(range(256)) * 3 + bytes(996 - 768))
