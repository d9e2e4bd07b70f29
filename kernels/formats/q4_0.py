"""Q4_0: 32 values as one f16 scale and 32 4-bit codes; value = scale * (code - 8).

Byte j holds code j in its low half and code j + 16 in its high half. Quantised as ggml's
reference does: the value of largest magnitude becomes code 0, which is -8.
"""

import gguf
import numpy as np
from numba import prange
from numba.extending import overload

from q4run.kernels.compile import inline, kernel
from q4run.kernels.formats.base import Format, dot_block, register
from q4run.kernels.formats.scaled import quantize_scaled, scales_of
from q4run.kernels.simd.casts import concat, to_float
from q4run.kernels.simd.memory import load_half, load_i8x32, load_u8x16
from q4run.kernels.simd.ops import bit_and, dot_unsigned, fma, shift_right, splat
from q4run.kernels.simd.vector import f32x8, i32x8, u8x16


class Q4_0(Format):
    def quantize_blocks(self, values: np.ndarray) -> np.ndarray:
        return quantize_scaled(values, self.type_size, _quantize)

    def dequantize_blocks(self, raw: np.ndarray) -> np.ndarray:
        codes = np.concatenate([raw[:, 2:] & 15, raw[:, 2:] >> 4], axis=1)
        return scales_of(raw) * (codes.astype(np.float32) - 8)


@kernel(parallel=True)
def _quantize(values, scales, raw):
    for block in prange(len(values)):
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


FORMAT = register(Q4_0(gguf.GGMLQuantizationType.Q4_0, int8_activations=True))


@overload(dot_block)
def _dot_block(fmt, weights, offset, q, scales, sums, token, block, accumulator):
    if fmt is not FORMAT.numba_type:
        return None

    def implementation(fmt, weights, offset, q, scales, sums, token, block, accumulator):
        packed = load_u8x16(weights, offset + 2)
        codes = concat(bit_and(packed, splat(u8x16, 15)), shift_right(packed, 4))
        x = load_i8x32(q, token * q.shape[1] + 32 * block)
        # The eight lanes start at -sum each: together the -8 of every code.
        products = dot_unsigned(splat(i32x8, -sums[token, block]), codes, x)
        scale = load_half(weights, offset) * scales[token, block]
        return fma(to_float(products), splat(f32x8, scale), accumulator)

    return implementation
