"""Q4_1: 32 values as an f16 scale, an f16 minimum and 4-bit codes; value = scale * code + minimum.

Byte j holds code j in its low half and code j + 16 in its high half.
"""

import gguf
import numpy as np

from q4run.kernels.formats.base import Field, register
from q4run.kernels.formats.parts.nibbles import nibbles, pack_nibbles, unpack_nibbles
from q4run.kernels.formats.parts.scaled import ScaledFromMinimum, scales_of
from q4run.kernels.formats.reading import codes, implements, minimum, scale
from q4run.kernels.formats.writing import pack_codes
from q4run.kernels.simd.casts import halves_to_float
from q4run.kernels.simd.memory import load_u16x8_bytes


class Q4_1(ScaledFromMinimum):
    def dequantize_blocks(self, raw: np.ndarray) -> np.ndarray:
        codes = unpack_nibbles(raw[:, 4:]).astype(np.float32)
        return scales_of(raw) * codes + scales_of(raw, 2)


FORMAT = register(
    Q4_1(
        gguf.GGMLQuantizationType.Q4_1,
        [Field(0, 1, 2), Field(2, 1, 2), Field(4, 4, 4)],
        code_bits=4,
        has_minimum=True,
        levels=range(16),
    )
)


@implements(pack_codes, FORMAT)
def _pack_codes(fmt, codes, first, raw, at):
    pack_nibbles(codes, first, raw, at + 4)


@implements(codes, FORMAT)
def _codes(fmt, weights, at, group):
    return nibbles(weights, at + 8 * 4)


@implements(scale, FORMAT)
def _scale(fmt, weights, at, group, half):
    return halves_to_float(load_u16x8_bytes(weights, at))


@implements(minimum, FORMAT)
def _minimum(fmt, weights, at, group, half):
    return halves_to_float(load_u16x8_bytes(weights, at + 8 * 2))
