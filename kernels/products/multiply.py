"""Products of a quantised matrix with activations: one compiled function a format, by address.

``multiply`` computes some strips (eight rows each) of ``out = x @ weights.T``. The sum for an
output is always taken in the same order, whatever the number of tokens, rows or threads: a token's
result is the same bits alone and in a batch. Lanes are rows, so that no sum is ever folded.
"""

from functools import cache

from numba import types

from q4run.kernels.compiling.compile import c_function, inline
from q4run.kernels.formats.base import Format
from q4run.kernels.formats.dots import dot_eight, dot_four
from q4run.kernels.formats.reading import (
    add_products,
    block_at_once,
    block_bytes,
    block_size,
    block_sums,
    codes,
    half_groups,
    minimum,
    scale,
    values,
    zero_code,
)
from q4run.kernels.products.panels import multiply_panel_float, multiply_panel_int8
from q4run.kernels.products.strips import ROWS
from q4run.kernels.simd.memory import prefetch, prefetch_once
from q4run.kernels.simd.ops import fma, splat, sub
from q4run.kernels.simd.tails import store_some
from q4run.kernels.simd.vector import f32x8, i32x8

# (weights, n_rows, n_cols, n_tokens, x, q, scales, sums, first strip, end, out)
MULTIPLY = types.void(
    types.CPointer(types.uint8),
    types.int64,
    types.int64,
    types.int64,
    types.CPointer(types.float32),
    types.CPointer(types.int8),
    types.CPointer(types.float32),
    types.CPointer(types.int32),
    types.int64,
    types.int64,
    types.CPointer(types.float32),
)
# How far ahead. Bytes that are read once pass by the second cache, which stays Python's and the
# activations'. A K-quant's block is large, and its groups share bytes: further ahead, and kept. The
# four streams of floats gain less.
_PREFETCH_ONCE_BYTES = 4096
_PREFETCH_BYTES = 8192
_FLOAT_PREFETCH_BYTES = 1024
_CACHE_LINE = 64


@cache
def multiply_address(fmt: Format) -> int:
    """The address of the format's ``multiply``; compiled, or loaded from disk, when first asked.

    x: float32 (n_tokens, n_cols); q, scales, sums: the same as ``Int8Activations``, which integer
    formats read instead; weights: the interleaved matrix; out: float32 (n_tokens, n_rows).
    """
    return (_int8_function(fmt) if fmt.int8_activations else _float_function(fmt)).address


def _int8_function(fmt):
    @c_function(MULTIPLY)
    def multiply(weights, n_rows, n_cols, n_tokens, x, q, scales, sums, first, end, out):
        if n_tokens == 1:
            for strip in range(first, end):
                total = _strip_int8(fmt, weights, strip, n_cols, q, scales, sums)
                store_some(out, ROWS * strip, total, n_rows - ROWS * strip)
        else:
            for strip in range(first, end, 2):
                multiply_panel_int8(
                    fmt, weights, strip, end, n_rows, n_cols, n_tokens, q, scales, sums, out
                )

    return multiply


@inline
def _strip_int8(fmt, weights, strip, n_cols, q, scales, sums):
    """Eight rows times one token."""
    n_blocks = n_cols // block_size(fmt)
    total = splat(f32x8, 0.0)
    at = strip * n_blocks * ROWS * block_bytes(fmt)
    group = 0
    for _ in range(n_blocks):
        if block_at_once(fmt):
            total = _add_block(fmt, weights, at, q, scales, sums, group, total)
        else:
            for i in range(block_size(fmt) // 32):
                total = _add_group(fmt, weights, at, i, q, scales, sums, group + i, total)
        group += block_size(fmt) // 32
        at += ROWS * block_bytes(fmt)
    return total


@inline
def _add_block(fmt, weights, at, q, scales, sums, group, total):
    """``total`` plus a block whose groups are unpacked together."""
    for line in range(0, ROWS * block_bytes(fmt), _CACHE_LINE):
        prefetch_once(weights, at + _PREFETCH_ONCE_BYTES + line)
    s0, s1, s2, s3, s4, s5, s6, s7 = block_sums(fmt, weights, at, q, 32 * group)
    factor = scale(fmt, weights, at, 0, 0)
    total = _add_sums(fmt, s0, factor, scales, sums, group, total)
    total = _add_sums(fmt, s1, factor, scales, sums, group + 1, total)
    total = _add_sums(fmt, s2, factor, scales, sums, group + 2, total)
    total = _add_sums(fmt, s3, factor, scales, sums, group + 3, total)
    total = _add_sums(fmt, s4, factor, scales, sums, group + 4, total)
    total = _add_sums(fmt, s5, factor, scales, sums, group + 5, total)
    total = _add_sums(fmt, s6, factor, scales, sums, group + 6, total)
    return _add_sums(fmt, s7, factor, scales, sums, group + 7, total)


@inline
def _add_sums(fmt, products, factor, scales, sums, group, total):
    products = sub(products, splat(i32x8, zero_code(fmt) * sums[2 * group]))
    return add_products(fmt, total, products, factor, factor, scales[group], 0)


@inline
def _add_group(fmt, weights, at, i, q, scales, sums, group, total):
    """``total`` plus 32 columns: group ``i`` of the block at ``at``, group ``group`` of the row."""
    n_bytes = ROWS * block_bytes(fmt) * 32 // block_size(fmt)
    for line in range(0, n_bytes, _CACHE_LINE):
        if block_size(fmt) == 32:
            prefetch_once(weights, at + _PREFETCH_ONCE_BYTES + line)
        else:  # a block's groups share cache lines
            prefetch(weights, at + _PREFETCH_BYTES + n_bytes * i + line)
    x_scale = scales[group]
    c0, c1, c2, c3, c4, c5, c6, c7 = codes(fmt, weights, at, i)
    x = 32 * group
    x_sum = sums[2 * group]
    x_sums = (x_sum - sums[2 * group + 1], sums[2 * group + 1]) if half_groups(fmt) else (x_sum, 0)
    start = splat(i32x8, -zero_code(fmt) * x_sums[0])
    if half_groups(fmt):
        low = dot_four(fmt, start, c0, c1, c2, c3, q, x)
        start = splat(i32x8, -zero_code(fmt) * x_sums[1])
        high = dot_four(fmt, start, c4, c5, c6, c7, q, x + 16)
        total = _add_part(fmt, weights, at, i, 0, low, x_scale, x_sums[0], total)
        return _add_part(fmt, weights, at, i, 1, high, x_scale, x_sums[1], total)
    products = dot_eight(fmt, start, c0, c1, c2, c3, c4, c5, c6, c7, q, x)
    return _add_part(fmt, weights, at, i, 0, products, x_scale, x_sum, total)


@inline
def _add_part(fmt, weights, at, i, half, products, x_scale, x_sum, total):
    factor, lowest = scale(fmt, weights, at, i, half), minimum(fmt, weights, at, i, half)
    return add_products(fmt, total, products, factor, lowest, x_scale, x_sum)


def _float_function(fmt):
    @c_function(MULTIPLY)
    def multiply(weights, n_rows, n_cols, n_tokens, x, q, scales, sums, first, end, out):
        if n_tokens == 1:
            for strip in range(first, end, 4):
                _strips_float(fmt, weights, strip, end, n_rows, n_cols, x, out)
        else:
            for strip in range(first, end, 2):
                multiply_panel_float(fmt, weights, strip, end, n_rows, n_cols, n_tokens, x, out)

    return multiply


@inline
def _strips_float(fmt, weights, strip, end, n_rows, n_cols, x, out):
    """Four strips times one token: four sums at a time keep the multipliers busy."""
    step = ROWS * block_bytes(fmt)
    # Past the last strip the same one is computed again: the border needs no code of its own.
    s0, s1, s2, s3 = (
        strip,
        min(strip + 1, end - 1),
        min(strip + 2, end - 1),
        min(strip + 3, end - 1),
    )
    a0 = a1 = a2 = a3 = splat(f32x8, 0.0)
    for col in range(n_cols):
        factor = splat(f32x8, x[col])
        at = step * col
        if at % _CACHE_LINE == 0:
            for s in (s0, s1, s2, s3):
                prefetch(weights, s * n_cols * step + at + _FLOAT_PREFETCH_BYTES)
        a0 = fma(values(fmt, weights, s0 * n_cols * step + at), factor, a0)
        a1 = fma(values(fmt, weights, s1 * n_cols * step + at), factor, a1)
        a2 = fma(values(fmt, weights, s2 * n_cols * step + at), factor, a2)
        a3 = fma(values(fmt, weights, s3 * n_cols * step + at), factor, a3)
    for s, total in ((s0, a0), (s1, a1), (s2, a2), (s3, a3)):
        store_some(out, ROWS * s, total, n_rows - ROWS * s)
