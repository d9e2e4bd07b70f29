"""Q4_0: 32 values as one f16 scale and 32 4-bit codes; value = scale * (code - 8).

Byte j holds code j in its low half and code j + 16 in its high half. Quantised as ggml's
reference does: the value of largest magnitude becomes code 0, which is -8.
"""

import gguf
import numpy as np

from q4run.kernels.compile import inline, kernel
from q4run.kernels.formats.base import Field, Format, register
from q4run.kernels.formats.nibbles import nibbles
from q4run.kernels.formats.reading import codes, implements, scale
from q4run.kernels.formats.scaled import quantize_scaled, scales_of
from q4run.kernels.simd.casts import halves_to_float
from q4run.kernels.simd.memory import load_u16x8_bytes


class Q4_0(Format):
    def quantize_blocks(self, values: np.ndarray) -> np.ndarray:
        return quantize_scaled(values, self.type_size, _quantize)

    def dequantize_blocks(self, raw: np.ndarray) -> np.ndarray:
        codes = np.concatenate([raw[:, 2:] & 15, raw[:, 2:] >> 4], axis=1)
        return scales_of(raw) * (codes.astype(np.float32) - 8)


@kernel()
def _quantize(values, scales, raw):
    for block in range(len(values)):
        extreme = np.float32(0)
        for i in range(32):
            if abs(values[block, i]) > abs(extreme):
                extreme = values[block, i]
        scale = extreme / np.float32(-8)
        inverse = np.float32(1) / scale if scale != 0 else np.float32(0)
        scales[block, 0] = scale
        for i in range(16):
            low = _code(values[block, i] * inverse)
            high = _code(values[block, i + 16] * inverse)
            raw[block, 2 + i] = np.uint8(low | high << 4)


@inline
def _code(scaled):
    return min(np.int32(scaled + np.float32(8.5)), np.int32(15))


FORMAT = register(Q4_0(gguf.GGMLQuantizationType.Q4_0, [Field(0, 1, 2), Field(2, 4, 4)], zero=8))


@implements(codes, FORMAT)
def _codes(fmt, weights, at, group):
    return nibbles(weights, at + 16)


@implements(scale, FORMAT)
def _scale(fmt, weights, at, group, half):
    return halves_to_float(load_u16x8_bytes(weights, at))
