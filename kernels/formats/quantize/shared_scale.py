"""256 values whose groups' scales are small integers times one f16: Q3_K, Q6_K and IQ4_XS.

First each group's best scale on its own. Then the f16: of several the one whose multiples come
closest to these scales, deviations weighted with what they cost. Then the integers around each
group's scale are tried, with the codes that belong to the product as it is stored; and once more
with the f16 that is best for these integers and codes.
"""

import numpy as np

from q4run.kernels.compiling.compile import inline, kernel
from q4run.kernels.formats.base import Format
from q4run.kernels.formats.quantize.blocks import symmetric_codes
from q4run.kernels.formats.quantize.column_weights import TILE, in_lanes
from q4run.kernels.formats.quantize.symmetric import (
    ScaleSearch,
    best_scale,
    change,
    one_shot_scale,
    sums_of_four,
)
from q4run.kernels.formats.quantize.tiles import (
    as_half,
    inverse,
    load_tile,
    store_codes,
    store_halves,
    weigh,
)
from q4run.kernels.formats.reading import block_bytes
from q4run.kernels.formats.writing import group_size, pack_codes, pack_scales, whole_between
from q4run.kernels.simd.compare import clamp, where_greater
from q4run.kernels.simd.memory import load_f32x8, store
from q4run.kernels.simd.ops import absolute, add, fma, lane, mul, reduce_add, splat, sub
from q4run.kernels.simd.vector import f32x8

_SMALLEST_HALF = np.float32(2.0**-24)
# Per group: its scale; what a deviation from it costs; its integer; sum(w x c); sum(w c c).
_SCALE, _COST, _INTEGER, _PRODUCTS, _SQUARES, _ROWS = 0, 16, 32, 48, 64, 80


def largest_integers(lowest_integer: int) -> np.ndarray:
    """What the group with the largest scale may get as its integer, not only whole ones.

    The f16 follows from it. float32, a multiple of eight, the format's lowest integer first; the
    f16 has the sign of the scale or the other, for the integers reach one further below zero.
    """
    below = np.linspace(lowest_integer, 0.78 * lowest_integer, 16)
    above = np.linspace(-lowest_integer - 1, -0.78 * lowest_integer, 8)
    return np.concatenate([below, above]).astype(np.float32)


def quantize_shared_scale(
    fmt: Format,
    values: np.ndarray,
    weights: np.ndarray | None,
    search: ScaleSearch,
    largest: np.ndarray,
) -> np.ndarray:
    """float32 (n, 256) -> uint8 (n, type_size).

    weights: as ``column_weights`` gives them. largest: as ``largest_integers`` gives them; the
    groups' integers are ``largest[0]``, which is negative, to ``-largest[0] - 1``.
    """
    raw = np.empty((len(values), fmt.type_size), np.uint8)
    _quantize(
        fmt,
        values.reshape(-1),
        in_lanes(weights),
        search,
        1 / largest,
        largest[0],
        raw.reshape(-1),
    )
    return raw


@kernel()
def _quantize(fmt, values, weights, search, shared, lowest_integer, raw):
    x, weighted = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    groups, last = np.empty(_ROWS, np.float32), np.empty(_ROWS, np.float32)
    words, codes, halves = np.empty(64, np.int32), np.empty(TILE, np.uint8), np.empty(8, np.uint16)
    integers = np.empty(16, np.int32)
    n = group_size(fmt)
    n_groups = 256 // n
    for first in range(0, len(values), TILE):
        at = first % len(weights)
        load_tile(values, first, x)
        weigh(x, weights, at, weighted)
        for part in range(n_groups // 8):
            one_shot = one_shot_scale(fmt, x, n * part, n)
            scale, cost = best_scale(fmt, x, weights, at, weighted, n * part, n, one_shot, search)
            store(groups, _SCALE + 8 * part, scale)
            store(groups, _COST + 8 * part, cost)
        factor = _best_factor(groups, n_groups, shared, lowest_integer)
        error = _choose_integers(fmt, x, weights, at, weighted, groups, n, factor, lowest_integer)
        for _ in range(2):
            again = _refitted(groups, n_groups)
            last[:] = groups
            new = _choose_integers(fmt, x, weights, at, weighted, groups, n, again, lowest_integer)
            if not new < error:
                groups[:] = last
                break
            factor, error = again, new
        shared_scale = splat(f32x8, factor)
        store_halves(shared_scale, halves, 0)
        for part in range(n_groups // 8):
            own = load_f32x8(groups, _INTEGER + 8 * part)
            inverse_scale = inverse(mul(shared_scale, own))
            for j in range(n * part, n * part + n, 4):
                store(words, 2 * j, symmetric_codes(fmt, x, 8 * j, inverse_scale))
            for group in range(8):
                place = group * (n_groups // 8) + part
                integers[place] = np.int32(groups[_INTEGER + 8 * part + group])
        store_codes(words, codes)
        place = first // TILE * block_bytes(fmt)
        pack_scales(fmt, halves, integers, integers, raw, place)
        pack_codes(fmt, codes, 0, raw, place)


@inline
def nearest_half(a):
    """f32x8 rounded to f16, but never to zero."""
    half = as_half(a)
    zero, smallest = splat(f32x8, 0.0), splat(f32x8, _SMALLEST_HALF)
    signed = where_greater(zero, a, sub(zero, smallest), smallest)
    return where_greater(absolute(half), zero, half, signed)


@inline
def _best_factor(groups, n_groups, shared, lowest_integer):
    """The f16, as float32, that brings all groups' scales closest to integers; 0 without scales."""
    largest = np.float32(0)
    for group in range(n_groups):
        if abs(groups[_SCALE + group]) > abs(largest):
            largest = groups[_SCALE + group]
    if largest == 0:
        return largest
    least, best = np.float32(np.inf), np.float32(0)
    for k in range(0, len(shared), 8):
        factor = nearest_half(mul(splat(f32x8, largest), load_f32x8(shared, k)))
        inverse_factor = inverse(factor)
        costs = splat(f32x8, 0.0)
        for group in range(n_groups):
            scale = splat(f32x8, groups[_SCALE + group])
            own = whole_between(mul(scale, inverse_factor), lowest_integer, -lowest_integer - 1)
            off = fma(own, factor, sub(splat(f32x8, 0.0), scale))
            costs = fma(mul(splat(f32x8, groups[_COST + group]), off), off, costs)
        for i in range(8):
            if lane(costs, i) < least:
                least, best = lane(costs, i), lane(factor, i)
    return best


@inline
def _choose_integers(fmt, x, weights, at, weighted, groups, n, factor, lowest_integer):
    """Fills in each group's best integer and its codes' sums; the error less that of all zeros."""
    shared_scale = splat(f32x8, factor)
    error = splat(f32x8, 0.0)
    for part in range(32 // n):
        scale = load_f32x8(groups, _SCALE + 8 * part)
        near = whole_between(
            mul(scale, inverse(shared_scale)), lowest_integer + 1, -lowest_integer - 2
        )
        least = best = best_p = best_q = splat(f32x8, 0.0)
        k0, k1, k2 = sub(near, splat(f32x8, 1.0)), near, add(near, splat(f32x8, 1.0))
        k3 = _next_integer(near, lowest_integer)
        s0, s1 = mul(shared_scale, k0), mul(shared_scale, k1)
        s2, s3 = mul(shared_scale, k2), mul(shared_scale, k3)
        p0, p1, p2, p3, q0, q1, q2, q3 = sums_of_four(
            fmt,
            x,
            weights,
            at,
            weighted,
            n * part,
            n,
            inverse(s0),
            inverse(s1),
            inverse(s2),
            inverse(s3),
        )
        for k, s, p, q in ((k1, s1, p1, q1), (k0, s0, p0, q0), (k2, s2, p2, q2), (k3, s3, p3, q3)):
            own = change(s, p, q)
            best = where_greater(least, own, k, best)
            best_p = where_greater(least, own, p, best_p)
            best_q = where_greater(least, own, q, best_q)
            least = where_greater(least, own, own, least)
        store(groups, _INTEGER + 8 * part, best)
        store(groups, _PRODUCTS + 8 * part, best_p)
        store(groups, _SQUARES + 8 * part, best_q)
        error = add(error, least)
    return reduce_add(error)


@inline
def _next_integer(near, lowest_integer):
    """Two further from zero than ``near``, where there is such an integer."""
    zero, two = splat(f32x8, 0.0), splat(f32x8, 2.0)
    away = where_greater(zero, near, sub(near, two), add(near, two))
    return clamp(away, splat(f32x8, lowest_integer), splat(f32x8, -lowest_integer - 1))


@inline
def _refitted(groups, n_groups):
    """The best factor for the integers and codes that were chosen, rounded to f16."""
    products = squares = np.float32(0)
    for group in range(n_groups):
        own = groups[_INTEGER + group]
        products += own * groups[_PRODUCTS + group]
        squares += own * own * groups[_SQUARES + group]
    if squares == 0:
        return np.float32(0)
    return lane(nearest_half(splat(f32x8, products / squares)), 0)
