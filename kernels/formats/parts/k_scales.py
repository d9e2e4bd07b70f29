"""What Q4_K and Q5_K share: two f16 factors, and eight 6-bit scales and minima in 12 bytes.

A block begins with the factor of its scales and that of its minima; the 12 bytes follow. The first
four scales are in the lower 6 bits of bytes 0-3, the first four minima in those of bytes 4-7. Byte
8 + i has the lower halves of scale and minimum 4 + i; their upper two bits are the upper two bits
of bytes i and 4 + i.
"""

import numpy as np

from q4run.kernels.compiling.compile import inline
from q4run.kernels.formats.parts.scaled import scales_of
from q4run.kernels.formats.quantize.affine import AFFINE_SEARCH
from q4run.kernels.formats.quantize.shared_minimum import quantize_shared_minimum
from q4run.kernels.formats.quantize.tiles import put_half
from q4run.kernels.formats.writing import Coded
from q4run.kernels.simd.casts import halves_to_float, to_float
from q4run.kernels.simd.memory import load_i32x8_bytes, load_u16x8_bytes
from q4run.kernels.simd.ops import bit_and, bit_or, mul, shift_right, splat, sub
from q4run.kernels.simd.vector import f32x8, i32x8


class SixBitScaled(Coded):
    """256 values in eight groups; value = scale * code - minimum, both per group."""

    def quantize_blocks(self, values: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
        return quantize_shared_minimum(self, values, weights, AFFINE_SEARCH, 63)

    def unpack_scales(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scales, minima = _unpack_six_bits(raw[:, 4:16])
        return scales_of(raw) * scales, -scales_of(raw, 2) * minima


def _unpack_six_bits(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (n, 12) -> scales and minima, float32 (n, 8) each."""
    scales, minima, shared = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    return (
        np.concatenate([scales & 63, shared & 15 | scales >> 2 & 48], axis=1).astype(np.float32),
        np.concatenate([minima & 63, shared >> 4 | minima >> 2 & 48], axis=1).astype(np.float32),
    )


@inline
def pack_group_scales(factors, scales, minima, raw, at):
    """Factors, scales and minima into the block that begins at ``raw[at]``, as ``pack_scales``."""
    put_half(factors[0], raw, at)
    put_half(factors[1], raw, at + 2)
    _pack_six_bits(scales, minima, raw, at + 4)


@inline
def _pack_six_bits(scales, minima, raw, at):
    """Eight scales and minima below 64, integers, into the 12 bytes from ``raw[at]`` on."""
    for i in range(4):
        scale, minimum = scales[4 + i], minima[4 + i]
        raw[at + i] = np.uint8(scales[i] | scale >> 4 << 6)
        raw[at + 4 + i] = np.uint8(minima[i] | minimum >> 4 << 6)
        raw[at + 8 + i] = np.uint8(scale & 15 | (minimum & 15) << 4)


@inline
def pack_group_nibbles(codes, first, raw, at):
    """The lower 4 bits of 256 codes into 128 bytes: a group in lower halves, the next in upper."""
    for pair in range(4):
        i = first + 64 * pair
        for m in range(32):
            raw[at + 32 * pair + m] = codes[i + m] & 15 | codes[i + 32 + m] << 4


@inline
def _six_bits(weights, at, group, which):
    """Scale (``which`` 0) or minimum (1) of a group; the rows' 12 bytes begin at byte ``at``."""
    own = load_i32x8_bytes(weights, at + 32 * which)
    if group < 4:
        return bit_and(shift_right(own, 8 * group), splat(i32x8, 63))
    byte = 8 * (group - 4)
    lower = shift_right(load_i32x8_bytes(weights, at + 64), byte + 4 * which)
    upper = bit_and(shift_right(own, byte + 2), splat(i32x8, 48))
    return bit_or(bit_and(lower, splat(i32x8, 15)), upper)


@inline
def group_scale(weights, at, group):
    """The scale of a group; the rows' blocks begin at byte ``at``."""
    factor = halves_to_float(load_u16x8_bytes(weights, at))
    return mul(factor, to_float(_six_bits(weights, at + 8 * 4, group, 0)))


@inline
def group_minimum(weights, at, group):
    """The minimum of a group: what is stored is how far below zero it lies."""
    factor = sub(splat(f32x8, 0.0), halves_to_float(load_u16x8_bytes(weights, at + 8 * 2)))
    return mul(factor, to_float(_six_bits(weights, at + 8 * 4, group, 1)))
