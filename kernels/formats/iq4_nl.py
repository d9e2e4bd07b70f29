"""IQ4_NL: 32 values as one f16 scale and 4-bit codes; value = scale * VALUES[code]."""

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
from q4run.kernels.formats.parts.scaled import Scaled, scales_of
from q4run.kernels.formats.quantize.symmetric import scale_search
from q4run.kernels.formats.reading import codes, implements, scale
from q4run.kernels.formats.writing import nearest_code, nearest_level, pack_codes
from q4run.kernels.simd.casts import halves_to_float
from q4run.kernels.simd.memory import load_u16x8_bytes


class IQ4_NL(Scaled):
    search = scale_search((0.7, 1.15, 6), (0.7, 1.15, 6), 0.04)
    # Without an importance fewer do, and leave 0.5 % more squared error.
    quick_search = scale_search((0.8, 1.12, 5), (0.85, 1.1, 3), 0.04)

    def dequantize_blocks(self, raw: np.ndarray) -> np.ndarray:
        return scales_of(raw) * VALUES[unpack_nibbles(raw[:, 2:])]


FORMAT = register(
    IQ4_NL(
        gguf.GGMLQuantizationType.IQ4_NL,
        [Field(0, 1, 2), Field(2, 4, 4)],
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


@implements(pack_codes, FORMAT)
def _pack_codes(fmt, codes, first, raw, at):
    pack_nibbles(codes, first, raw, at + 2)


@implements(codes, FORMAT)
def _codes(fmt, weights, at, group):
    return biased_values(weights, at + 8 * 2)


@implements(scale, FORMAT)
def _scale(fmt, weights, at, group, half):
    return halves_to_float(load_u16x8_bytes(weights, at))
