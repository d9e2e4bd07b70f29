"""A layer's attention as one compiled function: norm, projections, cache, attention, output."""

from typing import NamedTuple

import numpy as np

from q4run.kernels.attention.attend import attend, write_cache
from q4run.kernels.compiling.compile import kernel
from q4run.kernels.elementwise import add_into
from q4run.kernels.products.products import run_products
from q4run.kernels.tokens import normalize, prepare_heads, quantize_tokens

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


@kernel()
def attention_layer(
    pool,
    x,
    norm,
    eps,
    products,
    heads,
    qk_norm,
    rotation,
    temperatures,
    keys,
    values,
    place,
    buffers,
):
    """Adds a layer's attention to the stream x, float32 (n_tokens, n_embd), in place.

    products: four ``PRODUCT`` over the buffers; heads: (n_head, n_head_kv, head_dim); rotation,
    qk_norm and temperatures as ``prepare_heads`` takes them; the caches take the tokens at
    ``place`` and after, and hold the earlier keys that these tokens see before it.
    """
    n_tokens = len(x)
    n_head, n_head_kv, head_dim = heads
    for i in range(4):
        products[i].input.n_tokens = n_tokens
    normalize(pool, x, norm, eps, buffers.normed, buffers.normed_int8)
    run_products(pool, products[:OUTPUT])
    q = buffers.q[: n_tokens * n_head * head_dim].reshape(n_tokens, n_head, head_dim)
    kv_size = n_tokens * n_head_kv * head_dim
    k = buffers.k[:kv_size].reshape(n_tokens, n_head_kv, head_dim)
    v = buffers.v[:kv_size].reshape(n_tokens, n_head_kv, head_dim)
    prepare_heads(pool, q, k, rotation, qk_norm, eps, temperatures)
    write_cache(k, keys, place)
    write_cache(v, values, place)
    attended = buffers.attended[: q.size].reshape(q.shape)
    attend(pool, q, keys, values, place + 1, np.float32(head_dim) ** np.float32(-0.5), attended)
    quantize_tokens(pool, buffers.attended, n_tokens, n_head * head_dim, buffers.attended_int8)
    run_products(pool, products[OUTPUT:])
    add_into(x, buffers.update[: x.size].reshape(x.shape))
