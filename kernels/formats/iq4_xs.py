"""IQ4_XS: 256 values in eight groups of 32, each with a 6-bit scale.

Value = factor * (scale - 32) * VALUES[code]. The f16 factor; 16 bits with the two upper bits of
each scale; 4 bytes with the four lower bits, two scales a byte; then 16 bytes of ``nibbles`` a
group.
"""

import gguf
import numpy as np

from q4run.kernels.formats.base import Field, register
from q4run.kernels.formats.parts.iq4_values import (
    VALUES,
    biased_values,
    code_of_value,
    nearest_value,
)
from q4run.kernels.formats.parts.nibbles import pack_nibbles, unpack_nibbles
from q4run.kernels.formats.parts.scaled import scales_of
from q4run.kernels.formats.quantize.shared_scale import largest_integers, quantize_shared_scale
from q4run.kernels.formats.quantize.symmetric import scale_search
from q4run.kernels.formats.quantize.tiles import put_half
from q4run.kernels.formats.reading import codes, implements, scale
from q4run.kernels.formats.writing import (
    Coded,
    nearest_code,
    nearest_level,
    pack_codes,
    pack_scales,
)
from q4run.kernels.simd.casts import halves_to_float, to_float
from q4run.kernels.simd.memory import load_i32x8_bytes, load_u16x8_bytes, load_wide_u16
from q4run.kernels.simd.ops import bit_and, bit_or, fma, mul, shift_left, shift_right, splat
from q4run.kernels.simd.vector import f32x8, i32x8

_SEARCH = scale_search((0.7, 1.15, 6), (0.7, 1.15, 6), 0.04)
# Without an importance fewer do, and leave 0.5 % more squared error.
_QUICK_SEARCH = scale_search((0.8, 1.12, 5), (0.85, 1.1, 3), 0.04)
_LARGEST = largest_integers(-32)


class IQ4_XS(Coded):
    def quantize_blocks(self, values: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
        search = _QUICK_SEARCH if weights is None else _SEARCH
        return quantize_shared_scale(self, values, weights, search, _LARGEST)

    def unpack_scales(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        upper = raw[:, 2:4].copy().view(np.uint16) >> np.arange(0, 16, 2, dtype=np.uint16) & 3
        lower = np.stack([raw[:, 4:8] & 15, raw[:, 4:8] >> 4], axis=2).reshape(-1, 8)
        scales = scales_of(raw) * ((upper << 4 | lower).astype(np.float32) - 32)
        return scales, np.zeros_like(scales)

    def dequantize_blocks(self, raw: np.ndarray) -> np.ndarray:
        scales, _ = self.unpack_scales(raw)
        values = VALUES[unpack_nibbles(raw[:, 8:].reshape(-1, 8, 16))]
        return (scales[:, :, None] * values).reshape(-1, 256)


FORMAT = register(
    IQ4_XS(
        gguf.GGMLQuantizationType.IQ4_XS,
        [Field(0, 1, 2), Field(2, 1, 2), Field(4, 1, 4), Field(8, 32, 4)],
        signed=True,
        levels=VALUES,
    )
)


@implements(nearest_level, FORMAT)
def _nearest_level(fmt, scaled):
    return nearest_value(scaled)


@implements(nearest_code, FORMAT)
def _nearest_code(fmt, scaled):
    return code_of_value(scaled)


@implements(pack_scales, FORMAT)
def _pack_scales(fmt, factors, scales, minima, raw, at):
    put_half(factors[0], raw, at)
    upper = 0
    for i in range(4):
        first, second = scales[2 * i] + 32, scales[2 * i + 1] + 32
        raw[at + 4 + i] = np.uint8(first & 15 | (second & 15) << 4)
        upper |= (first >> 4 | second >> 4 << 2) << 4 * i
    put_half(upper, raw, at + 2)


@implements(pack_codes, FORMAT)
def _pack_codes(fmt, codes, first, raw, at):
    for group in range(8):
        pack_nibbles(codes, first + 32 * group, raw, at + 8 + 16 * group)


@implements(codes, FORMAT)
def _codes(fmt, weights, at, group):
    return biased_values(weights, at + 8 * 8 + 128 * group)


@implements(scale, FORMAT)
def _scale(fmt, weights, at, group, half):
    upper, lower = load_wide_u16(weights, at + 8 * 2), load_i32x8_bytes(weights, at + 8 * 4)
    upper = bit_and(shift_right(upper, 2 * group), splat(i32x8, 3))
    lower = bit_and(shift_right(lower, 4 * group), splat(i32x8, 15))
    own = to_float(bit_or(shift_left(upper, 4), lower))
    factor = halves_to_float(load_u16x8_bytes(weights, at))
    # The same as factor * (own - 32): no product here needs rounding.
    return fma(factor, own, mul(factor, splat(f32x8, -32.0)))
