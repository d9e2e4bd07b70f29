"""Attention over a KV cache, its softmax taken online (Milakov & Gimelshein, arXiv:1805.02867).

A query's result depends on its own keys alone, in their order: the same bits whatever else is in
the batch and however many threads there are.
"""

import numpy as np
from numba import prange, types
from numba.extending import overload

from q4run.kernels.compile import inline, kernel, threaded
from q4run.kernels.simd.casts import floats_to_half, halves_to_float
from q4run.kernels.simd.math import exp
from q4run.kernels.simd.memory import load_f32x8, load_u16x8, store
from q4run.kernels.simd.ops import fma, mul, reduce_add, splat, sub
from q4run.kernels.simd.vector import f32x8

# Keys whose scores are taken before the values are read: one cache line of scores at a time.
_BLOCK = 32


def _load(array, index):
    """8 cached values from flat ``index`` on as f32x8: float32, or f16 held as uint16."""
    raise NotImplementedError


@overload(_load)
def _load_overload(array, index):
    if array.dtype == types.uint16:
        return lambda array, index: halves_to_float(load_u16x8(array, index))
    return lambda array, index: load_f32x8(array, index)


def _save(array, index, vector):
    """Writes f32x8 to flat ``index`` in the cache's own type."""
    raise NotImplementedError


@overload(_save)
def _save_overload(array, index, vector):
    if array.dtype == types.uint16:
        return lambda array, index, vector: store(array, index, floats_to_half(vector))
    return lambda array, index, vector: store(array, index, vector)


@kernel()
def write_cache(rows, cache, first):
    """Puts the keys or values of new tokens at positions ``first``, ``first + 1``, ... of a cache.

    rows: float32 (n_tokens, n_head_kv, head_dim), C-contiguous; cache: float32 or uint16 (f16)
    (n_head_kv, capacity, padded_dim), where padded_dim is head_dim rounded up to 8, zeros behind.
    """
    n_tokens, n_head_kv, head_dim = rows.shape
    capacity, padded_dim = cache.shape[1], cache.shape[2]
    flat = rows.ravel()
    rest = np.zeros(8, np.float32)
    for token in range(n_tokens):
        for head in range(n_head_kv):
            source = (token * n_head_kv + head) * head_dim
            target = (head * capacity + first + token) * padded_dim
            for i in range(0, head_dim // 8 * 8, 8):
                _save(cache, target + i, load_f32x8(flat, source + i))
            if head_dim % 8:
                whole = head_dim // 8 * 8
                for i in range(whole, head_dim):
                    rest[i - whole] = flat[source + i]
                _save(cache, target + whole, load_f32x8(rest, 0))


@threaded(lambda q, k, v, n_seen, *_: 2 * q.size * (n_seen + len(q)))
def attend(q, k_cache, v_cache, n_seen, scale, out):
    """Softmax attention of new tokens over a cache; query t sees the first ``n_seen + t`` keys.

    q, out: float32 (n_tokens, n_head, head_dim), C-contiguous; the caches as ``write_cache`` fills
    them; query head h reads KV head h * n_head_kv // n_head; scale multiplies the scores.
    """
    n_tokens, n_head, _ = q.shape
    group = n_head // k_cache.shape[0]
    for task in prange(n_tokens * n_head):
        # Heads outside, tokens inside: threads get equal shares although late tokens see more.
        head, token = task // n_tokens, task % n_tokens
        _attend_one(q, k_cache, v_cache, token, head, head // group, n_seen + token, scale, out)


@inline
def _attend_one(q, k_cache, v_cache, token, head, kv_head, n_keys, scale, out):
    head_dim = q.shape[2]
    capacity, padded_dim = k_cache.shape[1], k_cache.shape[2]
    base = kv_head * capacity * padded_dim
    query = np.zeros(padded_dim, np.float32)
    for i in range(head_dim):
        query[i] = q[token, head, i] * scale
    result = np.zeros(padded_dim, np.float32)
    scores = np.empty(_BLOCK, np.float32)
    largest = np.float32(-np.inf)
    total = np.float32(0)
    for first in range(0, n_keys, _BLOCK):
        count = min(_BLOCK, n_keys - first)
        block_largest = largest
        for j in range(count):
            at = base + (first + j) * padded_dim
            dot = splat(f32x8, 0.0)
            for i in range(0, padded_dim, 8):
                dot = fma(load_f32x8(query, i), _load(k_cache, at + i), dot)
            scores[j] = reduce_add(dot)
            block_largest = max(block_largest, scores[j])
        for j in range(count, _BLOCK):
            scores[j] = -np.inf
        for j in range(0, _BLOCK, 8):
            weights = exp(sub(load_f32x8(scores, j), splat(f32x8, block_largest)))
            store(scores, j, weights)
        block_total = np.float32(0)
        for j in range(count):
            block_total += scores[j]
        correction = np.exp(largest - block_largest)
        total = total * correction + block_total
        largest = block_largest
        for i in range(0, padded_dim, 8):
            values = mul(load_f32x8(result, i), splat(f32x8, correction))
            for j in range(count):
                v = _load(v_cache, base + (first + j) * padded_dim + i)
                values = fma(v, splat(f32x8, scores[j]), values)
            store(result, i, values)
    for i in range(head_dim):
        out[token, head, i] = result[i] / total
