"""32 5-bit codes: 4 bytes with the highest bit of each, in order, then the rest as ``nibbles``."""

import numpy as np

from q4run.kernels.compiling.compile import inline
from q4run.kernels.formats.parts.nibbles import nibbles, pack_nibbles, unpack_nibbles
from q4run.kernels.simd.memory import load_i32x8_bytes
from q4run.kernels.simd.ops import add_where_set


@inline
def pack_five_bits(codes, first, raw, at):
    """32 codes below 32, from ``codes[first]`` on, into the 20 bytes from ``raw[at]`` on."""
    for byte in range(4):
        bits = np.uint8(0)
        for i in range(8):
            bits |= (codes[first + 8 * byte + i] >> 4 & 1) << i
        raw[at + byte] = bits
    pack_nibbles(codes, first, raw, at + 4)


def unpack_five_bits(packed: np.ndarray) -> np.ndarray:
    """uint8 (n, 20) -> uint8 (n, 32)."""
    bits = np.unpackbits(packed[:, :4], axis=1, bitorder="little")
    return unpack_nibbles(packed[:, 4:]) | bits << 4


@inline
def five_bits(weights, at):
    """The codes of eight interleaved rows, whose 20 bytes each begin at byte ``at``."""
    words = load_i32x8_bytes(weights, at)
    c0, c1, c2, c3, c4, c5, c6, c7 = nibbles(weights, at + 8 * 4)
    return (
        add_where_set(c0, 16, words, 0),
        add_where_set(c1, 16, words, 4),
        add_where_set(c2, 16, words, 8),
        add_where_set(c3, 16, words, 12),
        add_where_set(c4, 16, words, 16),
        add_where_set(c5, 16, words, 20),
        add_where_set(c6, 16, words, 24),
        add_where_set(c7, 16, words, 28),
    )
