"""TQ2_0: 256 ternary values, 2 bits each, and one f16 scale; value = scale * (code - 1).

Two groups of 32 bytes; bits 2l and 2l + 1 of byte m hold value 32 l + m of the group's 128.
"""

import gguf
import numpy as np

from q4run.kernels.compiling.compile import inline
from q4run.kernels.formats.base import Field, register
from q4run.kernels.formats.parts.scaled import scales_of
from q4run.kernels.formats.parts.two_bits import pack_two_bits
from q4run.kernels.formats.quantize.ternary import quantize_ternary
from q4run.kernels.formats.reading import codes, each_vector, implements, scale
from q4run.kernels.formats.writing import Coded, pack_codes
from q4run.kernels.simd.casts import halves_to_float
from q4run.kernels.simd.memory import load_u8x32, load_u16x8_bytes
from q4run.kernels.simd.ops import bit_field


class TQ2_0(Coded):
    def quantize_blocks(self, values: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
        return quantize_ternary(self, values, weights, 64)

    def unpack_scales(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scales = scales_of(raw, 64)
        return scales, np.zeros_like(scales)

    def dequantize_blocks(self, raw: np.ndarray) -> np.ndarray:
        packed = raw[:, :64].reshape(-1, 2, 1, 32)
        shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
        codes = (packed >> shifts & 3).reshape(-1, 256)
        return scales_of(raw, 64) * (codes.astype(np.float32) - 1)


FORMAT = register(
    TQ2_0(
        gguf.GGMLQuantizationType.TQ2_0,
        [Field(0, 16, 4), Field(64, 1, 2)],
        zero=1,
        levels=(-1, 0, 1),
        group_size=256,
    )
)
_SCALES = 8 * 64  # where the scales of eight interleaved rows begin


@implements(pack_codes, FORMAT)
def _pack_codes(fmt, codes, first, raw, at):
    pack_two_bits(codes, first, raw, at)


@inline
def _code(weights, at, group, vector):
    packed = load_u8x32(weights, at + 256 * (group // 4) + 32 * vector)
    return bit_field(packed, 2 * (group % 4), 3)


@implements(codes, FORMAT)
def _codes(fmt, weights, at, group):
    return each_vector(_code, weights, at, group)


@implements(scale, FORMAT)
def _scale(fmt, weights, at, group, half):
    return halves_to_float(load_u16x8_bytes(weights, at + _SCALES))
