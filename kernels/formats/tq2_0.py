"""TQ2_0: 256 ternary values, 2 bits each, and one f16 scale; value = scale * (code - 1).

Two groups of 32 bytes; bits 2l and 2l + 1 of byte m hold value 32 l + m of the group's 128.
"""

import gguf
import numpy as np

from q4run.kernels.compiling.compile import inline
from q4run.kernels.formats.base import Field, register
from q4run.kernels.formats.parts.scaled import scales_of
from q4run.kernels.formats.parts.two_bits import pack_two_bits
from q4run.kernels.formats.quantize.ternary import quantize_ternary
from q4run.kernels.formats.reading import block_sums, codes, each_vector, implements, scale
from q4run.kernels.formats.writing import Coded, pack_codes
from q4run.kernels.simd.casts import halves_to_float
from q4run.kernels.simd.memory import load_four, load_u8x32, load_u16x8_bytes
from q4run.kernels.simd.ops import add, bit_and, bit_field, shift_right_signed, splat
from q4run.kernels.simd.pairs import HAS_PAIRS, pair_products, sum_of_pairs
from q4run.kernels.simd.vector import i16x16, u8x32


class TQ2_0(Coded):
    def quantize_blocks(self, values: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
        return quantize_ternary(self, values, weights, 64)

    def unpack_scales(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scales = scales_of(raw, 64)
        return scales, np.zeros_like(scales)

    def dequantize_blocks(self, raw: np.ndarray) -> np.ndarray:
        packed = raw[:, :64].reshape(-1, 2, 1, 32)
        shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
        codes = (packed >> shifts & 3).reshape(-1, 256)
        return scales_of(raw, 64) * (codes.astype(np.float32) - 1)


FORMAT = register(
    TQ2_0(
        gguf.GGMLQuantizationType.TQ2_0,
        [Field(0, 16, 4), Field(64, 1, 2)],
        code_bits=2,
        zero=1,
        block_at_once=HAS_PAIRS,
        levels=(-1, 0, 1),
        group_size=256,
    )
)
_SCALES = 8 * 64  # where the scales of eight interleaved rows begin


@implements(pack_codes, FORMAT)
def _pack_codes(fmt, codes, first, raw, at):
    pack_two_bits(codes, first, raw, at)


@inline
def _code(weights, at, group, vector):
    packed = load_u8x32(weights, at + 256 * (group // 4) + 32 * vector)
    return bit_field(packed, 2 * (group % 4), 3)


@implements(codes, FORMAT)
def _codes(fmt, weights, at, group):
    return each_vector(_code, weights, at, group)


if HAS_PAIRS:

    @implements(block_sums, FORMAT)
    def _block_sums(fmt, weights, at, q, x):
        s0, s1, s2, s3 = _half_sums(weights, at, q, x)
        return s0, s1, s2, s3, *_half_sums(weights, at + 256, q, x + 128)


@inline
def _half_sums(weights, at, q, x):
    """Four groups at once: a byte has a code of each, of which two are multiplied in their place.

    Eight products of a pair of codes up to 3 << 2 stay below 2**15.
    """
    first, second = splat(u8x32, 3), splat(u8x32, 3 << 2)
    p0 = p1 = p2 = p3 = splat(i16x16, 0)
    for vector in range(8):
        packed, col = load_u8x32(weights, at + 32 * vector), x + 4 * vector
        p0 = add(p0, pair_products(bit_and(packed, first), load_four(q, col)))
        p1 = add(p1, pair_products(bit_and(packed, second), load_four(q, col + 32)))
        packed = bit_field(packed, 4, 15)
        p2 = add(p2, pair_products(bit_and(packed, first), load_four(q, col + 64)))
        p3 = add(p3, pair_products(bit_and(packed, second), load_four(q, col + 96)))
    return (
        sum_of_pairs(p0),
        shift_right_signed(sum_of_pairs(p1), 2),
        sum_of_pairs(p2),
        shift_right_signed(sum_of_pairs(p3), 2),
    )


@implements(scale, FORMAT)
def _scale(fmt, weights, at, group, half):
    return halves_to_float(load_u16x8_bytes(weights, at + _SCALES))
