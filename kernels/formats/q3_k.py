"""Q3_K: 256 values in sixteens, each with a 6-bit scale.

Value = factor * (scale - 32) * (code - 4). 32 bytes whose bit g is the highest bit of group g's
codes; 64 bytes with the lower 2 bits, as in Q2_K; 12 bytes of scales; the f16 factor. The lower 4
bits of scales i and 8 + i share byte i, and the upper 2 of i, 4 + i, 8 + i and 12 + i byte 8 + i.
"""

import gguf
import numpy as np

from q4run.kernels.compiling.compile import inline
from q4run.kernels.formats.base import Field, register
from q4run.kernels.formats.parts.scaled import scales_of
from q4run.kernels.formats.parts.two_bits import pack_two_bits
from q4run.kernels.formats.quantize.shared_scale import largest_integers, quantize_shared_scale
from q4run.kernels.formats.quantize.symmetric import scale_search
from q4run.kernels.formats.quantize.tiles import put_half
from q4run.kernels.formats.reading import codes, each_vector, implements, scale
from q4run.kernels.formats.writing import Coded, pack_codes, pack_scales
from q4run.kernels.simd.casts import halves_to_float, to_float
from q4run.kernels.simd.memory import load_i32x8_bytes, load_u8x32, load_u16x8_bytes
from q4run.kernels.simd.ops import (
    bit_and,
    bit_field,
    bit_field_at,
    bit_or,
    fma,
    mul,
    shift_left,
    shift_right,
    splat,
)
from q4run.kernels.simd.vector import f32x8, i32x8

_SEARCH = scale_search((0.7, 1.05, 5), (0.8, 1.35, 3), 0.08)
_LARGEST = largest_integers(-32)


class Q3_K(Coded):
    def quantize_blocks(self, values: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
        return quantize_shared_scale(self, values, weights, _SEARCH, _LARGEST)

    def unpack_scales(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        packed = raw[:, 96:108]
        shifts = np.arange(0, 8, 2, dtype=np.uint8).reshape(4, 1)
        lower = np.concatenate([packed[:, :8] & 15, packed[:, :8] >> 4], axis=1)
        upper = (packed[:, None, 8:] >> shifts & 3).reshape(-1, 16)
        scales = scales_of(raw, 108) * ((lower | upper << 4).astype(np.float32) - 32)
        return scales, np.zeros_like(scales)

    def dequantize_blocks(self, raw: np.ndarray) -> np.ndarray:
        scales, _ = self.unpack_scales(raw)
        shifts = np.arange(0, 8, 2, dtype=np.uint8).reshape(4, 1)
        lower = (raw[:, 32:96].reshape(-1, 2, 1, 32) >> shifts & 3).reshape(-1, 8, 32)
        upper = raw[:, :32].reshape(-1, 1, 32) >> np.arange(8, dtype=np.uint8)[:, None] & 1
        codes = (lower | upper << 2).reshape(-1, 16, 16).astype(np.float32) - 4
        return (scales[:, :, None] * codes).reshape(-1, 256)


FORMAT = register(
    Q3_K(
        gguf.GGMLQuantizationType.Q3_K,
        [Field(0, 8, 4), Field(32, 16, 4), Field(96, 3, 4), Field(108, 1, 2)],
        code_bits=3,
        zero=4,
        half_groups=True,
        levels=range(-4, 4),
    )
)
# Where the parts of eight interleaved rows begin.
_LOWER, _SCALES, _FACTORS = 8 * 32, 8 * 96, 8 * 108


@implements(pack_scales, FORMAT)
def _pack_scales(fmt, factors, scales, minima, raw, at):
    for i in range(8):
        raw[at + 96 + i] = np.uint8(scales[i] + 32 & 15 | (scales[8 + i] + 32 & 15) << 4)
    for i in range(4):
        upper = 0
        for quarter in range(4):
            upper |= (scales[4 * quarter + i] + 32 >> 4) << 2 * quarter
        raw[at + 104 + i] = np.uint8(upper)
    put_half(factors[0], raw, at + 108)


@implements(pack_codes, FORMAT)
def _pack_codes(fmt, codes, first, raw, at):
    for m in range(32):
        upper = np.uint8(0)
        for group in range(8):
            upper |= (codes[first + 32 * group + m] >> 2 & 1) << group
        raw[at + m] = upper
    pack_two_bits(codes, first, raw, at + 32)


@inline
def _code(weights, at, group, vector):
    lower = load_u8x32(weights, at + _LOWER + 256 * (group >> 2) + 32 * vector)
    upper = load_u8x32(weights, at + 32 * vector)
    return bit_or(bit_field(lower, 2 * (group & 3), 3), bit_field_at(upper, group, 1, 2))


@implements(codes, FORMAT)
def _codes(fmt, weights, at, group):
    return each_vector(_code, weights, at, group)


@inline
def _four_scales(weights, at, quarter):
    """Scales ``4 * quarter`` and the next three, a byte each, as i32x8."""
    lower = load_i32x8_bytes(weights, at + _SCALES + 32 * (quarter & 1))
    lower = bit_and(shift_right(lower, 4 * (quarter >> 1)), splat(i32x8, 0x0F0F0F0F))
    upper = load_i32x8_bytes(weights, at + _SCALES + 64)
    upper = bit_and(shift_right(upper, 2 * quarter), splat(i32x8, 0x03030303))
    return bit_or(shift_left(upper, 4), lower)


@implements(scale, FORMAT)
def _scale(fmt, weights, at, group, half):
    four = _four_scales(weights, at, group >> 1)
    own = bit_and(shift_right(four, 16 * (group & 1) + 8 * half), splat(i32x8, 63))
    factor = halves_to_float(load_u16x8_bytes(weights, at + _FACTORS))
    # The same as factor * (own - 32): no product here needs rounding.
    return fma(factor, to_float(own), mul(factor, splat(f32x8, -32.0)))
