"""Q8_0: 32 values as one f16 scale and 32 int8 codes; value = scale * code.

Without an importance quantised as ggml's reference does: scale = largest magnitude / 127, halves
away from zero. A search would leave a tenth less of an error that no measurement of a model sees.
"""

import gguf
import numpy as np

from q4run.kernels.compiling.compile import inline, kernel
from q4run.kernels.formats.base import Field, register
from q4run.kernels.formats.parts.scaled import Scaled, quantize_scaled, scales_of
from q4run.kernels.formats.quantize.symmetric import scale_search
from q4run.kernels.formats.reading import codes, each_vector, implements, scale
from q4run.kernels.formats.writing import pack_codes
from q4run.kernels.simd.casts import as_signed, halves_to_float
from q4run.kernels.simd.memory import load_u8x32, load_u16x8_bytes
from q4run.kernels.simd.ops import biased


class Q8_0(Scaled):
    search = scale_search((0.98, 1.0025, 8), (1, 1, 0), 0.002)

    def quantize_blocks(self, values: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
        if weights is not None:
            return super().quantize_blocks(values, weights)
        return quantize_scaled(values, self.type_size, _quantize)

    def dequantize_blocks(self, raw: np.ndarray) -> np.ndarray:
        return scales_of(raw) * raw[:, 2:].view(np.int8).astype(np.float32)


@kernel()
def _quantize(values, scales, raw):
    for block in range(len(values)):
        largest = np.float32(0)
        for i in range(32):
            largest = max(largest, abs(values[block, i]))
        scale = largest / np.float32(127)
        inverse = np.float32(1) / scale if scale > 0 else np.float32(0)
        scales[block, 0] = scale
        for i in range(32):
            scaled = values[block, i] * inverse
            whole = np.floor(abs(scaled))
            # Not floor(x + 0.5): that sum rounds the largest float below 0.5 up to 1.
            code = whole + np.float32(abs(scaled) - whole >= np.float32(0.5))
            raw[block, 2 + i] = np.uint8(np.int32(code if scaled > 0 else -code) & 255)


FORMAT = register(
    Q8_0(
        gguf.GGMLQuantizationType.Q8_0,
        [Field(0, 1, 2), Field(2, 8, 4)],
        signed=True,
        levels=range(-127, 128),
    )
)


@implements(pack_codes, FORMAT)
def _pack_codes(fmt, codes, first, raw, at):
    for i in range(32):
        raw[at + 2 + i] = np.uint8(codes[first + i] - 127 & 255)


@inline
def _code(weights, at, group, vector):
    return biased(as_signed(load_u8x32(weights, at + 8 * 2 + 32 * vector)))


@implements(codes, FORMAT)
def _codes(fmt, weights, at, group):
    return each_vector(_code, weights, at, group)


@implements(scale, FORMAT)
def _scale(fmt, weights, at, group, half):
    return halves_to_float(load_u16x8_bytes(weights, at))
