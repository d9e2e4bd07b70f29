"""TQ1_0: 256 ternary values, five to a byte in base 3, and one f16 scale.

A byte b stands for the fraction b / 256; multiplying it by 3^n (mod 256) and then by 3 brings
digit n above the point: digit = ((b * 3^n mod 256) * 3) >> 8. Value = scale * (digit - 1).
Bytes 0-31: digit n of byte m is value 32 n + m, n < 5. Bytes 32-47: value 160 + 16 n + m, n < 5.
Bytes 48-51: value 240 + 4 n + m, n < 4.
"""

import gguf
import numpy as np

from q4run.kernels.compiling.compile import inline
from q4run.kernels.formats.base import Field, register
from q4run.kernels.formats.parts.scaled import scales_of
from q4run.kernels.formats.quantize.ternary import quantize_ternary
from q4run.kernels.formats.reading import block_sums, codes, implements, scale
from q4run.kernels.formats.writing import Coded, pack_codes
from q4run.kernels.simd.casts import halves_to_float
from q4run.kernels.simd.memory import load_four, load_u8x32, load_u16x8_bytes
from q4run.kernels.simd.ops import dot_unsigned, splat, ternary_digit, ternary_digits
from q4run.kernels.simd.vector import i32x8

_POWERS = np.array([1, 3, 9, 27, 81], np.uint8)
# (first byte, bytes, first value, digits) of the three sections.
_SECTIONS = ((0, 32, 0, 5), (32, 16, 160, 5), (48, 4, 240, 4))


class TQ1_0(Coded):
    def quantize_blocks(self, values: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
        return quantize_ternary(self, values, weights, 52)

    def unpack_scales(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scales = scales_of(raw, 52)
        return scales, np.zeros_like(scales)

    def dequantize_blocks(self, raw: np.ndarray) -> np.ndarray:
        codes = []
        for first_byte, n_bytes, _, digits in _SECTIONS:
            packed = raw[:, first_byte : first_byte + n_bytes].reshape(-1, 1, n_bytes)
            shifted = packed * _POWERS[:digits].reshape(1, digits, 1)
            codes.append((shifted.astype(np.uint16) * 3 >> 8).reshape(-1, digits * n_bytes))
        return scales_of(raw, 52) * (np.concatenate(codes, axis=1).astype(np.float32) - 1)


FORMAT = register(
    TQ1_0(
        gguf.GGMLQuantizationType.TQ1_0,
        [Field(0, 12, 4), Field(48, 1, 4), Field(52, 1, 2)],
        code_bits=2,
        zero=1,
        block_at_once=True,
        levels=(-1, 0, 1),
        group_size=256,
    )
)


@implements(pack_codes, FORMAT)
def _pack_codes(fmt, codes, first, raw, at):
    for byte in range(32):
        raw[at + byte] = _five_digits(codes, first + byte, 32)
    for byte in range(16):
        raw[at + 32 + byte] = _five_digits(codes, first + 160 + byte, 16)
    for byte in range(4):
        i = first + 240 + byte
        number = ((codes[i] * 3 + codes[i + 4]) * 3 + codes[i + 8]) * 3 + codes[i + 12]
        raw[at + 48 + byte] = _fraction(number * 3)


@inline
def _five_digits(codes, i, step):
    number = (codes[i] * 3 + codes[i + step]) * 3 + codes[i + 2 * step]
    return _fraction((number * 3 + codes[i + 3 * step]) * 3 + codes[i + 4 * step])


@inline
def _fraction(number):
    """Rounded up, so that the multiplications by 3 read the digits back exactly."""
    return np.uint8((np.uint32(number) * np.uint32(256) + np.uint32(242)) // np.uint32(243))


# Where the sections of eight interleaved rows begin.
_SIXTEENS, _LAST, _SCALES = 8 * 32, 8 * 48, 8 * 52
_POWER = np.array([1, 3, 9, 27, 81], np.uint16)


@inline
def _digit(weights, at, n):
    return ternary_digit(load_u8x32(weights, at), _POWER[n])


@implements(codes, FORMAT)
def _codes(fmt, weights, at, group):
    if group < 5:
        first, second = at, at + 128
        n0 = n1 = n2 = n3 = group
        step = 32
        n4 = n5 = n6 = n7 = group
    elif group < 7:
        first = second = at + _SIXTEENS
        step = 32
        n0 = n1 = n2 = n3 = 2 * (group - 5)
        n4 = n5 = n6 = n7 = 2 * (group - 5) + 1
    else:
        first, second = at + _SIXTEENS, at + _LAST
        step = 0
        n0 = n1 = n2 = n3 = 4
        n4, n5, n6, n7 = 0, 1, 2, 3
    return (
        _digit(weights, first, n0),
        _digit(weights, first + 32, n1),
        _digit(weights, first + 64, n2),
        _digit(weights, first + 96, n3),
        _digit(weights, second, n4),
        _digit(weights, second + step, n5),
        _digit(weights, second + 2 * step, n6),
        _digit(weights, second + 3 * step, n7),
    )


@implements(scale, FORMAT)
def _scale(fmt, weights, at, group, half):
    return halves_to_float(load_u16x8_bytes(weights, at + _SCALES))


@implements(block_sums, FORMAT)
def _block_sums(fmt, weights, at, q, x):
    s0 = s1 = s2 = s3 = s4 = s5 = s6 = s7 = splat(i32x8, 0)
    for i in range(8):
        d0, d1, d2, d3, d4 = ternary_digits(load_u8x32(weights, at + 32 * i))
        col = x + 4 * i
        s0 = dot_unsigned(s0, d0, load_four(q, col))
        s1 = dot_unsigned(s1, d1, load_four(q, col + 32))
        s2 = dot_unsigned(s2, d2, load_four(q, col + 64))
        s3 = dot_unsigned(s3, d3, load_four(q, col + 96))
        s4 = dot_unsigned(s4, d4, load_four(q, col + 128))
    for i in range(4):
        d0, d1, d2, d3, d4 = ternary_digits(load_u8x32(weights, at + _SIXTEENS + 32 * i))
        col = x + 160 + 4 * i
        s5 = dot_unsigned(s5, d0, load_four(q, col))
        s5 = dot_unsigned(s5, d1, load_four(q, col + 16))
        s6 = dot_unsigned(s6, d2, load_four(q, col + 32))
        s6 = dot_unsigned(s6, d3, load_four(q, col + 48))
        s7 = dot_unsigned(s7, d4, load_four(q, col + 64))
    d0, d1, d2, d3, _ = ternary_digits(load_u8x32(weights, at + _LAST))
    s7 = dot_unsigned(s7, d0, load_four(q, x + 240))
    s7 = dot_unsigned(s7, d1, load_four(q, x + 244))
    s7 = dot_unsigned(s7, d2, load_four(q, x + 248))
    s7 = dot_unsigned(s7, d3, load_four(q, x + 252))
    return s0, s1, s2, s3, s4, s5, s6, s7
