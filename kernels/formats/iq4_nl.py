"""IQ4_NL: 32 values as one f16 scale and 4-bit codes; value = scale * VALUES[code].

Quantised as ggml's reference does without an importance matrix: codes by rounding with the scale
that makes the value of largest magnitude -127, then the scale that is best for these codes, errors
weighted with the squared values.
"""

import gguf
import numpy as np

from q4run.kernels.compile import inline, kernel
from q4run.kernels.formats.base import Field, Format, register
from q4run.kernels.formats.iq4_values import VALUES, biased_values
from q4run.kernels.formats.nibbles import pack_nibbles, unpack_nibbles
from q4run.kernels.formats.reading import codes, implements, scale
from q4run.kernels.formats.scaled import halves_of, scales_of
from q4run.kernels.simd.casts import halves_to_float
from q4run.kernels.simd.memory import load_u16x8_bytes

# A block that stays below it is zeros.
_SMALLEST = np.float32(1e-15)


class IQ4_NL(Format):
    def quantize_blocks(self, values: np.ndarray) -> np.ndarray:
        scales = np.zeros((len(values), 1), np.float32)
        codes = np.zeros(values.shape, np.uint8)
        _quantize(values, VALUES, scales, codes)
        return np.concatenate([halves_of(scales), pack_nibbles(codes)], axis=1)

    def dequantize_blocks(self, raw: np.ndarray) -> np.ndarray:
        return scales_of(raw) * VALUES[unpack_nibbles(raw[:, 2:])]


@kernel()
def _quantize(values, table, scales, codes):
    for block in range(len(values)):
        extreme = np.float32(0)
        for i in range(32):
            if abs(values[block, i]) > abs(extreme):
                extreme = values[block, i]
        if abs(extreme) < _SMALLEST:
            continue
        inverse = np.float32(1) / (extreme / table[0])
        product = square = np.float32(0)
        for i in range(32):
            value = values[block, i]
            code = _nearest(table, value * inverse)
            codes[block, i] = code
            weight = value * value
            product += weight * table[code] * value
            square += weight * table[code] * table[code]
        scales[block, 0] = product / square


@inline
def _nearest(table, scaled):
    """The index of the nearest entry of an ascending table; of two, the larger."""
    above = 1
    while above < len(table) - 1 and scaled >= table[above]:
        above += 1
    return above - 1 if scaled - table[above - 1] < table[above] - scaled else above


FORMAT = register(
    IQ4_NL(gguf.GGMLQuantizationType.IQ4_NL, [Field(0, 1, 2), Field(2, 4, 4)], signed=True)
)


@implements(codes, FORMAT)
def _codes(fmt, weights, at, group):
    return biased_values(weights, at + 8 * 2)


@implements(scale, FORMAT)
def _scale(fmt, weights, at, group, half):
    return halves_to_float(load_u16x8_bytes(weights, at))
