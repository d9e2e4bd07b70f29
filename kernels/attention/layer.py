"""A layer's attention as one compiled function: norm, projections, cache, attention, output."""

from typing import NamedTuple

import numpy as np

from q4run.kernels.attention.attend import attend
from q4run.kernels.attention.heads import Heads, prepare_heads
from q4run.kernels.attention.rows import write_cache
from q4run.kernels.compiling.compile import inline, kernel
from q4run.kernels.elementwise import add_into
from q4run.kernels.products.products import run_products
from q4run.kernels.tokens import normalize, quantize_tokens

Q, K, V, OUTPUT = range(4)  # the places of the projections among the products


class AttentionBuffers(NamedTuple):
    """Flat scratch memory for a batch; int8: q, scales and sums as ``Int8Activations`` has them."""

    normed: np.ndarray
    normed_int8: tuple[np.ndarray, np.ndarray, np.ndarray]
    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    attended: np.ndarray
    attended_int8: tuple[np.ndarray, np.ndarray, np.ndarray]
    update: np.ndarray


class AttentionRecord(NamedTuple):
    """What a layer's attention is, whatever the tokens: a new property is a field with a default.

    norm, eps: of the RMS norm before it, float32 (n_embd,); products: four ``PRODUCT`` over the
    buffers.
    """

    norm: np.ndarray
    eps: np.float32
    products: np.ndarray
    heads: Heads
    buffers: AttentionBuffers


@kernel()
def attention_layer(pool, x, layer, by_position, keys, values, place):
    """Adds a layer's attention to the stream x, float32 (n_tokens, n_embd), in place.

    layer: ``AttentionRecord``; by_position: ``ByPosition``; keys, values: ``KVRows``, which take
    the tokens at ``place`` and after, and hold the earlier keys that these tokens see before it.
    """
    n_tokens = len(x)
    heads, products, buffers = layer.heads, layer.products, layer.buffers
    for i in range(4):
        products[i].input.n_tokens = n_tokens
    normalize(pool, x, layer.norm, layer.eps, buffers.normed, buffers.normed_int8)
    run_products(pool, products[:OUTPUT])
    q = _heads_of(buffers.q, n_tokens, heads.n_head, heads.key_dim)
    k = _heads_of(buffers.k, n_tokens, heads.n_head_kv, heads.key_dim)
    v = _heads_of(buffers.v, n_tokens, heads.n_head_kv, heads.value_dim)
    prepare_heads(pool, q, k, heads, by_position)
    write_cache(k, keys, place)
    write_cache(v, values, place)
    attended = _heads_of(buffers.attended, n_tokens, heads.n_head, heads.value_dim)
    attend(pool, q, keys, values, place + 1, heads.scale, attended)
    n_cols = heads.n_head * heads.value_dim
    quantize_tokens(pool, buffers.attended, n_tokens, n_cols, buffers.attended_int8)
    run_products(pool, products[OUTPUT:])
    add_into(x, buffers.update[: x.size].reshape(x.shape))


@inline
def _heads_of(buffer, n_tokens, n_head, dim):
    """The beginning of a flat buffer as (n_tokens, n_head, dim)."""
    return buffer[: n_tokens * n_head * dim].reshape(n_tokens, n_head, dim)
