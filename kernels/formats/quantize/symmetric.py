"""The scale of a group without a minimum: value = scale * level.

A scale decides the codes (the nearest levels), and codes the best scale: sum(w x c) / sum(w c c),
which lowers the squared error from that of all zeros by sum(w x c)^2 / sum(w c c). The error as a
function of the scale has many local minima. So a range of scales of both signs around the one that
just reaches the extreme value is tried, then the neighbourhood of the best.
"""

from typing import NamedTuple

import numpy as np

from q4run.kernels.compiling.compile import inline
from q4run.kernels.formats.quantize.tiles import as_half, inverse
from q4run.kernels.formats.writing import highest, lowest, nearest_level
from q4run.kernels.simd.compare import where_greater
from q4run.kernels.simd.memory import load_f32x8
from q4run.kernels.simd.ops import (
    absolute,
    add,
    divide,
    fma,
    maximum,
    minimum,
    mul,
    reduce_max,
    splat,
    sub,
)
from q4run.kernels.simd.vector import f32x8

_SMALLEST_NORMAL_HALF = np.float32(2.0**-14)
# The distance between subnormal f16.
_SMALLEST_HALF = np.float32(2.0**-24)


class ScaleSearch(NamedTuple):
    """Which scales are tried, as float32 arrays of multiples of the inverse of another scale.

    factors: of the scale that makes the extreme value the lowest level. nearby: of the best of
    these. Each a multiple of four.
    """

    factors: np.ndarray
    nearby: np.ndarray


def scale_search(
    scales: tuple[float, float, int], flipped: tuple[float, float, int], step: float
) -> ScaleSearch:
    """Scales evenly spaced between two multiples of the extreme one, and of its negative.

    Around the best, three more: steps up to the inverse of the scale.
    """
    factors = np.concatenate([1 / np.linspace(*scales), -1 / np.linspace(*flipped)])
    nearby = 1 + step * np.array([0, -1, 1, 2])
    return ScaleSearch(factors.astype(np.float32), nearby.astype(np.float32))


@inline
def largest_magnitude(x, first, n):
    """Of each lane's group."""
    largest = absolute(load_f32x8(x, 8 * first))
    for j in range(first + 1, first + n):
        largest = maximum(largest, absolute(load_f32x8(x, 8 * j)))
    return largest


@inline
def one_shot_scale(fmt, x, first, n):
    """The scale that makes each group's value of largest magnitude the format's lowest level.

    Or the highest, so that the scale is positive, where the two are one but for the sign.
    """
    low = high = load_f32x8(x, 8 * first)
    for j in range(first + 1, first + n):
        value = load_f32x8(x, 8 * j)
        low, high = minimum(low, value), maximum(high, value)
    below = sub(splat(f32x8, 0.0), low)
    scale = mul(where_greater(high, below, high, low), splat(f32x8, np.float32(1 / lowest(fmt))))
    return absolute(scale) if lowest(fmt) == -highest(fmt) else scale


@inline
def sums_of(fmt, x, weights, at, weighted, first, n, inverse_scale):
    """sum(w x c) and sum(w c c) of the levels nearest to ``x * inverse_scale``, lane by lane."""
    products = squares = splat(f32x8, 0.0)
    for j in range(8 * first, 8 * (first + n), 8):
        level = nearest_level(fmt, mul(load_f32x8(x, j), inverse_scale))
        products = fma(load_f32x8(weighted, j), level, products)
        squares = fma(mul(load_f32x8(weights, at + j), level), level, squares)
    return products, squares


@inline
def sums_of_four(fmt, x, weights, at, weighted, first, n, i0, i1, i2, i3):
    """``sums_of`` for four inverse scales at once: the products, then the squares."""
    p0 = p1 = p2 = p3 = q0 = q1 = q2 = q3 = splat(f32x8, 0.0)
    for j in range(8 * first, 8 * (first + n), 8):
        value, weight = load_f32x8(x, j), load_f32x8(weights, at + j)
        both = load_f32x8(weighted, j)
        c0, c1 = nearest_level(fmt, mul(value, i0)), nearest_level(fmt, mul(value, i1))
        c2, c3 = nearest_level(fmt, mul(value, i2)), nearest_level(fmt, mul(value, i3))
        p0, p1 = fma(both, c0, p0), fma(both, c1, p1)
        p2, p3 = fma(both, c2, p2), fma(both, c3, p3)
        q0, q1 = fma(mul(weight, c0), c0, q0), fma(mul(weight, c1), c1, q1)
        q2, q3 = fma(mul(weight, c2), c2, q2), fma(mul(weight, c3), c3, q3)
    return p0, p1, p2, p3, q0, q1, q2, q3


@inline
def _better(products, squares, fall, scale, curvature):
    """The best so far (by how much the error falls, the scale, sum(w c c)), or these codes'."""
    own = divide(products, squares)
    own_fall = mul(own, products)
    return (
        where_greater(own_fall, fall, own_fall, fall),
        where_greater(own_fall, fall, own, scale),
        where_greater(own_fall, fall, squares, curvature),
    )


@inline
def best_scale(fmt, x, weights, at, weighted, first, n, one_shot, search):
    """The best scale found for each lane's group, not rounded, and sum(w c c) of its codes.

    The group is vectors ``first`` to ``first + n`` of the tile; search: a ``ScaleSearch``. 0 for a
    group of zeros.
    """
    fall = scale = curvature = splat(f32x8, 0.0)
    inverse_scale = inverse(one_shot)
    factors, nearby = search
    for k in range(0, len(factors) + len(nearby), 4):
        if k == len(factors):
            inverse_scale = inverse(scale)
        tried, i = (factors, k) if k < len(factors) else (nearby, k - len(factors))
        p0, p1, p2, p3, q0, q1, q2, q3 = sums_of_four(
            fmt,
            x,
            weights,
            at,
            weighted,
            first,
            n,
            mul(inverse_scale, splat(f32x8, tried[i])),
            mul(inverse_scale, splat(f32x8, tried[i + 1])),
            mul(inverse_scale, splat(f32x8, tried[i + 2])),
            mul(inverse_scale, splat(f32x8, tried[i + 3])),
        )
        fall, scale, curvature = _better(p0, q0, fall, scale, curvature)
        fall, scale, curvature = _better(p1, q1, fall, scale, curvature)
        fall, scale, curvature = _better(p2, q2, fall, scale, curvature)
        fall, scale, curvature = _better(p3, q3, fall, scale, curvature)
    return scale, curvature


@inline
def change(scale, products, squares):
    """By how much ``scale`` with codes of these sums raises the error from that of all zeros."""
    return mul(scale, sub(mul(scale, squares), mul(splat(f32x8, 2.0), products)))


@inline
def errors_of_two(fmt, x, weights, at, first, n, s0, s1, m0, m1):
    """sum(w (x - s c - m)^2) with the nearest levels c, for two scales and minima."""
    i0, i1 = inverse(s0), inverse(s1)
    e0 = e1 = splat(f32x8, 0.0)
    for j in range(8 * first, 8 * (first + n), 8):
        value, weight = load_f32x8(x, j), load_f32x8(weights, at + j)
        above0, above1 = sub(value, m0), sub(value, m1)
        off0 = sub(above0, mul(s0, nearest_level(fmt, mul(above0, i0))))
        off1 = sub(above1, mul(s1, nearest_level(fmt, mul(above1, i1))))
        e0, e1 = fma(mul(weight, off0), off0, e0), fma(mul(weight, off1), off1, e1)
    return e0, e1


@inline
def best_half(fmt, x, weights, at, first, n, one_shot, scale):
    """Of f16 scales around ``scale`` and of ``one_shot``, for each lane the one with least error.

    The codes are the nearest for the rounded scale. 0 where nothing is better than zeros.
    """
    zero, step = splat(f32x8, 0.0), splat(f32x8, _SMALLEST_HALF)
    s0, s1 = as_half(scale), as_half(one_shot)
    # Other numbers only among the subnormal ones, where the rounding is coarse.
    s2, s3 = as_half(sub(s0, step)), as_half(add(s0, step))
    s4, best = sub(zero, s1), zero
    e0, e1 = errors_of_two(fmt, x, weights, at, first, n, s0, s1, zero, zero)
    e4, least = errors_of_two(fmt, x, weights, at, first, n, s4, zero, zero, zero)
    e2 = e3 = e0
    if reduce_max(sub(zero, absolute(s0))) > -_SMALLEST_NORMAL_HALF:
        e2, e3 = errors_of_two(fmt, x, weights, at, first, n, s2, s3, zero, zero)
    for s, e in ((s0, e0), (s1, e1), (s2, e2), (s3, e3), (s4, e4)):
        best = where_greater(least, e, s, best)
        least = where_greater(least, e, e, least)
    return best
