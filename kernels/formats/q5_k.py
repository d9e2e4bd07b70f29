"""Q5_K: 256 values in eight groups of 32; value = scale * code - minimum, both per group.

f16 factors of all scales and of all minima, 12 bytes as in ``k_scales``, 32 bytes whose bit g is
the highest bit of group g's codes, and 128 bytes with the lower 4 bits, as in Q4_K.
"""

import gguf
import numpy as np

from q4run.kernels.compiling.compile import inline
from q4run.kernels.formats.base import Field, register
from q4run.kernels.formats.parts.k_scales import (
    SixBitScaled,
    group_minimum,
    group_scale,
    pack_group_nibbles,
    pack_group_scales,
)
from q4run.kernels.formats.reading import codes, each_vector, implements, minimum, scale
from q4run.kernels.formats.writing import pack_codes, pack_scales
from q4run.kernels.simd.memory import load_u8x32
from q4run.kernels.simd.ops import bit_field, bit_field_at, bit_or


class Q5_K(SixBitScaled):
    def dequantize_blocks(self, raw: np.ndarray) -> np.ndarray:
        scales, minima = self.unpack_scales(raw)
        packed = raw[:, 48:].reshape(-1, 4, 1, 32)
        lower = np.concatenate([packed & 15, packed >> 4], axis=2).reshape(-1, 8, 32)
        upper = raw[:, 16:48].reshape(-1, 1, 32) >> np.arange(8, dtype=np.uint8)[:, None] & 1
        codes = (lower | upper << 4).astype(np.float32)
        return (scales[:, :, None] * codes + minima[:, :, None]).reshape(-1, 256)


FORMAT = register(
    Q5_K(
        gguf.GGMLQuantizationType.Q5_K,
        [Field(0, 1, 2), Field(2, 1, 2), Field(4, 3, 4), Field(16, 8, 4), Field(48, 32, 4)],
        code_bits=5,
        has_minimum=True,
        levels=range(32),
    )
)


@implements(pack_scales, FORMAT)
def _pack_scales(fmt, factors, scales, minima, raw, at):
    pack_group_scales(factors, scales, minima, raw, at)


@implements(pack_codes, FORMAT)
def _pack_codes(fmt, codes, first, raw, at):
    for m in range(32):
        upper = np.uint8(0)
        for group in range(8):
            upper |= (codes[first + 32 * group + m] >> 4 & 1) << group
        raw[at + 16 + m] = upper
    pack_group_nibbles(codes, first, raw, at + 48)


@inline
def _code(weights, at, group, vector):
    lower = load_u8x32(weights, at + 8 * 48 + 256 * (group >> 1) + 32 * vector)
    upper = load_u8x32(weights, at + 8 * 16 + 32 * vector)
    return bit_or(bit_field(lower, 4 * (group & 1), 15), bit_field_at(upper, group, 1, 4))


@implements(codes, FORMAT)
def _codes(fmt, weights, at, group):
    return each_vector(_code, weights, at, group)


@implements(scale, FORMAT)
def _scale(fmt, weights, at, group, half):
    return group_scale(weights, at, group)


@implements(minimum, FORMAT)
def _minimum(fmt, weights, at, group, half):
    return group_minimum(weights, at, group)
