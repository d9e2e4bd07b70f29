"""Ternary blocks, -1, 0 and 1 times one f16 scale, for TQ1_0 and TQ2_0: the codes of least error,
and a scale that keeps the gain.

For a scale s the best code of a value is its sign where its magnitude is above s / 2, else 0; for
the values kept, the best scale is their weighted mean magnitude. So an optimum is a threshold t
with t = mean / 2 of the magnitudes above it. That mean never falls as t rises: from below all
thresholds, t <- mean / 2 climbs to the lowest such t, and from above all it falls to the highest.
As soon as few values lie between the two, each of these is tried. So the optimum is exact
(Li et al., Ternary Weight Networks, arXiv:1605.04711, without their approximation).

That scale would shrink every output, for the error it leaves is orthogonal to the codes: by a fifth
for Gaussian values, in one matrix after another. So the codes get the scale for which the stored
values have the same product with the values as these with themselves; docs/experiments.md says what
that gives. A block that holds only -a, 0 and a is coded without loss when a is an f16, whatever
the weights.
"""

import numpy as np

from q4run.kernels.compiling.compile import inline, kernel
from q4run.kernels.formats.base import Format
from q4run.kernels.formats.quantize.column_weights import TILE, in_order
from q4run.kernels.formats.quantize.tiles import as_half, put_half, store_halves
from q4run.kernels.formats.reading import block_bytes
from q4run.kernels.formats.writing import pack_codes
from q4run.kernels.simd.compare import where_greater
from q4run.kernels.simd.memory import load_f32x8, store
from q4run.kernels.simd.ops import absolute, add, maximum, mul, reduce_add, reduce_max, splat
from q4run.kernels.simd.vector import f32x8

BLOCK = 256
# Thresholds are brought nearer this many times before it is counted what is left between them, and
# if it is few they are tried one by one.
_ROUNDS, _FEW = 4, 24
# Least squares loses at most half: a block of many small values beside few large ones is not to be
# blown up.
MOST_GAIN = 2.0
_LARGEST_HALF = np.float32(65504)


def quantize_ternary(
    fmt: Format, values: np.ndarray, weights: np.ndarray | None, scale_at: int
) -> np.ndarray:
    """float32 (n, 256) -> uint8 (n, type_size), the f16 scale at byte ``scale_at`` of each.

    weights: as ``column_weights`` gives them.
    """
    raw = np.empty((len(values), fmt.type_size), np.uint8)
    _ternarize(fmt, values.reshape(-1), in_order(weights), scale_at, raw.reshape(-1))
    return raw


@kernel()
def _ternarize(fmt, values, weights, scale_at, raw):
    magnitudes, weighted = np.empty(TILE, np.float32), np.empty(TILE, np.float32)
    codes, halves = np.empty(TILE, np.uint8), np.empty(8, np.uint16)
    joining = np.empty(TILE + 1, np.int64)
    for first in range(0, len(values), BLOCK):
        at = first % len(weights)
        largest = splat(f32x8, 0.0)
        for i in range(0, BLOCK, 8):
            magnitude = absolute(load_f32x8(values, first + i))
            largest = maximum(largest, magnitude)
            store(magnitudes, i, magnitude)
            store(weighted, i, mul(magnitude, load_f32x8(weights, at + i)))
        best = _best_scale(magnitudes, weights, at, weighted, reduce_max(largest), joining)
        threshold = best / np.float32(2)
        gain = _gain(magnitudes, weights, at, weighted, threshold)
        scale = as_half(splat(f32x8, min(best * gain, _LARGEST_HALF)))
        store_halves(scale, halves, 0)
        for i in range(BLOCK):
            value = values[first + i]
            codes[i] = np.uint8(1) + np.uint8(value > threshold) - np.uint8(-value > threshold)
        place = first // BLOCK * block_bytes(fmt)
        put_half(halves[0], raw, place + scale_at)
        pack_codes(fmt, codes, 0, raw, place)


@inline
def _kept(magnitudes, weights, at, weighted, low, high):
    """sum(w |x|) and sum(w) of the magnitudes above each of two thresholds."""
    low, high, none = splat(f32x8, low), splat(f32x8, high), splat(f32x8, 0.0)
    p0 = p1 = q0 = q1 = w0 = w1 = v0 = v1 = none
    for i in range(0, BLOCK, 16):
        m0, m1 = load_f32x8(magnitudes, i), load_f32x8(magnitudes, i + 8)
        x0, x1 = load_f32x8(weighted, i), load_f32x8(weighted, i + 8)
        y0, y1 = load_f32x8(weights, at + i), load_f32x8(weights, at + i + 8)
        p0, p1 = (
            add(p0, where_greater(m0, low, x0, none)),
            add(p1, where_greater(m1, low, x1, none)),
        )
        w0, w1 = (
            add(w0, where_greater(m0, low, y0, none)),
            add(w1, where_greater(m1, low, y1, none)),
        )
        q0, q1 = (
            add(q0, where_greater(m0, high, x0, none)),
            add(q1, where_greater(m1, high, x1, none)),
        )
        v0, v1 = (
            add(v0, where_greater(m0, high, y0, none)),
            add(v1, where_greater(m1, high, y1, none)),
        )
    above_low = reduce_add(add(p0, p1)), reduce_add(add(w0, w1))
    return above_low, (reduce_add(add(q0, q1)), reduce_add(add(v0, v1)))


@inline
def _best_scale(magnitudes, weights, at, weighted, largest, joining):
    half = np.float32(0.5)
    if not 0 < largest < np.inf:
        return np.float32(0)
    low, high = np.float32(0), half * largest
    above_low, above_high = _kept(magnitudes, weights, at, weighted, low, high)
    n = 0
    for i in range(1, BLOCK):
        next_low = half * above_low[0] / above_low[1]
        next_high = half * above_high[0] / above_high[1]
        low_sums, high_sums = _kept(magnitudes, weights, at, weighted, next_low, next_high)
        # Where rounding takes the last value away, the threshold before was at rest.
        at_rest = not (low_sums[1] > 0 and high_sums[1] > 0)
        if not at_rest:
            at_rest = low_sums == above_low and high_sums == above_high
            low, high, above_low, above_high = next_low, next_high, low_sums, high_sums
        if above_low == above_high:
            return above_low[0] / above_low[1]
        if at_rest or i % _ROUNDS == 0:
            n = _find_between(magnitudes, low, high, joining)
            if at_rest or n <= _FEW:
                break
    return _best_between(magnitudes, weights, at, weighted, above_high, joining, n)


@inline
def _gain(magnitudes, weights, at, weighted, threshold):
    """What the best scale is to be multiplied with, so that the kept values' sum(w |x| scale) is
    sum(w x^2) of all; 1 where nothing is kept."""
    square = product = weight = np.float64(0)
    for i in range(BLOCK):
        square += np.float64(weighted[i]) * magnitudes[i]
        if magnitudes[i] > threshold:
            product += weighted[i]
            weight += weights[at + i]
    if not product > 0:
        return np.float32(1)
    return np.float32(min(square * weight / (product * product), MOST_GAIN))


@inline
def _find_between(magnitudes, low, high, joining):
    """Fills in the indices of the magnitudes above ``low``, but not above ``high``; how many."""
    n = 0
    for i in range(BLOCK):
        joining[n] = i
        n += (magnitudes[i] > low) & (magnitudes[i] <= high)
    return n


@inline
def _best_between(magnitudes, weights, at, weighted, above_high, joining, n):
    """The best scale when certain values are kept, and any of the ``n`` that may join them.

    above_high: the sums of those that are kept. Of the others the largest join first, one by one.
    """
    for i in range(1, n):
        own, place = joining[i], i
        while place > 0 and magnitudes[joining[place - 1]] < magnitudes[own]:
            joining[place] = joining[place - 1]
            place -= 1
        joining[place] = own
    product, weight = np.float64(above_high[0]), np.float64(above_high[1])
    fall, scale = product * product / weight, product / weight
    for k in range(n):
        i = joining[k]
        product, weight = product + weighted[i], weight + weights[at + i]
        if product * product > fall * weight:
            fall, scale = product * product / weight, product / weight
    return np.float32(scale)
