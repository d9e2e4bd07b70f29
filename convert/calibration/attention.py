"""Causal attention of one window, in numpy, as a part declares it."""

from collections.abc import Mapping

import numpy as np
from gguf import MODEL_TENSOR

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
    vectors: Mapping[MODEL_TENSOR, np.ndarray],
) -> np.ndarray:
    """What the heads gather: float32 (n_tokens, part.attended_width).

    q, k, v: float32 (n_tokens, heads * head_dim) of a sequence that starts at position 0;
    eps: of the q/k norm; rotation: cos and sin of its RoPE angles, (2, n_tokens, rope.dim / 2);
    vectors: weights of the q/k norm, and sinks, where the part has them.
    """
    n_tokens = len(q)
    values = v.reshape(n_tokens, part.n_head_kv, part.value_dim)
    queries, keys = (
        _prepared(x, part, eps, rotation, vectors.get(weights))
        for x, weights in ((q, MODEL_TENSOR.ATTN_Q_NORM), (k, MODEL_TENSOR.ATTN_K_NORM))
    )
    sinks = vectors.get(MODEL_TENSOR.ATTN_SINKS, np.full(part.n_head, -np.inf, np.float32))
    positions = np.arange(n_tokens)
    if part.temperature is not None:
        queries = queries * temperatures(part.temperature, 0, n_tokens)[:, None, None]
    group = part.n_head // part.n_head_kv
    queries = queries * np.float32(part.scale or part.key_dim**-0.5)
    attended = np.empty((n_tokens, part.n_head, part.value_dim), np.float32)
    for start in range(0, n_tokens, N_QUERIES):
        rows = slice(start, min(start + N_QUERIES, n_tokens))
        hidden = positions[: rows.stop] > positions[rows, None]
        if part.chunk_size is not None:
            chunks = positions // part.chunk_size
            hidden |= chunks[: rows.stop] != chunks[rows, None]
        if part.window is not None:
            hidden |= positions[: rows.stop] <= positions[rows, None] - part.window
        for head in range(part.n_head_kv):
            heads = slice(head * group, (head + 1) * group)
            scores = queries[rows, heads].swapaxes(0, 1) @ keys[: rows.stop, head].T
            np.copyto(scores, -np.inf, where=hidden)
            attended[rows, heads] = (
                _softmax(scores, sinks[heads]) @ values[: rows.stop, head]
            ).swapaxes(0, 1)
    return attended.reshape(n_tokens, -1)


def _prepared(
    x: np.ndarray,
    part: Attention,
    eps: float,
    rotation: np.ndarray,
    weights: np.ndarray | None,
) -> np.ndarray:
    """Queries or keys, normed and rotated: float32 (n_tokens, heads, key_dim)."""
    if part.qk_norm is QKNorm.WHOLE:
        x = rms_norm(x, eps) * weights
    heads = x.reshape(len(x), -1, part.key_dim)
    if part.qk_norm is QKNorm.WEIGHTED:
        heads = rms_norm(heads, eps) * weights
    if part.rope:
        heads = _rotate(heads, part.rope, rotation)
    if part.qk_norm is QKNorm.PLAIN:
        heads = rms_norm(heads, eps)
    elif part.qk_norm is QKNorm.WEIGHTED_AFTER_ROPE:
        heads = rms_norm(heads, eps) * weights
    return heads


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


def _softmax(scores: np.ndarray, sinks: np.ndarray) -> np.ndarray:
    """Over the last axis, in place; ``sinks``: one score more for each head, without a value."""
    sinks = sinks[:, None, None]
    largest = np.maximum(scores.max(axis=-1, keepdims=True), sinks)
    scores -= largest
    np.exp(scores, out=scores)
    scores /= scores.sum(axis=-1, keepdims=True) + np.exp(sinks - largest)
    return scores
