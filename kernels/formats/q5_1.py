"""Q5_1: 32 values as f16 scale, f16 minimum and 5-bit codes; value = scale * code + minimum."""

import gguf
import numpy as np

from q4run.kernels.formats.base import Field, register
from q4run.kernels.formats.parts.fifth_bits import five_bits, pack_five_bits, unpack_five_bits
from q4run.kernels.formats.parts.scaled import ScaledFromMinimum, scales_of
from q4run.kernels.formats.reading import codes, implements, minimum, scale
from q4run.kernels.formats.writing import pack_codes
from q4run.kernels.simd.casts import halves_to_float
from q4run.kernels.simd.memory import load_u16x8_bytes


class Q5_1(ScaledFromMinimum):
    def dequantize_blocks(self, raw: np.ndarray) -> np.ndarray:
        codes = unpack_five_bits(raw[:, 4:]).astype(np.float32)
        return scales_of(raw) * codes + scales_of(raw, 2)


FORMAT = register(
    Q5_1(
        gguf.GGMLQuantizationType.Q5_1,
        [Field(0, 1, 2), Field(2, 1, 2), Field(4, 1, 4), Field(8, 4, 4)],
        code_bits=5,
        has_minimum=True,
        levels=range(32),
    )
)


@implements(pack_codes, FORMAT)
def _pack_codes(fmt, codes, first, raw, at):
    pack_five_bits(codes, first, raw, at + 4)


@implements(codes, FORMAT)
def _codes(fmt, weights, at, group):
    return five_bits(weights, at + 8 * 4)


@implements(scale, FORMAT)
def _scale(fmt, weights, at, group, half):
    return halves_to_float(load_u16x8_bytes(weights, at))


@implements(minimum, FORMAT)
def _minimum(fmt, weights, at, group, half):
    return halves_to_float(load_u16x8_bytes(weights, at + 8 * 2))
