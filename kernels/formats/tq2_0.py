"""TQ2_0: 256 ternary values, 2 bits each, and one f16 scale; value = scale * (code - 1).

Two groups of 32 bytes; bits 2l and 2l + 1 of byte m hold value 32 l + m of the group's 128.
"""

import gguf
import numpy as np

from q4run.kernels.compile import inline
from q4run.kernels.formats.base import Field, Format, register
from q4run.kernels.formats.reading import codes, each_vector, implements, scale
from q4run.kernels.formats.ternary import ternarize
from q4run.kernels.simd.casts import halves_to_float
from q4run.kernels.simd.memory import load_u8x32, load_u16x8_bytes
from q4run.kernels.simd.ops import bit_field


class TQ2_0(Format):
    def quantize_blocks(self, values: np.ndarray) -> np.ndarray:
        scales, codes = ternarize(values)
        quads = codes.reshape(-1, 2, 4, 32)
        packed = quads[:, :, 0] | quads[:, :, 1] << 2 | quads[:, :, 2] << 4 | quads[:, :, 3] << 6
        return np.concatenate([packed.reshape(-1, 64), scales.view(np.uint8)], axis=1)

    def dequantize_blocks(self, raw: np.ndarray) -> np.ndarray:
        scales = raw[:, 64:].copy().view(np.float16).astype(np.float32)
        packed = raw[:, :64].reshape(-1, 2, 1, 32)
        shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
        codes = (packed >> shifts & 3).reshape(-1, 256)
        return scales * (codes.astype(np.float32) - 1)


FORMAT = register(
    TQ2_0(gguf.GGMLQuantizationType.TQ2_0, [Field(0, 16, 4), Field(64, 1, 2)], zero=1)
)
_SCALES = 8 * 64  # where the scales of eight interleaved rows begin


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
