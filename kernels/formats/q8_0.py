"""Q8_0: 32 values as one f16 scale and 32 int8 codes; value = scale * code.

Quantised as ggml's reference does: scale = largest magnitude / 127, halves away from zero.
"""

import gguf
import numpy as np
from numba import prange
from numba.extending import overload

from q4run.kernels.compile import kernel
from q4run.kernels.formats.base import Format, dot_block, register
from q4run.kernels.formats.scaled import quantize_scaled, scales_of
from q4run.kernels.simd.casts import as_signed, to_float
from q4run.kernels.simd.memory import load_half, load_i8x32, load_u8x32
from q4run.kernels.simd.ops import dot_signed, fma, splat
from q4run.kernels.simd.vector import f32x8, i32x8


class Q8_0(Format):
    def quantize_blocks(self, values: np.ndarray) -> np.ndarray:
        return quantize_scaled(values, self.type_size, _quantize)

    def dequantize_blocks(self, raw: np.ndarray) -> np.ndarray:
        return scales_of(raw) * raw[:, 2:].view(np.int8).astype(np.float32)


@kernel(parallel=True)
def _quantize(values, scales, raw):
    for block in prange(len(values)):
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


FORMAT = register(Q8_0(gguf.GGMLQuantizationType.Q8_0, int8_activations=True))


@overload(dot_block)
def _dot_block(fmt, weights, offset, q, scales, sums, token, block, accumulator):
    if fmt is not FORMAT.numba_type:
        return None

    def implementation(fmt, weights, offset, q, scales, sums, token, block, accumulator):
        codes = as_signed(load_u8x32(weights, offset + 2))
        x = load_i8x32(q, token * q.shape[1] + 32 * block)
        # Codes first: a file may hold -128, which the second operand must not be.
        products = dot_signed(splat(i32x8, 0), codes, x)
        scale = load_half(weights, offset) * scales[token, block]
        return fma(to_float(products), splat(f32x8, scale), accumulator)

    return implementation
