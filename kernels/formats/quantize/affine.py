"""Scale and minimum of a group: value = scale * code + minimum, codes from 0 on.

Both ends of the codes' range are tried at several places around the smallest and the largest value;
each decides the codes, and these the best scale and minimum, by least squares. Then the places
around the best ends are tried. Values are taken relative to the middle of their group's range, so
that float32 sums hold groups far from zero as well.
"""

from typing import NamedTuple

import numpy as np

from q4run.kernels.compiling.compile import inline
from q4run.kernels.formats.quantize.tiles import inverse
from q4run.kernels.formats.writing import highest, nearest_level
from q4run.kernels.simd.compare import where_greater
from q4run.kernels.simd.memory import load_f32x8, store
from q4run.kernels.simd.ops import add, divide, fma, maximum, minimum, mul, splat, sub
from q4run.kernels.simd.vector import f32x8


class AffineSearch(NamedTuple):
    """Where the range of the codes is tried to end, in steps, as float32.

    low, high: within the range of the values, all pairs of them; nearby: within the best of these
    ranges, at both ends. ``low`` has any number, ``high`` three places, ``nearby`` three or none.
    """

    low: np.ndarray
    high: np.ndarray
    nearby: np.ndarray


def floats(*numbers: float) -> np.ndarray:
    return np.array(numbers, np.float32)


AFFINE_SEARCH = AffineSearch(
    floats(-0.2, 0.4, 1), floats(-0.2, 0.4, 1), nearby=floats(0, 0.8, -0.8)
)
# Half as many ranges: 1 to 3 % more squared error.
QUICK_AFFINE_SEARCH = AFFINE_SEARCH._replace(nearby=floats())


@inline
def negative(a):
    return sub(splat(f32x8, 0.0), a)


@inline
def centre(x, first, n, from_zero):
    """Makes a tile's groups relative to the middle of their range; the middle, and half the range.

    from_zero: 0 where minima may not be above zero, so that zero belongs to every range; else inf.
    """
    low = high = load_f32x8(x, 8 * first)
    for j in range(first + 1, first + n):
        value = load_f32x8(x, 8 * j)
        low, high = minimum(low, value), maximum(high, value)
    low = minimum(low, splat(f32x8, from_zero))
    half = splat(f32x8, 0.5)
    middle = fma(low, half, mul(high, half))
    for j in range(8 * first, 8 * (first + n), 8):
        store(x, j, sub(load_f32x8(x, j), middle))
    return middle, mul(sub(high, low), half)


@inline
def totals(weights, at, weighted, first, n):
    """sum(w) and sum(w x) of each lane's group."""
    weight = product = splat(f32x8, 0.0)
    for j in range(8 * first, 8 * (first + n), 8):
        weight = add(weight, load_f32x8(weights, at + j))
        product = add(product, load_f32x8(weighted, j))
    return weight, product


@inline
def sums_of_three(fmt, x, weights, at, weighted, first, n, i0, i1, i2, o0, o1, o2):
    """sum(w c), sum(w c c) and sum(w x c), three of each, of the codes nearest to ``i x + o``."""
    c0 = c1 = c2 = s0 = s1 = s2 = p0 = p1 = p2 = splat(f32x8, 0.0)
    for j in range(8 * first, 8 * (first + n), 8):
        value, weight = load_f32x8(x, j), load_f32x8(weights, at + j)
        both = load_f32x8(weighted, j)
        code0 = nearest_level(fmt, fma(value, i0, o0))
        code1 = nearest_level(fmt, fma(value, i1, o1))
        code2 = nearest_level(fmt, fma(value, i2, o2))
        w0, w1, w2 = mul(weight, code0), mul(weight, code1), mul(weight, code2)
        c0, c1, c2 = add(c0, w0), add(c1, w1), add(c2, w2)
        s0, s1, s2 = fma(w0, code0, s0), fma(w1, code1, s1), fma(w2, code2, s2)
        p0, p1, p2 = fma(both, code0, p0), fma(both, code1, p1), fma(both, code2, p2)
    return (c0, s0, p0), (c1, s1, p1), (c2, s2, p2)


@inline
def change(scale, lowest, total, sums):
    """By how much a scale and a minimum with codes of these sums change the error of all zeros.

    s s sum(w c c) + 2 s m sum(w c) + m m sum(w) - 2 s sum(w x c) - 2 m sum(w x).
    """
    codes, squares, products = sums
    two = splat(f32x8, 2.0)
    own = mul(scale, sub(fma(scale, squares, mul(mul(two, lowest), codes)), mul(two, products)))
    return fma(lowest, sub(mul(lowest, total[0]), mul(two, total[1])), own)


@inline
def _fit(total, sums, most):
    """The best scale and minimum for codes of these sums, the minimum not above ``most``."""
    codes, squares, products = sums
    weight, product = total
    determinant = sub(mul(weight, squares), mul(codes, codes))
    scale = divide(sub(mul(weight, products), mul(product, codes)), determinant)
    lowest = divide(sub(product, mul(scale, codes)), weight)
    bounded = divide(sub(products, mul(most, codes)), squares)
    # Codes that are all alike leave the minimum open.
    open_ = mul(splat(f32x8, np.float32(1e-6)), mul(weight, squares))
    lowest = where_greater(determinant, open_, lowest, splat(f32x8, np.inf))
    return where_greater(lowest, most, bounded, scale), minimum(lowest, most)


@inline
def _better(total, sums, most, best):
    scale, lowest = _fit(total, sums, most)
    own = change(scale, lowest, total, sums)
    least, best_scale, best_lowest = best
    return (
        where_greater(least, own, own, least),
        where_greater(least, own, scale, best_scale),
        where_greater(least, own, lowest, best_lowest),
    )


@inline
def codes_from(scale, lowest):
    """What makes codes of values: ``i x + o``, as i and o; zeros for a scale of 0."""
    i = inverse(scale)
    return i, negative(mul(lowest, i))


@inline
def _between(fmt, scale, lowest, above, below):
    """``codes_from`` for a range that ends ``above`` and ``below`` steps within that of a scale."""
    steps = np.float32(highest(fmt))
    inner = mul(scale, splat(f32x8, (steps - above - below) / steps))
    return codes_from(inner, fma(scale, splat(f32x8, above), lowest))


@inline
def best_affine(fmt, x, weights, at, weighted, first, n, reach, most, total, search):
    """The best scale and minimum found for each lane's group, not rounded.

    reach: half of each group's range, whose middle is zero; most: no minimum may be above it;
    search: an ``AffineSearch``.
    """
    least = best_scale = splat(f32x8, 0.0)
    best_lowest = minimum(splat(f32x8, 0.0), most)
    least = change(best_scale, best_lowest, total, (least, least, least))
    best = least, best_scale, best_lowest
    for tried in range(2):
        low, high = search.nearby, search.nearby
        if tried == 0:
            low, high = search.low, search.high
        scale = mul(reach, splat(f32x8, np.float32(2 / highest(fmt))))
        lowest = negative(reach)
        if tried > 0:
            _, scale, lowest = best
        for k in range(len(low)):
            i0, o0 = _between(fmt, scale, lowest, low[k], high[0])
            i1, o1 = _between(fmt, scale, lowest, low[k], high[1])
            i2, o2 = _between(fmt, scale, lowest, low[k], high[2])
            sums = sums_of_three(fmt, x, weights, at, weighted, first, n, i0, i1, i2, o0, o1, o2)
            best = _better(total, sums[0], most, best)
            best = _better(total, sums[1], most, best)
            best = _better(total, sums[2], most, best)
    _, scale, lowest = best
    return scale, lowest
