"""What heads are, and what is done to queries, keys and values before they meet."""

import numpy as np

from q4run.kernels.compiling.compile import inline, kernel
from q4run.kernels.norm import rms_norm, rms_norm_heads
from q4run.kernels.rope import rotate_adjacent, rotate_halves
from q4run.kernels.simd.memory import f32_array
from q4run.kernels.threads.tasks import run_tasks
from q4run.kernels.tokens import add_to_rows, count_tasks, tokens_of

NO_ANGLES = np.empty((2, 1, 0), np.float32)
NO_TEMPERATURES = np.empty(0, np.float32)

# A layer's heads. Vectors are named by address, float32. A new property is a field; 0, which stands
# for none, is its default.
HEADS = np.dtype(
    [
        ("n_head", np.int64),
        ("n_head_kv", np.int64),
        ("key_dim", np.int64),
        ("value_dim", np.int64),
        ("scale", np.float32),  # of the scores
        ("window", np.int64),  # keys seen, the last of all; NO_WINDOW: all
        ("sinks", np.int64),  # (n_head,): scores without values
        ("q_bias", np.int64),  # (n_head * key_dim,)
        ("k_bias", np.int64),  # (n_head_kv * key_dim,)
        ("v_bias", np.int64),  # (n_head_kv * value_dim,)
        ("halves", np.bool_),  # RoPE rotates value i with value i + n_rot / 2, not neighbours
        ("norm", np.int64),  # one of the norms below
        ("eps", np.float32),  # of that norm
        ("q_norm", np.int64),  # its weights: (key_dim,) or, of all heads, (n_head * key_dim,)
        ("k_norm", np.int64),
    ]
)
# RMS norms of queries and keys: of each head or of all heads of a token together, before or after
# RoPE, with or without weights.
NO_NORM, PLAIN, WEIGHTED, WEIGHTED_AFTER_ROPE, WHOLE = range(5)


@kernel()
def prepare_heads(pool, q, k, v, heads, angles, temperatures):
    """Biases, q/k norm, RoPE and attention temperature, each where the layer has it, in place.

    q: float32 (n_tokens, n_head, key_dim), k and v alike; heads: a ``HEADS``; angles: cos and sin
    of RoPE's, float32 (2, n_tokens, n_rot / 2), or ``NO_ANGLES``; temperatures: what queries are
    multiplied by, float32 (n_tokens,), or ``NO_TEMPERATURES``.
    """
    arguments = (q, k, v, heads, angles, temperatures)
    run_tasks(pool, count_tasks(len(q)), _prepare_heads, arguments)


@kernel()
def _prepare_heads(task, q, k, v, heads, angles, temperatures):
    first, end = tokens_of(task, len(q))
    q, k, v = q[first:end], k[first:end], v[first:end]
    add_to_rows(q, heads.q_bias)
    add_to_rows(k, heads.k_bias)
    add_to_rows(v, heads.v_bias)
    cos, sin = angles[0, first:end], angles[1, first:end]
    _prepare(q, heads, heads.q_norm, cos, sin)
    _prepare(k, heads, heads.k_norm, cos, sin)
    if len(temperatures):
        for token in range(len(q)):
            for head in range(q.shape[1]):
                for i in range(q.shape[2]):
                    q[token, head, i] *= temperatures[first + token]


@inline
def _prepare(x, heads, weights, cos, sin):
    n_tokens, n_head, dim = x.shape
    if heads.norm == WHOLE:
        _norm_rows(x.reshape(n_tokens, n_head * dim), weights, heads.eps)
    elif heads.norm == WEIGHTED:
        _norm_rows(x.reshape(n_tokens * n_head, dim), weights, heads.eps)
    if heads.halves:
        rotate_halves(x, cos, sin)
    else:
        rotate_adjacent(x, cos, sin)
    if heads.norm == PLAIN:
        rms_norm_heads(x, heads.eps)
    elif heads.norm == WEIGHTED_AFTER_ROPE:
        _norm_rows(x.reshape(n_tokens * n_head, dim), weights, heads.eps)


@inline
def _norm_rows(x, weights, eps):
    rms_norm(x, f32_array(weights, x.shape[1]), eps, x)
