"""Blocks of 32 values with scales of their own, quantised tile by tile."""

import numpy as np

from q4run.kernels.compiling.compile import inline, kernel
from q4run.kernels.formats.base import Format
from q4run.kernels.formats.quantize.affine import (
    AffineSearch,
    best_affine,
    centre,
    codes_from,
    negative,
    sums_of_three,
    totals,
)
from q4run.kernels.formats.quantize.column_weights import TILE, in_lanes
from q4run.kernels.formats.quantize.symmetric import (
    ScaleSearch,
    best_half,
    best_scale,
    errors_of_two,
    one_shot_scale,
)
from q4run.kernels.formats.quantize.tiles import (
    as_half,
    four_codes,
    inverse,
    load_tile,
    put_half,
    store_codes,
    store_halves,
    weigh,
)
from q4run.kernels.formats.reading import block_bytes
from q4run.kernels.formats.writing import highest, nearest_code, pack_codes
from q4run.kernels.simd.compare import where_greater
from q4run.kernels.simd.memory import load_f32x8, store
from q4run.kernels.simd.ops import add, divide, fma, mul, splat, sub
from q4run.kernels.simd.vector import f32x8

GROUP = 32


def quantize_symmetric(
    fmt: Format, values: np.ndarray, weights: np.ndarray | None, search: ScaleSearch
) -> np.ndarray:
    """Blocks of an f16 scale and 32 codes: float32 (n, 32) -> uint8 (n, type_size).

    weights: as ``column_weights`` gives them.
    """
    raw = np.empty((len(values), fmt.type_size), np.uint8)
    _symmetric(fmt, values.reshape(-1), in_lanes(weights), search, raw.reshape(-1))
    return raw


@kernel()
def _symmetric(fmt, values, weights, search, raw):
    x, weighted = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    words, codes, halves = np.empty(64, np.int32), np.empty(TILE, np.uint8), np.empty(8, np.uint16)
    for first in range(0, len(values), TILE):
        at = first % len(weights)
        load_tile(values, first, x)
        weigh(x, weights, at, weighted)
        one_shot = one_shot_scale(fmt, x, 0, GROUP)
        scale, _ = best_scale(fmt, x, weights, at, weighted, 0, GROUP, one_shot, search)
        scale = best_half(fmt, x, weights, at, 0, GROUP, one_shot, scale)
        store_halves(scale, halves, 0)
        inverse_scale = inverse(scale)
        for j in range(8):
            store(words, 8 * j, symmetric_codes(fmt, x, 32 * j, inverse_scale))
        store_codes(words, codes)
        for block in range(min(8, (len(values) - first) // GROUP)):
            place = (first // GROUP + block) * block_bytes(fmt)
            put_half(halves[block], raw, place)
            pack_codes(fmt, codes, GROUP * block, raw, place)


def quantize_affine(
    fmt: Format, values: np.ndarray, weights: np.ndarray | None, search: AffineSearch
) -> np.ndarray:
    """Blocks of an f16 scale, an f16 minimum and 32 codes: float32 (n, 32) -> uint8 (n, type_size).

    weights: as ``column_weights`` gives them.
    """
    raw = np.empty((len(values), fmt.type_size), np.uint8)
    _affine(fmt, values.reshape(-1), in_lanes(weights), search, raw.reshape(-1))
    return raw


@kernel()
def _affine(fmt, values, weights, search, raw):
    x, weighted = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    words, codes, halves = np.empty(64, np.int32), np.empty(TILE, np.uint8), np.empty(16, np.uint16)
    for first in range(0, len(values), TILE):
        at = first % len(weights)
        load_tile(values, first, x)
        middle, reach = centre(x, 0, GROUP, np.inf)
        weigh(x, weights, at, weighted)
        total = totals(weights, at, weighted, 0, GROUP)
        scale, lowest = best_affine(
            fmt,
            x,
            weights,
            at,
            weighted,
            0,
            GROUP,
            reach,
            splat(f32x8, np.inf),
            total,
            search,
        )
        scale, lowest = _best_halves(fmt, x, weights, at, weighted, reach, middle, scale, lowest)
        store_halves(scale, halves, 0)
        store_halves(add(lowest, middle), halves, 8)
        i, o = codes_from(scale, lowest)
        for j in range(8):
            store(words, 8 * j, affine_codes(fmt, x, 32 * j, i, o))
        store_codes(words, codes)
        for block in range(min(8, (len(values) - first) // GROUP)):
            place = (first // GROUP + block) * block_bytes(fmt)
            put_half(halves[block], raw, place)
            put_half(halves[8 + block], raw, place + 2)
            pack_codes(fmt, codes, GROUP * block, raw, place)


@inline
def _best_halves(fmt, x, weights, at, weighted, reach, middle, scale, lowest):
    """The best of four pairs of scale and minimum that f16 holds, relative to the middle.

    Zeros; the range of the values; what was found; and the best scale for its rounded minimum.
    """
    s0, m0 = splat(f32x8, 0.0), negative(middle)
    s1 = as_half(mul(reach, splat(f32x8, np.float32(2 / highest(fmt)))))
    m1 = sub(as_half(sub(middle, reach)), middle)
    s2, m2 = as_half(scale), sub(as_half(add(lowest, middle)), middle)
    s3 = _refitted(fmt, x, weights, at, weighted, s2, m2)
    e0, e1 = errors_of_two(fmt, x, weights, at, 0, GROUP, s0, s1, m0, m1)
    e2, e3 = errors_of_two(fmt, x, weights, at, 0, GROUP, s2, s3, m2, m2)
    least, best, best_lowest = e0, s0, m0
    for s, m, e in ((s1, m1, e1), (s2, m2, e2), (s3, m2, e3)):
        best = where_greater(least, e, s, best)
        best_lowest = where_greater(least, e, m, best_lowest)
        least = where_greater(least, e, e, least)
    return best, best_lowest


@inline
def _refitted(fmt, x, weights, at, weighted, scale, lowest):
    """The best scale, as f16, for that minimum and the codes that belong to the two."""
    i, o = codes_from(scale, lowest)
    sums, _, _ = sums_of_three(fmt, x, weights, at, weighted, 0, GROUP, i, i, i, o, o, o)
    codes, squares, products = sums
    return as_half(divide(sub(products, mul(lowest, codes)), squares))


@inline
def affine_codes(fmt, x, at, i, o):
    """The codes of four vectors of a tile, nearest to ``i x + o``."""
    return four_codes(
        nearest_code(fmt, fma(load_f32x8(x, at), i, o)),
        nearest_code(fmt, fma(load_f32x8(x, at + 8), i, o)),
        nearest_code(fmt, fma(load_f32x8(x, at + 16), i, o)),
        nearest_code(fmt, fma(load_f32x8(x, at + 24), i, o)),
    )


@inline
def symmetric_codes(fmt, x, at, inverse_scale):
    """The codes of four vectors of a tile."""
    return four_codes(
        nearest_code(fmt, mul(load_f32x8(x, at), inverse_scale)),
        nearest_code(fmt, mul(load_f32x8(x, at + 8), inverse_scale)),
        nearest_code(fmt, mul(load_f32x8(x, at + 16), inverse_scale)),
        nearest_code(fmt, mul(load_f32x8(x, at + 24), inverse_scale)),
    )
