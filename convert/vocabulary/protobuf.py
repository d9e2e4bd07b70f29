"""As much of Protocol Buffers' wire format as a SentencePiece model needs: reading, strictly.

Format: https://protobuf.dev/programming-guides/encoding/
"""

import struct
from collections.abc import Iterator

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
MAX_VARINT_BYTES = 10

FieldValue = int | bytes


def read_fields(data: bytes) -> Iterator[tuple[int, FieldValue]]:
    """The (field number, value) pairs of a message, in order.

    A varint or fixed-width number comes as an unsigned int, all else as bytes. Raises
    ``ValueError`` for anything that is not whole.
    """
    position = 0
    while position < len(data):
        key, position = _read_varint(data, position)
        number, wire_type = key >> 3, key & 7
        value: FieldValue
        if wire_type == VARINT:
            value, position = _read_varint(data, position)
        elif wire_type in (FIXED64, FIXED32):
            width = 8 if wire_type == FIXED64 else 4
            value = int.from_bytes(_take(data, position, width), "little")
            position += width
        elif wire_type == BYTES:
            length, position = _read_varint(data, position)
            value = _take(data, position, length)
            position += length
        else:
            raise ValueError(f"field {number} has the unknown wire type {wire_type}")
        yield number, value


def to_float(value: FieldValue) -> float:
    """A ``float`` field; ``ValueError`` if it is none."""
    return float(struct.unpack("<f", to_int(value).to_bytes(4, "little"))[0])


def to_int(value: FieldValue) -> int:
    """An unsigned number of at most 32 bits; ``ValueError`` if it is none."""
    if not isinstance(value, int) or value >= 2**32:
        raise ValueError("a number was expected")
    return value


def to_bytes(value: FieldValue) -> bytes:
    """A nested message or bytes; ``ValueError`` if it is none."""
    if not isinstance(value, bytes):
        raise ValueError("a message or string was expected")
    return value


def _take(data: bytes, position: int, length: int) -> bytes:
    if length > len(data) - position:
        raise ValueError("it ends within a field")
    return data[position : position + length]


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for n_read in range(MAX_VARINT_BYTES):
        if position + n_read >= len(data):
            raise ValueError("it ends within a number")
        byte = data[position + n_read]
        value |= (byte & 0x7F) << (7 * n_read)
        if byte < 0x80:
            return value, position + n_read + 1
    raise ValueError("a number has too many bytes")
