"""What happens to activations between the matrix products."""

import numpy as np
from numba import prange

from q4run.kernels.compile import inline, kernel, threaded
from q4run.kernels.simd.math import silu
from q4run.kernels.simd.memory import load_f32x8, store
from q4run.kernels.simd.ops import add, fma, mul, splat
from q4run.kernels.simd.vector import f32x8

_SILU_OPERATIONS = 16  # of one value, its exponential included


def silu_mul(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """silu(gate) * up, written over ``gate``; float32 (n_tokens, n_ff), C-contiguous."""
    _silu_mul(gate, up)
    return gate


@inline
def _silu_mul_token(token, gate, up):
    n = gate.shape[1]
    for i in range(0, n // 8 * 8, 8):
        at = token * n + i
        store(gate, at, mul(silu(load_f32x8(gate, at)), load_f32x8(up, at)))
    for i in range(n // 8 * 8, n):
        value = gate[token, i]
        gate[token, i] = value / (np.float32(1) + np.exp(-value)) * up[token, i]


@threaded(lambda gate, _: _SILU_OPERATIONS * gate.size)
def _silu_mul(gate, up):
    for token in prange(len(gate)):
        _silu_mul_token(token, gate, up)


@kernel()
def add_into(x, y):
    """x += y; float32 (n_tokens, n), C-contiguous."""
    flat_x, flat_y = x.ravel(), y.ravel()
    whole = flat_x.size // 8 * 8
    for i in range(0, whole, 8):
        store(flat_x, i, add(load_f32x8(flat_x, i), load_f32x8(flat_y, i)))
    for i in range(whole, flat_x.size):
        flat_x[i] += flat_y[i]


@kernel()
def gather_scaled(x, tokens, weights, out):
    """out[i] = x[tokens[i]] * weights[i].

    x: float32 (n_tokens, n); tokens: int64 (m,); weights: float32 (m,); out: float32 (m, n).
    """
    n = x.shape[1]
    for row in range(len(tokens)):
        scale = splat(f32x8, weights[row])
        for i in range(0, n // 8 * 8, 8):
            store(out, row * n + i, mul(load_f32x8(x, tokens[row] * n + i), scale))
        for i in range(n // 8 * 8, n):
            out[row, i] = x[tokens[row], i] * weights[row]


@kernel()
def add_scaled_rows(x, rows, weights):
    """x[t] += sum over k of weights[t, k] * rows[t, k], in the order of k.

    x: float32 (n_tokens, n); rows: float32 (n_tokens, k, n); weights: float32 (n_tokens, k).
    """
    n_tokens, n = x.shape
    n_used = rows.shape[1]
    for token in range(n_tokens):
        for k in range(n_used):
            weight = weights[token, k]
            first = (token * n_used + k) * n
            for i in range(0, n // 8 * 8, 8):
                at = token * n + i
                product = load_f32x8(rows, first + i)
                store(x, at, fma(product, splat(f32x8, weight), load_f32x8(x, at)))
            for i in range(n // 8 * 8, n):
                x[token, i] += weight * rows[token, k, i]


@kernel()
def scale_tokens(x, factors):
    """x[t] *= factors[t] in place; x: float32 (n_tokens, ...) seen as 2-D, factors: float32."""
    for token in range(x.shape[0]):
        for i in range(x.shape[1]):
            x[token, i] *= factors[token]
