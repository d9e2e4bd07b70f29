"""A layer's attention as one compiled function: norm, projections, cache, attention, output."""

import numpy as np

from q4run.kernels.attention.attend import attend
from q4run.kernels.attention.heads import HEADS, prepare_heads
from q4run.kernels.attention.rows import write_cache
from q4run.kernels.compiling.compile import inline, kernel
from q4run.kernels.elementwise import add_into
from q4run.kernels.products.products import INPUT, PRODUCT, int8_arrays, run_products
from q4run.kernels.simd.memory import f32_array
from q4run.kernels.tokens import finish_update, normalize, quantize_tokens

Q, K, V, OUTPUT = range(4)  # the places of the projections among the products

# What a layer's attention is, whatever the tokens. The arrays are named by address, float32 and
# C-contiguous, since taking an array in costs a call from Python 0.2 microseconds. The caller
# keeps them alive. A new property is a field; 0, which stands for none, is its default.
ATTENTION = np.dtype(
    [
        ("norm", np.int64),  # weights of the RMS norm before it, (n_embd,)
        ("eps", np.float32),  # of that norm
        ("heads", HEADS),
        ("normed", INPUT),  # what q, k and v are computed from
        ("q", np.int64),  # (n_tokens, n_head, key_dim)
        ("k", np.int64),  # (n_tokens, n_head_kv, key_dim)
        ("v", np.int64),  # (n_tokens, n_head_kv, value_dim)
        ("attended", INPUT),  # what the output is computed from
        ("sub_norm", np.int64),  # weights of an RMS norm before the output, (n_head * value_dim,)
        ("update", np.int64),  # (n_tokens, n_embd)
        ("out_bias", np.int64),  # (n_embd,)
        ("post_norm", np.int64),  # weights of an RMS norm of the output, (n_embd,)
        ("residual_scale", np.float32),  # of the output, unless it is 0
        ("products", PRODUCT, (OUTPUT + 1,)),  # over these buffers
    ]
)


@kernel()
def attention_layer(pool, x, layers, angles, temperatures, keys, values, place):
    """Adds a layer's attention to the stream x, float32 (n_tokens, n_embd), in place.

    layers: one ``ATTENTION``; angles, temperatures: as ``prepare_heads`` takes them; keys, values:
    ``KVRows``, which take the tokens at ``place`` and after, and hold the earlier keys that these
    tokens see before it.
    """
    layer = layers[0]
    n_tokens, n_embd = x.shape
    heads, products = layer.heads, layer.products
    for i in range(4):
        products[i].input.n_tokens = n_tokens
    normed = f32_array(layer.normed.x, n_tokens * n_embd)
    normed_int8 = int8_arrays(layer.normed, n_tokens * n_embd)
    normalize(pool, x, f32_array(layer.norm, n_embd), layer.eps, normed, normed_int8)
    run_products(pool, products[:OUTPUT])
    q = _heads_at(layer.q, n_tokens, heads.n_head, heads.key_dim)
    k = _heads_at(layer.k, n_tokens, heads.n_head_kv, heads.key_dim)
    v = _heads_at(layer.v, n_tokens, heads.n_head_kv, heads.value_dim)
    prepare_heads(pool, q, k, v, heads, angles, temperatures)
    write_cache(k, keys, place, heads.window)
    write_cache(v, values, place, heads.window)
    attended = _heads_at(layer.attended.x, n_tokens, heads.n_head, heads.value_dim)
    sinks = f32_array(heads.sinks, heads.n_head if heads.sinks else 0)
    attend(pool, q, keys, values, place + 1, heads.scale, heads.window, sinks, attended)
    n_cols = heads.n_head * heads.value_dim
    rows = attended.reshape(n_tokens, n_cols)
    finish_update(pool, rows, 0, layer.sub_norm, layer.eps, np.float32(0))
    attended_int8 = int8_arrays(layer.attended, n_tokens * n_cols)
    quantize_tokens(pool, attended.ravel(), n_tokens, n_cols, attended_int8)
    run_products(pool, products[OUTPUT:])
    update = f32_array(layer.update, x.size).reshape(x.shape)
    finish_update(pool, update, layer.out_bias, layer.post_norm, layer.eps, layer.residual_scale)
    add_into(x, update)


@inline
def _heads_at(address, n_tokens, n_head, dim):
    """The heads in a buffer, as (n_tokens, n_head, dim)."""
    return f32_array(address, n_tokens * n_head * dim).reshape(n_tokens, n_head, dim)
