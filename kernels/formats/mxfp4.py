"""MXFP4: 32 4-bit floats (sign, 2 bits of exponent, 1 of fraction) and a power of two.

As in the OCP Microscaling Formats specification 1.0. The codes stand for twice their value, which
is an integer, and the exponent byte e for 2 ** (e - 128). The specification's exponent is the one
with which the largest value has the largest exponent of a code; of that one and its neighbours the
one with the least error is taken.
"""

import gguf
import numpy as np

from q4run.kernels.compiling.compile import inline, kernel
from q4run.kernels.formats.base import Field, register
from q4run.kernels.formats.parts.nibbles import nibbles_of_table, unpack_nibbles
from q4run.kernels.formats.quantize.blocks import symmetric_codes
from q4run.kernels.formats.quantize.column_weights import TILE, in_lanes
from q4run.kernels.formats.quantize.symmetric import change, largest_magnitude, sums_of_four
from q4run.kernels.formats.quantize.tiles import load_tile, store_codes, weigh
from q4run.kernels.formats.reading import codes, implements, scale
from q4run.kernels.formats.writing import Coded, nearest_code, nearest_level, pack_codes
from q4run.kernels.simd.casts import halved_power_of_two
from q4run.kernels.simd.compare import steps, where_greater
from q4run.kernels.simd.memory import load_f32x8, load_wide_u8, store
from q4run.kernels.simd.ops import mul, splat
from q4run.kernels.simd.vector import f32x8

_ZERO = 12
VALUES = np.array(gguf.quants.MXFP4.kvalues, np.float32)
_doubled_values = nibbles_of_table([value + _ZERO for value in gguf.quants.MXFP4.kvalues])
_LEVELS = np.unique(VALUES)
_THRESHOLDS = ((_LEVELS[:-1] + _LEVELS[1:]) / 2).tolist()
_nearest = steps(_THRESHOLDS, _LEVELS.tolist())
_index_of_nearest = steps(_THRESHOLDS, list(range(len(_LEVELS))))
# Levels are counted from the lowest, codes upwards from zero and then downwards.
_CODES = np.array([VALUES.tolist().index(level) for level in _LEVELS], np.uint8)


class MXFP4(Coded):
    def quantize_blocks(self, values: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
        raw = np.empty((len(values), self.type_size), np.uint8)
        _quantize(self, values.reshape(-1), in_lanes(weights), raw.reshape(-1))
        return raw

    def unpack_scales(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scales = _powers(raw[:, :1])
        return scales, np.zeros_like(scales)

    def dequantize_blocks(self, raw: np.ndarray) -> np.ndarray:
        return _powers(raw[:, :1]) * VALUES[unpack_nibbles(raw[:, 1:])]


def _powers(exponents: np.ndarray) -> np.ndarray:
    """2 ** (e - 128), subnormal ones included."""
    return np.ldexp(np.float32(1), exponents.astype(np.int32) - 128)


FORMAT = register(
    MXFP4(
        gguf.GGMLQuantizationType.MXFP4,
        [Field(0, 1, 1), Field(1, 4, 4)],
        code_bits=5,
        zero=_ZERO,
        levels=_LEVELS,
    )
)


@implements(nearest_level, FORMAT)
def _nearest_level(fmt, scaled):
    return _nearest(scaled)


@implements(nearest_code, FORMAT)
def _nearest_code(fmt, scaled):
    return _index_of_nearest(scaled)


@implements(pack_codes, FORMAT)
def _pack_codes(fmt, codes, first, raw, at):
    for i in range(16):
        low, high = _CODES[codes[first + i] & 15], _CODES[codes[first + 16 + i] & 15]
        raw[at + 1 + i] = low | high << 4


@kernel()
def _quantize(fmt, values, weights, raw):
    x, weighted = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    words, codes = np.empty(64, np.int32), np.empty(TILE, np.uint8)
    powers, factors = np.empty(8, np.float32), np.empty(8, np.float32)
    exponents, bits = np.empty(8, np.int32), powers.view(np.int32)
    for first in range(0, len(values), TILE):
        at = first % len(weights)
        load_tile(values, first, x)
        store(powers, 0, largest_magnitude(x, 0, 32))
        for group in range(8):
            # The largest code, 6, has the exponent 2.
            exponents[group] = min(max((bits[group] >> 23) - 2, 2), 253)
            bits[group] = (255 - exponents[group]) << 23
        # The values in units of that power of two: no sum of squares then leaves the floats.
        for j in range(0, TILE, 8):
            store(x, j, mul(load_f32x8(x, j), load_f32x8(powers, 0)))
        weigh(x, weights, at, weighted)
        factor = _best_factor(fmt, x, weights, at, weighted)
        store(factors, 0, factor)
        for j in range(8):
            store(words, 8 * j, symmetric_codes(fmt, x, 32 * j, factor))
        store_codes(words, codes)
        for block in range(min(8, (len(values) - first) // 32)):
            place = (first // 32 + block) * 17
            # The scale is the inverse of the factor: 1/2, 1, 2 or 4.
            steps_down = 2 * (factors[block] > 3) + (1 < factors[block] < 3) - (factors[block] < 1)
            raw[place] = np.uint8(exponents[block] - steps_down)
            pack_codes(fmt, codes, 32 * block, raw, place)


@inline
def _best_factor(fmt, x, weights, at, weighted):
    """Of 1, 1/2, 2 and 4 the factor of the values with which their nearest codes err least."""
    f0, f1 = splat(f32x8, 1.0), splat(f32x8, 0.5)
    f2, f3 = splat(f32x8, 2.0), splat(f32x8, 4.0)
    p0, p1, p2, p3, q0, q1, q2, q3 = sums_of_four(
        fmt, x, weights, at, weighted, 0, 32, f0, f1, f2, f3
    )
    least, best = change(f0, p0, q0), f0
    for factor, scale_, p, q in (
        (f1, f2, p1, q1),
        (f2, f1, p2, q2),
        (f3, splat(f32x8, 0.25), p3, q3),
    ):
        own = change(scale_, p, q)
        best = where_greater(least, own, factor, best)
        least = where_greater(least, own, own, least)
    return best


@implements(codes, FORMAT)
def _codes(fmt, weights, at, group):
    return _doubled_values(weights, at + 8)


@implements(scale, FORMAT)
def _scale(fmt, weights, at, group, half):
    return halved_power_of_two(load_wide_u8(weights, at))
