"""What heads are, and what is done to queries and keys before they meet."""

from typing import NamedTuple

import numpy as np

from q4run.kernels.compiling.compile import kernel
from q4run.kernels.norm import rms_norm_heads
from q4run.kernels.rope import rotate_adjacent
from q4run.kernels.threads.tasks import run_tasks
from q4run.kernels.tokens import count_tasks, tokens_of

NO_ANGLES = np.empty((1, 0), np.float32)


class Heads(NamedTuple):
    """A layer's heads. scale: of the scores; qk_norm: RMS norm after RoPE, without weights."""

    n_head: int
    n_head_kv: int
    key_dim: int
    value_dim: int
    scale: np.float32
    qk_norm: bool = False
    eps: np.float32 = np.float32(0)  # of that norm


class ByPosition(NamedTuple):
    """What depends on where the tokens of a pass stand.

    cos, sin: of RoPE's angles, float32 (n_tokens, n_rot / 2), or (1, 0) without RoPE;
    temperatures: what queries are multiplied by, float32 (n_tokens,), or empty.
    """

    cos: np.ndarray = NO_ANGLES
    sin: np.ndarray = NO_ANGLES
    temperatures: np.ndarray = np.empty(0, np.float32)


@kernel()
def prepare_heads(pool, q, k, heads, by_position):
    """RoPE, q/k norm and attention temperature, each where the layer has it, in place.

    q: float32 (n_tokens, n_head, key_dim), k alike; heads: ``Heads``; by_position: ``ByPosition``.
    """
    run_tasks(pool, count_tasks(len(q)), _prepare_heads, (q, k, heads, by_position))


@kernel()
def _prepare_heads(task, q, k, heads, by_position):
    first, end = tokens_of(task, len(q))
    cos, sin = by_position.cos[first:end], by_position.sin[first:end]
    rotate_adjacent(q[first:end], cos, sin)
    rotate_adjacent(k[first:end], cos, sin)
    if heads.qk_norm:
        rms_norm_heads(q[first:end], heads.eps)
        rms_norm_heads(k[first:end], heads.eps)
    temperatures = by_position.temperatures
    if len(temperatures):
        for token in range(first, end):
            for head in range(q.shape[1]):
                for i in range(q.shape[2]):
                    q[token, head, i] *= temperatures[token]
