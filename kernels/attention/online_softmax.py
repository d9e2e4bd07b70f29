"""A softmax taken online, block by block of scores (Milakov & Gimelshein, arXiv:1805.02867).

A row of sums is float32: the channels of the weighted values, then ``STATE`` floats with the
reference score and the total weight. Scores are logarithms to base 2: a weight is
2 ** (score - reference). The reference follows the largest score, but only once that is more than
``_HEADROOM`` above it: small steps, which need no fitting, are the usual case.
"""

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from q4run.kernels.attention.tiles import after
from q4run.kernels.compiling.compile import inline
from q4run.kernels.simd import emit
from q4run.kernels.simd.memory import load_f32x8, store
from q4run.kernels.simd.ops import (
    add,
    fma,
    lane,
    maximum,
    mul,
    reduce_add,
    reduce_max,
    splat,
    sub,
)
from q4run.kernels.simd.tails import store_some
from q4run.kernels.simd.vector import f32x8

STATE = 8
_REFERENCE, _TOTAL = 0, 1
_HEADROOM = 8.0
# Polynomial for 2**r, |r| <= 0.5: least relative error, 2e-9, with 1 at 0 (Lawson's algorithm).
_C1, _C2, _C3 = 0.69314718, 0.24022648, 0.05550332
_C4, _C5, _C6 = 0.0096184369, 0.0013398875, 0.00015353362
_ROUNDING = 1.5 * 2.0**23  # added to a small number it leaves the nearest integer in the low bits


@inline
def clear(sums, dim):
    """Sums over nothing."""
    c = 0
    while c < dim + STATE:
        store(sums, c, splat(f32x8, 0.0))
        c = after(c, 8)
    sums[dim + _REFERENCE] = -np.inf


@inline
def weigh(scores, n_keys, sums, dim):
    """Makes weights of one query's ``n_keys`` scores, and fits what it has summed to them.

    Eight floats behind the scores are overwritten.
    """
    # The last vector is filled up with a score that changes no maximum.
    store(scores, n_keys, splat(f32x8, scores[0]))
    highest = load_f32x8(scores, 0)
    i = 8
    while i < n_keys:
        highest = maximum(highest, load_f32x8(scores, i))
        i = after(i, 8)
    largest = reduce_max(highest)
    if largest > sums[dim + _REFERENCE] + _HEADROOM:
        correction = exp2(splat(f32x8, sums[dim + _REFERENCE] - largest))
        _scale(sums, dim, correction)
        sums[dim + _TOTAL] *= lane(correction, 0)
        sums[dim + _REFERENCE] = largest
    reference = splat(f32x8, sums[dim + _REFERENCE])
    i = 0
    while i < n_keys:
        store(scores, i, exp2(sub(load_f32x8(scores, i), reference)))
        i = after(i, 8)
    store(scores, n_keys, splat(f32x8, 0.0))
    total = load_f32x8(scores, 0)
    i = 8
    while i < n_keys:
        total = add(total, load_f32x8(scores, i))
        i = after(i, 8)
    sums[dim + _TOTAL] += reduce_add(total)


@inline
def _scale(sums, dim, factor):
    c = 0
    while c < dim:
        store(sums, c, mul(load_f32x8(sums, c), factor))
        c = after(c, 8)


@inline
def merge(sums, more, dim):
    """Adds one query's sums over more keys to those over the keys before them."""
    reference = max(sums[dim + _REFERENCE], more[dim + _REFERENCE])
    old = exp2(splat(f32x8, sums[dim + _REFERENCE] - reference))
    new = exp2(splat(f32x8, more[dim + _REFERENCE] - reference))
    total = fma(splat(f32x8, sums[dim + _TOTAL]), old, mul(splat(f32x8, more[dim + _TOTAL]), new))
    c = 0
    while c < dim:
        store(sums, c, fma(load_f32x8(sums, c), old, mul(load_f32x8(more, c), new)))
        c = after(c, 8)
    sums[dim + _TOTAL] = lane(total, 0)
    sums[dim + _REFERENCE] = reference


@inline
def add_weight(sums, score, dim):
    """Adds the weight of a score that has no value."""
    sums[dim + _TOTAL] += np.exp2(score - sums[dim + _REFERENCE])


@inline
def save_quotients(sums, dim, out, target, n):
    """Writes what is summed, divided by the total weight: ``n`` channels to ``out[target]`` on."""
    inverse = splat(f32x8, 1 / sums[dim + _TOTAL])
    for c in range(0, n, 8):
        store_some(out, target + c, mul(load_f32x8(sums, c), inverse), n - c)


@inline
def exp2(x):
    """2**x lane by lane for x <= 8: within 1 ulp down to -125, and no less below; NaN stays NaN."""
    x = _at_least(x, -125.0)
    shifted = add(x, splat(f32x8, _ROUNDING))
    r = sub(x, sub(shifted, splat(f32x8, _ROUNDING)))
    p = fma(splat(f32x8, _C6), r, splat(f32x8, _C5))
    p = fma(p, r, splat(f32x8, _C4))
    p = fma(p, r, splat(f32x8, _C3))
    p = fma(p, r, splat(f32x8, _C2))
    p = fma(p, r, splat(f32x8, _C1))
    p = fma(p, r, splat(f32x8, 1.0))
    # Adding to exponents could make a number of what is none.
    return fma(x, splat(f32x8, 0.0), _times_power(p, shifted))


@intrinsic
def _at_least(typing_context, x, bound):
    """Lane-wise larger value of f32x8 and a number; NaN stays NaN."""

    def codegen(context, builder, signature, args):
        scalar = context.cast(builder, args[1], signature.args[1], types.float32)
        limit = emit.splat(builder, scalar, 8)
        return builder.select(builder.fcmp_ordered("<", args[0], limit), limit, args[0])

    return f32x8(f32x8, bound), codegen


@intrinsic
def _times_power(typing_context, p, shifted):
    """p * 2**n, where ``shifted`` is n + _ROUNDING; without overflow or underflow."""

    def codegen(context, builder, signature, args):
        words = emit.vector(emit.I32, 8)
        p, n = (builder.bitcast(arg, words) for arg in args)
        exponents = builder.shl(n, ir.Constant(words, [23] * 8))
        return builder.bitcast(builder.add(p, exponents), emit.vector(emit.F32, 8))

    return f32x8(f32x8, f32x8), codegen
