"""Q4_K: 256 values in eight groups of 32; value = scale * code - minimum, both per group.

f16 factors of all scales and of all minima, 12 bytes as in ``k_scales``, 128 bytes of codes: 32
bytes hold one group in their lower halves and the next in their upper halves.
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
from q4run.kernels.simd.ops import bit_field


class Q4_K(SixBitScaled):
    def dequantize_blocks(self, raw: np.ndarray) -> np.ndarray:
        scales, minima = self.unpack_scales(raw)
        packed = raw[:, 16:].reshape(-1, 4, 1, 32)
        codes = np.concatenate([packed & 15, packed >> 4], axis=2).reshape(-1, 8, 32)
        values = scales[:, :, None] * codes.astype(np.float32) + minima[:, :, None]
        return values.reshape(-1, 256)


FORMAT = register(
    Q4_K(
        gguf.GGMLQuantizationType.Q4_K,
        [Field(0, 1, 2), Field(2, 1, 2), Field(4, 3, 4), Field(16, 32, 4)],
        code_bits=4,
        has_minimum=True,
        levels=range(16),
    )
)


@implements(pack_scales, FORMAT)
def _pack_scales(fmt, factors, scales, minima, raw, at):
    pack_group_scales(factors, scales, minima, raw, at)


@implements(pack_codes, FORMAT)
def _pack_codes(fmt, codes, first, raw, at):
    pack_group_nibbles(codes, first, raw, at + 16)


@inline
def _code(weights, at, group, vector):
    packed = load_u8x32(weights, at + 8 * 16 + 256 * (group >> 1) + 32 * vector)
    return bit_field(packed, 4 * (group & 1), 15)


@implements(codes, FORMAT)
def _codes(fmt, weights, at, group):
    return each_vector(_code, weights, at, group)


@implements(scale, FORMAT)
def _scale(fmt, weights, at, group, half):
    return group_scale(weights, at, group)


@implements(minimum, FORMAT)
def _minimum(fmt, weights, at, group, half):
    return group_minimum(weights, at, group)
