"""Causal attention of one window, in numpy: RoPE, q/k norm, chunks and temperature as declared."""

import numpy as np

from q4run.layers.rotary import temperatures
from q4run.models.parts import Attention, QKNorm
from q4run.models.rope import Rope, RopeForm

# Scores of so many queries are held at once, for all heads that share their keys.
N_QUERIES = 128


def rms_norm(x: np.ndarray, eps: float) -> np.ndarray:
    """x / rms(x) over the last axis, without a weight; float32."""
    mean = np.square(x).mean(axis=-1, keepdims=True)
    normed: np.ndarray = x / np.sqrt(mean + np.float32(eps))
    return normed


def attend(
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    part: Attention,
    eps: float,
    rotation: np.ndarray,
) -> np.ndarray:
    """What the output matrix multiplies: float32 (n_tokens, part.attended_width).

    q, k, v: float32 (n_tokens, heads * head_dim) of a sequence that starts at position 0;
    eps: of the q/k norm; rotation: cos and sin of its RoPE angles, (2, n_tokens, rope.dim / 2).
    """
    n_tokens = len(q)
    queries = q.reshape(n_tokens, part.n_head, part.key_dim)
    keys = k.reshape(n_tokens, part.n_head_kv, part.key_dim)
    values = v.reshape(n_tokens, part.n_head_kv, part.value_dim)
    if part.rope:
        queries, keys = (_rotate(x, part.rope, rotation) for x in (queries, keys))
    if part.qk_norm is QKNorm.PLAIN:
        queries = rms_norm(queries, eps)
        keys = rms_norm(keys, eps)
    positions = np.arange(n_tokens)
    if part.temperature is not None:
        queries = queries * temperatures(part.temperature, 0, n_tokens)[:, None, None]
    group = part.n_head // part.n_head_kv
    queries = queries * np.float32(part.key_dim**-0.5)
    attended = np.empty((n_tokens, part.n_head, part.value_dim), np.float32)
    for start in range(0, n_tokens, N_QUERIES):
        rows = slice(start, min(start + N_QUERIES, n_tokens))
        hidden = positions[: rows.stop] > positions[rows, None]
        if part.chunk_size is not None:
            chunks = positions // part.chunk_size
            hidden |= chunks[: rows.stop] != chunks[rows, None]
        for head in range(part.n_head_kv):
            heads = slice(head * group, (head + 1) * group)
            scores = queries[rows, heads].swapaxes(0, 1) @ keys[: rows.stop, head].T
            np.copyto(scores, -np.inf, where=hidden)
            attended[rows, heads] = (_softmax(scores) @ values[: rows.stop, head]).swapaxes(0, 1)
    return attended.reshape(n_tokens, -1)


def _rotate(x: np.ndarray, rope: Rope, rotation: np.ndarray) -> np.ndarray:
    """RoPE on the pairs of each head, (n_tokens, heads, head_dim)."""
    cos, sin = (part[:, None] for part in rotation)
    rotated = x.copy()
    if rope.form is RopeForm.ADJACENT:
        first, second = slice(0, rope.dim, 2), slice(1, rope.dim, 2)
    else:
        first, second = slice(0, rope.dim // 2), slice(rope.dim // 2, rope.dim)
    rotated[..., first] = x[..., first] * cos - x[..., second] * sin
    rotated[..., second] = x[..., first] * sin + x[..., second] * cos
    return rotated


def _softmax(scores: np.ndarray) -> np.ndarray:
    """Over the last axis, in place."""
    scores -= scores.max(axis=-1, keepdims=True)
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True)
    return scores
