"""256 values whose groups' scales and minima are small integers times two f16: Q4_K, Q5_K and Q2_K.

Value = factor * integer * code - minimum factor * integer. First each group's best scale and
minimum on their own. Then the two f16: of several the ones whose multiples come closest, deviations
weighted with what they cost. Then the integers around each group's scale are tried, each with the
best minimum for it and with the codes that belong to the two as they are stored; and once more with
the two f16 that are best for these integers and codes.
"""

import numpy as np

from q4run.kernels.compiling.compile import inline, kernel
from q4run.kernels.formats.base import Format
from q4run.kernels.formats.quantize.affine import (
    AffineSearch,
    best_affine,
    centre,
    change,
    codes_from,
    negative,
    sums_of_three,
    totals,
)
from q4run.kernels.formats.quantize.blocks import affine_codes
from q4run.kernels.formats.quantize.column_weights import TILE, in_lanes
from q4run.kernels.formats.quantize.shared_scale import nearest_half
from q4run.kernels.formats.quantize.tiles import (
    inverse,
    load_tile,
    store_codes,
    store_halves,
)
from q4run.kernels.formats.reading import block_bytes
from q4run.kernels.formats.writing import group_size, pack_codes, pack_scales, whole_between
from q4run.kernels.simd.compare import where_greater
from q4run.kernels.simd.memory import load_f32x8, store
from q4run.kernels.simd.ops import add, divide, fma, lane, mul, reduce_add, splat, sub
from q4run.kernels.simd.vector import f32x8

# Per group: the middle of its range; sum(w), sum(w x); its scale and how far its minimum lies below
# zero; what a deviation of the scale costs; both integers; sum(w c), sum(w c c) and sum(w x c).
_MIDDLE, _WEIGHT, _PRODUCT, _SCALE, _DEPTH, _COST = 0, 16, 32, 48, 64, 80
_INTEGER, _BELOW, _CODES, _SQUARES, _PRODUCTS, _ROWS = 96, 112, 128, 144, 160, 176


def quantize_shared_minimum(
    fmt: Format,
    values: np.ndarray,
    weights: np.ndarray | None,
    search: AffineSearch,
    highest_integer: int,
) -> np.ndarray:
    """float32 (n, 256) -> uint8 (n, type_size).

    weights: as ``column_weights`` gives them. The groups' integers are 0 to ``highest_integer``.
    """
    # What the group with the largest scale, or minimum, may get: the f16 follows from it.
    largest = np.linspace(highest_integer, highest_integer / 2, 32).astype(np.float32)
    raw = np.empty((len(values), fmt.type_size), np.uint8)
    _quantize(
        fmt,
        values.reshape(-1),
        in_lanes(weights),
        search,
        1 / largest,
        np.float32(highest_integer),
        raw.reshape(-1),
    )
    return raw


@kernel()
def _quantize(fmt, values, weights, search, shared, highest_integer, raw):
    x, weighted = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    groups, last = np.empty(_ROWS, np.float32), np.empty(_ROWS, np.float32)
    words, codes = np.empty(64, np.int32), np.empty(TILE, np.uint8)
    halves, halves_below = np.empty(8, np.uint16), np.empty(8, np.uint16)
    integers, below = np.empty(16, np.int32), np.empty(16, np.int32)
    n = group_size(fmt)
    n_groups = 256 // n
    for first in range(0, len(values), TILE):
        at = first % len(weights)
        load_tile(values, first, x)
        _search_groups(fmt, x, weights, at, weighted, groups, search, n)
        factor = _best_factor(groups, n_groups, _SCALE, _COST, shared, highest_integer)
        _deepen(groups, n_groups, factor, highest_integer)
        low = _best_factor(groups, n_groups, _DEPTH, _WEIGHT, shared, highest_integer)
        error = _choose_integers(
            fmt, x, weights, at, weighted, groups, n, factor, low, highest_integer
        )
        for _ in range(2):
            next_factor, next_low = _refitted(groups, n_groups, factor, low)
            last[:] = groups
            new = _choose_integers(
                fmt, x, weights, at, weighted, groups, n, next_factor, next_low, highest_integer
            )
            if not new < error:
                groups[:] = last
                break
            factor, low, error = next_factor, next_low, new
        store_halves(splat(f32x8, factor), halves, 0)
        store_halves(splat(f32x8, low), halves_below, 0)
        halves[1] = halves_below[0]
        for part in range(n_groups // 8):
            i, o = _stored_codes(groups, part, factor, low)
            for j in range(n * part, n * part + n, 4):
                store(words, 2 * j, affine_codes(fmt, x, 8 * j, i, o))
            for group in range(8):
                place = group * (n_groups // 8) + part
                integers[place] = np.int32(groups[_INTEGER + 8 * part + group])
                below[place] = np.int32(groups[_BELOW + 8 * part + group])
        store_codes(words, codes)
        place = first // TILE * block_bytes(fmt)
        pack_scales(fmt, halves, integers, below, raw, place)
        pack_codes(fmt, codes, 0, raw, place)


@inline
def _search_groups(fmt, x, weights, at, weighted, groups, search, n):
    """Each group's middle, totals, best scale and minimum, and what a deviation costs."""
    for part in range(32 // n):
        middle, reach = centre(x, n * part, n, np.float32(0))
        for j in range(8 * n * part, 8 * n * (part + 1), 8):
            store(weighted, j, mul(load_f32x8(x, j), load_f32x8(weights, at + j)))
        total = totals(weights, at, weighted, n * part, n)
        most = negative(middle)
        scale, lowest = best_affine(
            fmt,
            x,
            weights,
            at,
            weighted,
            n * part,
            n,
            reach,
            most,
            total,
            search,
        )
        i, o = codes_from(scale, lowest)
        sums, _, _ = sums_of_three(fmt, x, weights, at, weighted, n * part, n, i, i, i, o, o, o)
        codes, squares, products = sums
        weight, product = total
        store(groups, _MIDDLE + 8 * part, middle)
        store(groups, _WEIGHT + 8 * part, weight)
        store(groups, _PRODUCT + 8 * part, product)
        store(groups, _SCALE + 8 * part, scale)
        store(groups, _DEPTH + 8 * part, sub(most, lowest))
        # With the minimum that is best for each scale.
        store(groups, _COST + 8 * part, sub(squares, divide(mul(codes, codes), weight)))
        store(groups, _CODES + 8 * part, codes)
        store(groups, _SQUARES + 8 * part, squares)
        store(groups, _PRODUCTS + 8 * part, products)


@inline
def _best_factor(groups, n_groups, wanted, cost, shared, highest_integer):
    """The f16, as float32, that brings the groups' ``wanted`` closest to integers; 0 for zeros."""
    largest = np.float32(0)
    for group in range(n_groups):
        largest = max(largest, groups[wanted + group])
    if largest == 0:
        return largest
    least, best = np.float32(np.inf), np.float32(0)
    for k in range(0, len(shared), 8):
        factor = nearest_half(mul(splat(f32x8, largest), load_f32x8(shared, k)))
        inverse_factor = inverse(factor)
        costs = splat(f32x8, 0.0)
        for group in range(n_groups):
            scale = splat(f32x8, groups[wanted + group])
            own = whole_between(mul(scale, inverse_factor), np.float32(0), highest_integer)
            off = fma(own, factor, negative(scale))
            costs = fma(mul(splat(f32x8, groups[cost + group]), off), off, costs)
        for i in range(8):
            if lane(costs, i) < least:
                least, best = lane(costs, i), lane(factor, i)
    return best


@inline
def _deepen(groups, n_groups, factor, highest_integer):
    """The best depth of each group for its scale as the factor lets it be."""
    shared_scale = splat(f32x8, factor)
    for part in range(n_groups // 8):
        scale = load_f32x8(groups, _SCALE + 8 * part)
        own = whole_between(mul(scale, inverse(shared_scale)), np.float32(0), highest_integer)
        depth = _depth(groups, part, mul(own, shared_scale), load_f32x8(groups, _CODES + 8 * part))
        store(groups, _DEPTH + 8 * part, depth)


@inline
def _depth(groups, part, scale, codes):
    """How far below zero the best minimum for a scale lies, given sum(w c); at least 0."""
    product, weight = (
        load_f32x8(groups, _PRODUCT + 8 * part),
        load_f32x8(groups, _WEIGHT + 8 * part),
    )
    depth = sub(
        divide(sub(mul(scale, codes), product), weight), load_f32x8(groups, _MIDDLE + 8 * part)
    )
    zero = splat(f32x8, 0.0)
    return where_greater(depth, zero, depth, zero)


@inline
def _stored_codes(groups, part, factor, low):
    """``codes_from`` for the integers that were chosen."""
    scale = mul(splat(f32x8, factor), load_f32x8(groups, _INTEGER + 8 * part))
    depth = mul(splat(f32x8, low), load_f32x8(groups, _BELOW + 8 * part))
    return codes_from(scale, negative(add(depth, load_f32x8(groups, _MIDDLE + 8 * part))))


@inline
def _choose_integers(fmt, x, weights, at, weighted, groups, n, factor, low, highest_integer):
    """Fills in each group's best integers and its codes' sums; the error less that of all zeros."""
    shared_scale, shared_depth = splat(f32x8, factor), splat(f32x8, low)
    inverse_scale, inverse_depth = inverse(shared_scale), inverse(shared_depth)
    zero, one = np.float32(0), splat(f32x8, 1.0)
    error = splat(f32x8, 0.0)
    for part in range(32 // n):
        middle = load_f32x8(groups, _MIDDLE + 8 * part)
        total = load_f32x8(groups, _WEIGHT + 8 * part), load_f32x8(groups, _PRODUCT + 8 * part)
        codes = load_f32x8(groups, _CODES + 8 * part)
        near = whole_between(
            mul(load_f32x8(groups, _SCALE + 8 * part), inverse_scale), zero, highest_integer
        )
        k0, k2 = sub(near, one), add(near, one)
        k0 = whole_between(k0, zero, highest_integer)
        k2 = whole_between(k2, zero, highest_integer)
        s0, s1, s2 = mul(shared_scale, k0), mul(shared_scale, near), mul(shared_scale, k2)
        b0 = whole_between(
            mul(_depth(groups, part, s0, codes), inverse_depth), zero, highest_integer
        )
        b1 = whole_between(
            mul(_depth(groups, part, s1, codes), inverse_depth), zero, highest_integer
        )
        b2 = whole_between(
            mul(_depth(groups, part, s2, codes), inverse_depth), zero, highest_integer
        )
        m0 = negative(fma(shared_depth, b0, middle))
        m1 = negative(fma(shared_depth, b1, middle))
        m2 = negative(fma(shared_depth, b2, middle))
        i0, o0 = codes_from(s0, m0)
        i1, o1 = codes_from(s1, m1)
        i2, o2 = codes_from(s2, m2)
        sums = sums_of_three(fmt, x, weights, at, weighted, n * part, n, i0, i1, i2, o0, o1, o2)
        best, best_below, best_sums = near, b1, sums[1]
        least = change(s1, m1, total, sums[1])
        for k, b, s, m, own_sums in ((k0, b0, s0, m0, sums[0]), (k2, b2, s2, m2, sums[2])):
            own = change(s, m, total, own_sums)
            best = where_greater(least, own, k, best)
            best_below = where_greater(least, own, b, best_below)
            best_sums = (
                where_greater(least, own, own_sums[0], best_sums[0]),
                where_greater(least, own, own_sums[1], best_sums[1]),
                where_greater(least, own, own_sums[2], best_sums[2]),
            )
            least = where_greater(least, own, own, least)
        store(groups, _INTEGER + 8 * part, best)
        store(groups, _BELOW + 8 * part, best_below)
        store(groups, _SCALE + 8 * part, mul(best, shared_scale))
        store(groups, _CODES + 8 * part, best_sums[0])
        store(groups, _SQUARES + 8 * part, best_sums[1])
        store(groups, _PRODUCTS + 8 * part, best_sums[2])
        error = add(error, least)
    return reduce_add(error)


@inline
def _refitted(groups, n_groups, factor, low):
    """The best two factors for the integers and codes that were chosen, rounded to f16.

    Least squares: with minima -low * below - middle the normal equations are 2 by 2.
    """
    aa = ab = bb = ay = by = np.float64(0)
    for group in range(n_groups):
        own, under = groups[_INTEGER + group], -groups[_BELOW + group]
        middle, weight = groups[_MIDDLE + group], groups[_WEIGHT + group]
        aa += own * own * groups[_SQUARES + group]
        ab += own * under * groups[_CODES + group]
        bb += under * under * weight
        ay += own * (groups[_PRODUCTS + group] + middle * groups[_CODES + group])
        by += under * (groups[_PRODUCT + group] + middle * weight)
    determinant = aa * bb - ab * ab
    if determinant > 1e-6 * aa * bb:
        factor = np.float32((ay * bb - by * ab) / determinant)
        low = np.float32((by * aa - ay * ab) / determinant)
    elif aa > 0:
        factor = np.float32((ay - ab * low) / aa)
    return _half_above_zero(factor), _half_above_zero(low)


@inline
def _half_above_zero(factor):
    if not factor > 0:
        return np.float32(0)
    return lane(nearest_half(splat(f32x8, factor)), 0)
