"""Matrix products of quantised weights: out = x @ weights.T for one token or many.

The sum for an output is always taken in the same order, whatever the number of tokens, rows or
threads: a token's result is the same bits alone and in a batch.
"""

import numpy as np
from numba import prange

from q4run.kernels.activations import Int8Activations, quantize_activations
from q4run.kernels.compile import inline, threaded
from q4run.kernels.formats.base import Format, block_bytes, dot_block, load_value, load_values
from q4run.kernels.simd.memory import load_f32x8, prefetch
from q4run.kernels.simd.ops import fma, reduce_add, splat
from q4run.kernels.simd.vector import f32x8

# Rows that one thread takes at a time: few enough to balance, enough to reuse activations.
_TASK_ROWS = 16
_PREFETCH_ROWS = 8
_CACHE_LINE = 64


def matmul(
    fmt: Format,
    weights: np.ndarray,
    x: np.ndarray,
    quantized: Int8Activations | None = None,
    out: np.ndarray | None = None,
) -> np.ndarray:
    """x (n_tokens, n_cols) float32 @ weights.T -> float32 (n_tokens, n_rows).

    weights: uint8 (n_rows, fmt.row_bytes(n_cols)), C-contiguous. ``quantized`` are the activations
    in int8, where the caller has them already; formats that multiply in float32 ignore them.
    """
    if out is None:
        out = np.empty((len(x), len(weights)), np.float32)
    if fmt.int8_activations:
        q, scales, sums = quantized or quantize_activations(x)
        _matmul_int8(fmt, weights, q, scales, sums, out)
    else:
        _matmul_float(fmt, weights, x, out)
    return out


@inline
def _dot_rows_int8(fmt, weights, rows, q, scales, sums, token, out):
    """Four rows times one token: four independent sums keep the multipliers busy."""
    row_bytes = weights.shape[1]
    last = weights.shape[0] - 1
    # Past the last row the same row is computed again: the border needs no code of its own.
    r0, r1, r2, r3 = rows, min(rows + 1, last), min(rows + 2, last), min(rows + 3, last)
    a0 = a1 = a2 = a3 = splat(f32x8, 0.0)
    for block in range(row_bytes // block_bytes(fmt)):
        at = block * block_bytes(fmt)
        # Four rows at once defeat the hardware's prefetcher: by hand it is twice as fast.
        ahead = (rows + _PREFETCH_ROWS) * row_bytes + 4 * at
        for line in range(0, 4 * block_bytes(fmt), _CACHE_LINE):
            prefetch(weights, ahead + line)
        a0 = dot_block(fmt, weights, r0 * row_bytes + at, q, scales, sums, token, block, a0)
        a1 = dot_block(fmt, weights, r1 * row_bytes + at, q, scales, sums, token, block, a1)
        a2 = dot_block(fmt, weights, r2 * row_bytes + at, q, scales, sums, token, block, a2)
        a3 = dot_block(fmt, weights, r3 * row_bytes + at, q, scales, sums, token, block, a3)
    out[token, r0] = reduce_add(a0)
    out[token, r1] = reduce_add(a1)
    out[token, r2] = reduce_add(a2)
    out[token, r3] = reduce_add(a3)


@inline
def _dot_tile_int8(fmt, weights, rows, q, scales, sums, tokens, out):
    """Two rows times four tokens: a weight block is unpacked once for the four."""
    row_bytes = weights.shape[1]
    last_token = q.shape[0] - 1
    r0, r1 = rows, min(rows + 1, weights.shape[0] - 1)
    t0, t1 = tokens, min(tokens + 1, last_token)
    t2, t3 = min(tokens + 2, last_token), min(tokens + 3, last_token)
    a00 = a01 = a02 = a03 = a10 = a11 = a12 = a13 = splat(f32x8, 0.0)
    for block in range(row_bytes // block_bytes(fmt)):
        w0 = r0 * row_bytes + block * block_bytes(fmt)
        w1 = r1 * row_bytes + block * block_bytes(fmt)
        a00 = dot_block(fmt, weights, w0, q, scales, sums, t0, block, a00)
        a01 = dot_block(fmt, weights, w0, q, scales, sums, t1, block, a01)
        a02 = dot_block(fmt, weights, w0, q, scales, sums, t2, block, a02)
        a03 = dot_block(fmt, weights, w0, q, scales, sums, t3, block, a03)
        a10 = dot_block(fmt, weights, w1, q, scales, sums, t0, block, a10)
        a11 = dot_block(fmt, weights, w1, q, scales, sums, t1, block, a11)
        a12 = dot_block(fmt, weights, w1, q, scales, sums, t2, block, a12)
        a13 = dot_block(fmt, weights, w1, q, scales, sums, t3, block, a13)
    out[t0, r0], out[t1, r0] = reduce_add(a00), reduce_add(a01)
    out[t2, r0], out[t3, r0] = reduce_add(a02), reduce_add(a03)
    out[t0, r1], out[t1, r1] = reduce_add(a10), reduce_add(a11)
    out[t2, r1], out[t3, r1] = reduce_add(a12), reduce_add(a13)


@threaded(lambda _, weights, q, *__: q.size * len(weights))
def _matmul_int8(fmt, weights, q, scales, sums, out):
    n_rows, n_tokens = weights.shape[0], q.shape[0]
    for task in prange((n_rows + _TASK_ROWS - 1) // _TASK_ROWS):
        first = task * _TASK_ROWS
        end = min(first + _TASK_ROWS, n_rows)
        if n_tokens == 1:
            for rows in range(first, end, 4):
                _dot_rows_int8(fmt, weights, rows, q, scales, sums, 0, out)
        else:
            for tokens in range(0, n_tokens, 4):
                for rows in range(first, end, 2):
                    _dot_tile_int8(fmt, weights, rows, q, scales, sums, tokens, out)


@inline
def _dot_float(fmt, weights, row, x, token):
    row_bytes = weights.shape[1]
    n_cols = x.shape[1]
    whole = n_cols // 8 * 8
    a = splat(f32x8, 0.0)
    for col in range(0, whole, 8):
        w = load_values(fmt, weights, row * row_bytes + col * block_bytes(fmt))
        a = fma(w, load_f32x8(x, token * n_cols + col), a)
    total = reduce_add(a)
    for col in range(whole, n_cols):
        total += load_value(fmt, weights, row * row_bytes + col * block_bytes(fmt)) * x[token, col]
    return total


@inline
def _dot_tile_float(fmt, weights, row, x, tokens, out):
    """One row times four tokens."""
    last = x.shape[0] - 1
    t0, t1 = tokens, min(tokens + 1, last)
    t2, t3 = min(tokens + 2, last), min(tokens + 3, last)
    row_bytes = weights.shape[1]
    n_cols = x.shape[1]
    whole = n_cols // 8 * 8
    a0 = a1 = a2 = a3 = splat(f32x8, 0.0)
    for col in range(0, whole, 8):
        w = load_values(fmt, weights, row * row_bytes + col * block_bytes(fmt))
        a0 = fma(w, load_f32x8(x, t0 * n_cols + col), a0)
        a1 = fma(w, load_f32x8(x, t1 * n_cols + col), a1)
        a2 = fma(w, load_f32x8(x, t2 * n_cols + col), a2)
        a3 = fma(w, load_f32x8(x, t3 * n_cols + col), a3)
    s0, s1, s2, s3 = reduce_add(a0), reduce_add(a1), reduce_add(a2), reduce_add(a3)
    for col in range(whole, n_cols):
        w = load_value(fmt, weights, row * row_bytes + col * block_bytes(fmt))
        s0 += w * x[t0, col]
        s1 += w * x[t1, col]
        s2 += w * x[t2, col]
        s3 += w * x[t3, col]
    out[t0, row], out[t1, row], out[t2, row], out[t3, row] = s0, s1, s2, s3


@threaded(lambda _, weights, x, __: x.size * len(weights))
def _matmul_float(fmt, weights, x, out):
    n_rows, n_tokens = weights.shape[0], x.shape[0]
    for task in prange((n_rows + _TASK_ROWS - 1) // _TASK_ROWS):
        first = task * _TASK_ROWS
        end = min(first + _TASK_ROWS, n_rows)
        for tokens in range(0, n_tokens, 4):
            for row in range(first, end):
                if n_tokens == 1:
                    out[0, row] = _dot_float(fmt, weights, row, x, 0)
                else:
                    _dot_tile_float(fmt, weights, row, x, tokens, out)
