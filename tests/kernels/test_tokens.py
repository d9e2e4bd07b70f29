"""Work that goes token by token: the same bits on any number of threads, alone and in a batch."""

import numpy as np
import pytest

from q4run.kernels.attention.heads import (
    HEADS,
    NO_ANGLES,
    NO_NORM,
    NO_TEMPERATURES,
    PLAIN,
    WEIGHTED,
    WEIGHTED_AFTER_ROPE,
    WHOLE,
    prepare_heads,
)
from q4run.kernels.products.activations import (
    Int8Activations,
    empty_activations,
    quantize_activations,
)
from q4run.kernels.tokens import (
    TOKENS_PER_TASK,
    finish_update,
    normalize,
    quantize_tokens,
)

N_TOKENS = [0, 1, TOKENS_PER_TASK, TOKENS_PER_TASK + 1, 33]
EPS = np.float32(1e-3)
NO_INT8 = (np.empty(0, np.int8), np.empty(0, np.float32), np.empty(0, np.int32))


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


def room_for(n_tokens: int, n_cols: int) -> Int8Activations:
    """Flat room for one token more, filled with what no token becomes."""
    room = Int8Activations(*(part.ravel() for part in empty_activations(n_tokens + 1, n_cols)))
    room.q[:], room.scales[:], room.sums[:] = -128, np.nan, 1 << 30
    return room


def check_int8(got: Int8Activations, x: np.ndarray) -> None:
    """``got`` holds the tokens x in int8, and after them what was there before."""
    untouched = room_for(0, x.shape[1])
    for part, values, before in zip(got, quantize_activations(x), untouched, strict=True):
        np.testing.assert_array_equal(part, np.concatenate([values.ravel(), before]))


@pytest.mark.parametrize("n_tokens", N_TOKENS)
@pytest.mark.parametrize("n_embd", [32, 96])
def test_normalize(pool, n_tokens, n_embd):
    x, weight = normal(n_tokens, n_embd) * np.float32(20), normal(n_embd, seed=1)
    normed = np.full((n_tokens + 1) * n_embd, np.nan, np.float32)
    int8 = room_for(n_tokens, n_embd)
    normalize(pool, x, weight, EPS, normed, tuple(int8))
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + EPS) * weight
    got = normed[: x.size].reshape(x.shape)
    np.testing.assert_allclose(got, expected, rtol=2e-6)
    assert np.isnan(normed[x.size :]).all()
    check_int8(int8, got)
    for i in range(n_tokens):
        alone = np.empty(n_embd, np.float32)
        normalize(pool, x[i : i + 1], weight, EPS, alone, NO_INT8)
        np.testing.assert_array_equal(alone, got[i])


@pytest.mark.parametrize("n_embd", [1, 7, 45])
def test_normalize_of_any_width_where_nothing_takes_int8(pool, n_embd):
    x, weight = normal(19, n_embd), normal(n_embd, seed=1)
    normed = np.full(20 * n_embd, np.nan, np.float32)
    normalize(pool, x, weight, EPS, normed, NO_INT8)
    wide = x.astype(np.float64)
    expected = wide / np.sqrt((wide**2).mean(axis=1, keepdims=True) + EPS) * weight
    np.testing.assert_allclose(normed[: x.size].reshape(x.shape), expected, rtol=2e-6)
    assert np.isnan(normed[x.size :]).all()


@pytest.mark.parametrize("n_tokens", N_TOKENS)
def test_quantize_tokens(pool, n_tokens):
    x = normal(n_tokens + 1, 64)
    int8 = room_for(n_tokens, 64)
    quantize_tokens(pool, x.ravel(), n_tokens, 64, tuple(int8))
    check_int8(int8, x[:n_tokens])
    quantize_tokens(pool, x.ravel(), n_tokens, 64, NO_INT8)  # no room: nothing happens


NORMS = {
    "none": NO_NORM,
    "plain": PLAIN,
    "before": WEIGHTED,
    "after": WEIGHTED_AFTER_ROPE,
    "whole": WHOLE,
}


def rotated(x: np.ndarray, angles: np.ndarray, halves: bool) -> np.ndarray:
    """x (n_tokens, n_head, dim) in float64, the pairs of each head turned by angles."""
    half, out = angles.shape[1], x.astype(np.float64)
    first = slice(0, half) if halves else slice(0, 2 * half, 2)
    second = slice(half, 2 * half) if halves else slice(1, 2 * half, 2)
    a, b = out[..., first].copy(), out[..., second].copy()
    c, s = np.cos(angles)[:, None], np.sin(angles)[:, None]
    out[..., first], out[..., second] = a * c - b * s, a * s + b * c
    return out


def normed(x: np.ndarray, weights: np.ndarray | float = 1.0) -> np.ndarray:
    """x / rms(x) * weights over the last axis, in float64."""
    wide = x.astype(np.float64)
    return wide / np.sqrt((wide**2).mean(axis=-1, keepdims=True) + EPS) * weights


@pytest.mark.parametrize("n_tokens", N_TOKENS)
@pytest.mark.parametrize("rope_dim", [0, 6, 16])
@pytest.mark.parametrize("halves", [False, True])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("has_more", [False, True], ids=["bare", "biases and temperatures"])
def test_prepare_heads(pool, n_tokens, rope_dim, halves, norm, has_more):
    """Biases, then the norm and the rotation in the norm's order, then the queries' temperature."""
    shapes = [(4, 16), (2, 16), (2, 8)]
    given = [normal(n_tokens, *shape) for shape in shapes]
    angles = normal(n_tokens, rope_dim // 2)
    rotation = np.stack([np.cos(angles), np.sin(angles)])
    temperatures = np.arange(1, n_tokens + 1, dtype=np.float32)
    biases = [normal(*shape, seed=2) for shape in shapes]
    weights = [normal(*(shape if norm == "whole" else shape[1:]), seed=3) for shape in shapes[:2]]
    heads = np.zeros(1, HEADS)[0]
    heads["halves"], heads["norm"], heads["eps"] = halves, NORMS[norm], EPS
    heads["q_norm"], heads["k_norm"] = (w.ctypes.data for w in weights)
    if has_more:
        heads["q_bias"], heads["k_bias"], heads["v_bias"] = (b.ctypes.data for b in biases)

    got = [x.copy() for x in given]
    prepare_heads(
        pool, *got, heads, rotation if rope_dim else NO_ANGLES,
        temperatures if has_more else NO_TEMPERATURES,
    )  # fmt: skip

    expected = [x + b * has_more for x, b in zip(given, biases, strict=True)]
    for i in range(2):
        x = expected[i]
        if norm == "whole":
            x = normed(x.reshape(n_tokens, 1, weights[i].size), weights[i].ravel())
            x = x.reshape(given[i].shape)
        elif norm == "before":
            x = normed(x, weights[i])
        x = rotated(x, angles, halves)
        if norm == "plain":
            x = normed(x)
        elif norm == "after":
            x = normed(x, weights[i])
        expected[i] = x
    if has_more:
        expected[0] = expected[0] * temperatures[:, None, None]
    for one, wanted in zip(got, expected, strict=True):
        np.testing.assert_allclose(one, wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("n_tokens", N_TOKENS)
@pytest.mark.parametrize("has", [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 1)])
def test_finish_update(pool, n_tokens, has):
    """Bias, then norm, then scale; nothing where there is none."""
    update, bias, weights = normal(n_tokens, 45), normal(45, seed=1), normal(45, seed=2)
    expected = update.astype(np.float64) + bias * has[0]
    if has[1]:
        expected = normed(expected, weights)
    if has[2]:
        expected *= 0.25
    addresses = [v.ctypes.data if h else 0 for v, h in zip((bias, weights), has, strict=False)]
    finish_update(pool, update, *addresses, EPS, np.float32(0.25 if has[2] else 0))
    np.testing.assert_allclose(update, expected, rtol=1e-5, atol=1e-6)
