"""32 4-bit codes in 16 bytes: byte j has code j in its low half, code j + 16 in its high half."""

from collections.abc import Callable, Sequence

import numpy as np

from q4run.kernels.compiling.compile import inline
from q4run.kernels.simd.memory import load_u8x32
from q4run.kernels.simd.ops import bit_and, bit_field, byte_table, splat
from q4run.kernels.simd.vector import u8x32


@inline
def pack_nibbles(codes, first, raw, at):
    """32 codes below 16, from ``codes[first]`` on, into the 16 bytes from ``raw[at]`` on."""
    for i in range(16):
        raw[at + i] = codes[first + i] & 15 | codes[first + 16 + i] << 4


def unpack_nibbles(packed: np.ndarray) -> np.ndarray:
    """uint8 (..., 16) -> uint8 (..., 32)."""
    return np.concatenate([packed & 15, packed >> 4], axis=-1)


@inline
def nibbles(weights, at):
    """The codes of eight interleaved rows, whose 16 bytes each begin at byte ``at``."""
    p0, p1 = load_u8x32(weights, at), load_u8x32(weights, at + 32)
    p2, p3 = load_u8x32(weights, at + 64), load_u8x32(weights, at + 96)
    low = splat(u8x32, 15)
    return (
        bit_and(p0, low),
        bit_and(p1, low),
        bit_and(p2, low),
        bit_and(p3, low),
        bit_field(p0, 4, 15),
        bit_field(p1, 4, 15),
        bit_field(p2, 4, 15),
        bit_field(p3, 4, 15),
    )


def nibbles_of_table(values: Sequence[int]) -> Callable:
    """``nibbles``, but each code replaced by what it stands for among 16 bytes."""
    look_up = byte_table(values)

    @inline
    def read(weights, at):
        c0, c1, c2, c3, c4, c5, c6, c7 = nibbles(weights, at)
        return (
            look_up(c0),
            look_up(c1),
            look_up(c2),
            look_up(c3),
            look_up(c4),
            look_up(c5),
            look_up(c6),
            look_up(c7),
        )

    return read
