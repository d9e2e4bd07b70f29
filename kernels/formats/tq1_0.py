"""TQ1_0: 256 ternary values, five to a byte in base 3, and one f16 scale.

A byte b stands for the fraction b / 256; multiplying it by 3^n (mod 256) and then by 3 brings
digit n above the point: digit = ((b * 3^n mod 256) * 3) >> 8. Value = scale * (digit - 1).
Bytes 0-31: digit n of byte m is value 32 n + m, n < 5. Bytes 32-47: value 160 + 16 n + m, n < 5.
Bytes 48-51: value 240 + 4 n + m, n < 4.
"""

import gguf
import numpy as np
from numba.extending import overload

from q4run.kernels.compile import inline
from q4run.kernels.formats.base import Format, dot_block, register
from q4run.kernels.formats.ternary import ternarize
from q4run.kernels.simd.casts import as_signed, concat, to_float
from q4run.kernels.simd.memory import load_half, load_i8x32, load_repeated, load_u8x16, load_u8x32
from q4run.kernels.simd.ops import dot_signed, fma, mul, mul_high, splat, sub
from q4run.kernels.simd.vector import f32x8, i32x8, u8x16, u8x32

_POWERS = np.array([1, 3, 9, 27, 81], np.uint8)
_POWER_OF_QUARTER = np.repeat(_POWERS[:4], 4)
# (first byte, bytes, first value, digits) of the three sections.
_SECTIONS = ((0, 32, 0, 5), (32, 16, 160, 5), (48, 4, 240, 4))


class TQ1_0(Format):
    def quantize_blocks(self, values: np.ndarray) -> np.ndarray:
        scales, codes = ternarize(values)
        raw = np.empty((len(values), 54), np.uint8)
        for first_byte, n_bytes, first_value, digits in _SECTIONS:
            section = codes[:, first_value : first_value + digits * n_bytes]
            number = np.zeros((len(values), n_bytes), np.uint32)
            for digit in section.reshape(-1, digits, n_bytes).transpose(1, 0, 2):
                number = number * 3 + digit
            number *= 3 ** (5 - digits)
            # Rounded up, so that the multiplications by 3 read the digits back exactly.
            raw[:, first_byte : first_byte + n_bytes] = (number * 256 + 242) // 243
        raw[:, 52:] = scales.view(np.uint8)
        return raw

    def dequantize_blocks(self, raw: np.ndarray) -> np.ndarray:
        scales = raw[:, 52:].copy().view(np.float16).astype(np.float32)
        codes = []
        for first_byte, n_bytes, _, digits in _SECTIONS:
            packed = raw[:, first_byte : first_byte + n_bytes].reshape(-1, 1, n_bytes)
            shifted = packed * _POWERS[:digits].reshape(1, digits, 1)
            codes.append((shifted.astype(np.uint16) * 3 >> 8).reshape(-1, digits * n_bytes))
        return scales * (np.concatenate(codes, axis=1).astype(np.float32) - 1)


FORMAT = register(TQ1_0(gguf.GGMLQuantizationType.TQ1_0, int8_activations=True))


@inline
def _signs(shifted):
    return as_signed(sub(mul_high(shifted, splat(u8x32, 3)), splat(u8x32, 1)))


@inline
def _add_part(signs, q, index, scale, accumulator):
    products = dot_signed(splat(i32x8, 0), signs, load_i8x32(q, index))
    return fma(to_float(products), splat(f32x8, scale), accumulator)


@overload(dot_block)
def _dot_block(fmt, weights, offset, q, scales, sums, token, block, accumulator):
    if fmt is not FORMAT.numba_type:
        return None

    def implementation(fmt, weights, offset, q, scales, sums, token, block, accumulator):
        scale = load_half(weights, offset + 52)
        first = token * q.shape[1] + 256 * block
        part = 8 * block

        packed = load_u8x32(weights, offset)
        power = 1
        for digit in range(5):
            signs = _signs(mul(packed, splat(u8x32, power)))
            part_scale = scale * scales[token, part + digit]
            accumulator = _add_part(signs, q, first + 32 * digit, part_scale, accumulator)
            power *= 3

        short = load_u8x16(weights, offset + 32)
        third = mul(short, splat(u8x16, 3))
        ninth = mul(short, splat(u8x16, 9))
        signs = _signs(concat(short, third))
        part_scale = scale * scales[token, part + 5]
        accumulator = _add_part(signs, q, first + 160, part_scale, accumulator)
        signs = _signs(concat(ninth, mul(short, splat(u8x16, 27))))
        part_scale = scale * scales[token, part + 6]
        accumulator = _add_part(signs, q, first + 192, part_scale, accumulator)
        last = mul(load_repeated(weights, offset + 48), load_u8x16(_POWER_OF_QUARTER, 0))
        signs = _signs(concat(mul(short, splat(u8x16, 81)), last))
        part_scale = scale * scales[token, part + 7]
        return _add_part(signs, q, first + 224, part_scale, accumulator)

    return implementation
