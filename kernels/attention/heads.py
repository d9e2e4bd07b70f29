"""What heads are, and what is done to queries and keys before they meet."""

import numpy as np

from q4run.kernels.compiling.compile import kernel
from q4run.kernels.norm import rms_norm_heads
from q4run.kernels.rope import rotate_adjacent
from q4run.kernels.threads.tasks import run_tasks
from q4run.kernels.tokens import count_tasks, tokens_of

NO_ANGLES = np.empty((2, 1, 0), np.float32)
NO_TEMPERATURES = np.empty(0, np.float32)

# A layer's heads. A new property is a field; 0, which stands for none, is its default.
HEADS = np.dtype(
    [
        ("n_head", np.int64),
        ("n_head_kv", np.int64),
        ("key_dim", np.int64),
        ("value_dim", np.int64),
        ("scale", np.float32),  # of the scores
        ("qk_norm", np.bool_),  # an RMS norm after RoPE, without weights
        ("eps", np.float32),  # of that norm
    ]
)


@kernel()
def prepare_heads(pool, q, k, heads, angles, temperatures):
    """RoPE, q/k norm and attention temperature, each where the layer has it, in place.

    q: float32 (n_tokens, n_head, key_dim), k alike; heads: a ``HEADS``; angles: cos and sin of
    RoPE's, float32 (2, n_tokens, n_rot / 2), or ``NO_ANGLES``; temperatures: what queries are
    multiplied by, float32 (n_tokens,), or ``NO_TEMPERATURES``.
    """
    arguments = (q, k, heads, angles, temperatures)
    run_tasks(pool, count_tasks(len(q)), _prepare_heads, arguments)


@kernel()
def _prepare_heads(task, q, k, heads, angles, temperatures):
    first, end = tokens_of(task, len(q))
    cos, sin = angles[0, first:end], angles[1, first:end]
    rotate_adjacent(q[first:end], cos, sin)
    rotate_adjacent(k[first:end], cos, sin)
    if heads.qk_norm:
        rms_norm_heads(q[first:end], heads.eps)
        rms_norm_heads(k[first:end], heads.eps)
    if len(temperatures):
        for token in range(first, end):
            for head in range(q.shape[1]):
                for i in range(q.shape[2]):
                    q[token, head, i] *= temperatures[token]
