"""Root-mean-square normalisation (Zhang & Sennrich, arXiv:1910.07467)."""

import numpy as np

from q4run.kernels.compiling.compile import inline, kernel
from q4run.kernels.simd.memory import load_f32x8, store
from q4run.kernels.simd.ops import fma, mul, reduce_add, splat
from q4run.kernels.simd.vector import f32x8


@inline
def _inverse_rms(x, first, n, eps):
    total = splat(f32x8, 0.0)
    whole = n // 8 * 8
    for i in range(first, first + whole, 8):
        values = load_f32x8(x, i)
        total = fma(values, values, total)
    mean = reduce_add(total)
    flat = x.ravel()
    for i in range(first + whole, first + n):
        mean += flat[i] * flat[i]
    return np.float32(1) / np.sqrt(mean / np.float32(n) + eps)


@kernel()
def rms_norm(x, weight, eps, out):
    """out = x / rms(x) * weight, row by row.

    x, out: float32 (n_tokens, n), C-contiguous; weight: float32 (n,); eps: float32.
    """
    n = x.shape[1]
    for token in range(x.shape[0]):
        inverse = _inverse_rms(x, token * n, n, eps)
        for i in range(0, n // 8 * 8, 8):
            scaled = mul(load_f32x8(x, token * n + i), splat(f32x8, inverse))
            store(out, token * n + i, mul(scaled, load_f32x8(weight, i)))
        for i in range(n // 8 * 8, n):
            out[token, i] = x[token, i] * inverse * weight[i]


@kernel()
def rms_norm_heads(x, eps):
    """x / rms(x) in place over the last axis, without weights; x: float32 (n_tokens, n_head, d)."""
    d = x.shape[2]
    for token in range(x.shape[0]):
        for head in range(x.shape[1]):
            inverse = _inverse_rms(x, (token * x.shape[1] + head) * d, d, eps)
            for i in range(d):
                x[token, head, i] *= inverse
