"""TQ2_0: 256 ternary values, 2 bits each, and one f16 scale; value = scale * (code - 1).

Two groups of 32 bytes; bits 2l and 2l + 1 of byte m hold value 32 l + m of the group's 128.
"""

import gguf
import numpy as np
from numba.extending import overload

from q4run.kernels.formats.base import Format, dot_block, register
from q4run.kernels.formats.ternary import ternarize
from q4run.kernels.simd.casts import as_signed, to_float
from q4run.kernels.simd.memory import load_half, load_i8x32, load_u8x32
from q4run.kernels.simd.ops import bit_and, dot_signed, fma, shift_right, splat, sub
from q4run.kernels.simd.vector import f32x8, i32x8, u8x32


class TQ2_0(Format):
    def quantize_blocks(self, values: np.ndarray) -> np.ndarray:
        scales, codes = ternarize(values)
        quads = codes.reshape(-1, 2, 4, 32)
        packed = quads[:, :, 0] | quads[:, :, 1] << 2 | quads[:, :, 2] << 4 | quads[:, :, 3] << 6
        return np.concatenate([packed.reshape(-1, 64), scales.view(np.uint8)], axis=1)

    def dequantize_blocks(self, raw: np.ndarray) -> np.ndarray:
        scales = raw[:, 64:].copy().view(np.float16).astype(np.float32)
        packed = raw[:, :64].reshape(-1, 2, 1, 32)
        shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
        codes = (packed >> shifts & 3).reshape(-1, 256)
        return scales * (codes.astype(np.float32) - 1)


FORMAT = register(TQ2_0(gguf.GGMLQuantizationType.TQ2_0, int8_activations=True))


@overload(dot_block)
def _dot_block(fmt, weights, offset, q, scales, sums, token, block, accumulator):
    if fmt is not FORMAT.numba_type:
        return None

    def implementation(fmt, weights, offset, q, scales, sums, token, block, accumulator):
        weight_scale = load_half(weights, offset + 64)
        first = token * q.shape[1] + 256 * block
        for group in range(2):
            packed = load_u8x32(weights, offset + 32 * group)
            for quarter in range(4):
                part = 4 * group + quarter
                codes = bit_and(shift_right(packed, 2 * quarter), splat(u8x32, 3))
                signs = as_signed(sub(codes, splat(u8x32, 1)))
                x = load_i8x32(q, first + 32 * part)
                products = dot_signed(splat(i32x8, 0), signs, x)
                scale = weight_scale * scales[token, 8 * block + part]
                accumulator = fma(to_float(products), splat(f32x8, scale), accumulator)
        return accumulator

    return implementation
