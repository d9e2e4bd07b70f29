"""Q5_0: 32 values as one f16 scale and 5-bit codes; value = scale * (code - 16).

Quantised as ggml's reference does: the value of largest magnitude becomes code 0, which is -16.
"""

import gguf
import numpy as np

from q4run.kernels.compile import kernel
from q4run.kernels.formats.base import Field, Format, register
from q4run.kernels.formats.fifth_bits import five_bits, pack_five_bits, unpack_five_bits
from q4run.kernels.formats.reading import codes, implements, scale
from q4run.kernels.formats.scaled import halves_of, scales_of
from q4run.kernels.simd.casts import halves_to_float
from q4run.kernels.simd.memory import load_u16x8_bytes


class Q5_0(Format):
    def quantize_blocks(self, values: np.ndarray) -> np.ndarray:
        scales = np.empty((len(values), 1), np.float32)
        codes = np.empty(values.shape, np.uint8)
        _quantize(values, scales, codes)
        return np.concatenate([halves_of(scales), pack_five_bits(codes)], axis=1)

    def dequantize_blocks(self, raw: np.ndarray) -> np.ndarray:
        return scales_of(raw) * (unpack_five_bits(raw[:, 2:]).astype(np.float32) - 16)


@kernel()
def _quantize(values, scales, codes):
    for block in range(len(values)):
        extreme = np.float32(0)
        for i in range(32):
            if abs(values[block, i]) > abs(extreme):
                extreme = values[block, i]
        scale = extreme / np.float32(-16)
        inverse = np.float32(1) / scale if scale != 0 else np.float32(0)
        scales[block, 0] = scale
        for i in range(32):
            code = values[block, i] * inverse + np.float32(16.5)
            codes[block, i] = np.uint8(min(code, np.float32(31)))


FORMAT = register(
    Q5_0(gguf.GGMLQuantizationType.Q5_0, [Field(0, 1, 2), Field(2, 1, 4), Field(6, 4, 4)], zero=16)
)


@implements(codes, FORMAT)
def _codes(fmt, weights, at, group):
    return five_bits(weights, at + 8 * 2)


@implements(scale, FORMAT)
def _scale(fmt, weights, at, group, half):
    return halves_to_float(load_u16x8_bytes(weights, at))
