"""Q2_K: 256 values in sixteens, each with a scale and a minimum of 4 bits.

Value = factor * scale * code - minimum factor * minimum. 16 bytes with a scale in the lower half
and a minimum in the upper; 64 bytes of codes; both f16 factors. Of each half (128 values, 32 bytes)
bits 2g and 2g + 1 of byte m are value 32 g + m.
"""

import gguf
import numpy as np

from q4run.kernels.compiling.compile import inline
from q4run.kernels.formats.base import Field, register
from q4run.kernels.formats.parts.scaled import scales_of
from q4run.kernels.formats.parts.two_bits import pack_two_bits
from q4run.kernels.formats.quantize.affine import AffineSearch, floats
from q4run.kernels.formats.quantize.shared_minimum import quantize_shared_minimum
from q4run.kernels.formats.quantize.tiles import put_half
from q4run.kernels.formats.reading import codes, each_vector, implements, minimum, scale
from q4run.kernels.formats.writing import Coded, pack_codes, pack_scales
from q4run.kernels.simd.casts import halves_to_float, to_float
from q4run.kernels.simd.memory import load_u8x32, load_u16x8_bytes, load_wide_u8
from q4run.kernels.simd.ops import bit_and, bit_field, mul, shift_right, splat, sub
from q4run.kernels.simd.vector import f32x8, i32x8

# A step and a half beyond the lowest value three equidistant ones are levels.
_SEARCH = AffineSearch(floats(0, 0.5, 1, -1.5), floats(0, 0.5, 1), nearby=floats(0, 0.35, -0.35))


class Q2_K(Coded):
    def quantize_blocks(self, values: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
        return quantize_shared_minimum(self, values, weights, _SEARCH, 15)

    def unpack_scales(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scales = scales_of(raw, 80) * (raw[:, :16] & 15).astype(np.float32)
        return scales, -scales_of(raw, 82) * (raw[:, :16] >> 4).astype(np.float32)

    def dequantize_blocks(self, raw: np.ndarray) -> np.ndarray:
        scales, minima = self.unpack_scales(raw)
        shifts = np.arange(0, 8, 2, dtype=np.uint8).reshape(4, 1)
        codes = (raw[:, 16:80].reshape(-1, 2, 1, 32) >> shifts & 3).reshape(-1, 16, 16)
        values = scales[:, :, None] * codes.astype(np.float32) + minima[:, :, None]
        return values.reshape(-1, 256)


FORMAT = register(
    Q2_K(
        gguf.GGMLQuantizationType.Q2_K,
        [Field(0, 16, 1), Field(16, 16, 4), Field(80, 1, 2), Field(82, 1, 2)],
        code_bits=2,
        half_groups=True,
        has_minimum=True,
        levels=range(4),
    )
)
# Where the parts of eight interleaved rows begin.
_CODES, _FACTORS, _MINIMUM_FACTORS = 8 * 16, 8 * 80, 8 * 82


@implements(pack_scales, FORMAT)
def _pack_scales(fmt, factors, scales, minima, raw, at):
    for i in range(16):
        raw[at + i] = np.uint8(scales[i] | minima[i] << 4)
    put_half(factors[0], raw, at + 80)
    put_half(factors[1], raw, at + 82)


@implements(pack_codes, FORMAT)
def _pack_codes(fmt, codes, first, raw, at):
    pack_two_bits(codes, first, raw, at + 16)


@inline
def _code(weights, at, group, vector):
    packed = load_u8x32(weights, at + _CODES + 256 * (group >> 2) + 32 * vector)
    return bit_field(packed, 2 * (group & 3), 3)


@implements(codes, FORMAT)
def _codes(fmt, weights, at, group):
    return each_vector(_code, weights, at, group)


@implements(scale, FORMAT)
def _scale(fmt, weights, at, group, half):
    own = bit_and(load_wide_u8(weights, at + 16 * group + 8 * half), splat(i32x8, 15))
    return mul(halves_to_float(load_u16x8_bytes(weights, at + _FACTORS)), to_float(own))


@implements(minimum, FORMAT)
def _minimum(fmt, weights, at, group, half):
    own = shift_right(load_wide_u8(weights, at + 16 * group + 8 * half), 4)
    factor = halves_to_float(load_u16x8_bytes(weights, at + _MINIMUM_FACTORS))
    return mul(sub(splat(f32x8, 0.0), factor), to_float(own))
