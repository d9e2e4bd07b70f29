"""Q4_0: 32 values as one f16 scale and 32 4-bit codes; value = scale * (code - 8).

Byte j holds code j in its low half and code j + 16 in its high half.
"""

import gguf
import numpy as np

from q4run.kernels.formats.base import Field, register
from q4run.kernels.formats.parts.nibbles import nibbles, pack_nibbles, unpack_nibbles
from q4run.kernels.formats.parts.scaled import Scaled, scales_of
from q4run.kernels.formats.quantize.symmetric import scale_search
from q4run.kernels.formats.reading import codes, implements, scale
from q4run.kernels.formats.writing import pack_codes
from q4run.kernels.simd.casts import halves_to_float
from q4run.kernels.simd.memory import load_u16x8_bytes


class Q4_0(Scaled):
    search = scale_search((0.6, 1.05, 10), (0.7, 1.15, 6), 0.04)
    # Without an importance half as many do, and leave 0.5 % more squared error.
    quick_search = scale_search((0.79, 1, 4), (0.85, 1.06, 4), 0.04)

    def dequantize_blocks(self, raw: np.ndarray) -> np.ndarray:
        return scales_of(raw) * (unpack_nibbles(raw[:, 2:]).astype(np.float32) - 8)


FORMAT = register(
    Q4_0(
        gguf.GGMLQuantizationType.Q4_0,
        [Field(0, 1, 2), Field(2, 4, 4)],
        code_bits=4,
        zero=8,
        levels=range(-8, 8),
    )
)


@implements(pack_codes, FORMAT)
def _pack_codes(fmt, codes, first, raw, at):
    pack_nibbles(codes, first, raw, at + 2)


@implements(codes, FORMAT)
def _codes(fmt, weights, at, group):
    return nibbles(weights, at + 16)


@implements(scale, FORMAT)
def _scale(fmt, weights, at, group, half):
    return halves_to_float(load_u16x8_bytes(weights, at))
