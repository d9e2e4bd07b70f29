"""Work that goes token by token: the same bits on any number of threads, alone and in a batch."""

import numpy as np
import pytest

from q4run.kernels.attention.heads import HEADS, NO_ANGLES, NO_TEMPERATURES, prepare_heads
from q4run.kernels.norm import rms_norm_heads
from q4run.kernels.products.activations import (
    Int8Activations,
    empty_activations,
    quantize_activations,
)
from q4run.kernels.rope import rotate_adjacent
from q4run.kernels.tokens import (
    TOKENS_PER_TASK,
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


@pytest.mark.parametrize("n_tokens", N_TOKENS)
@pytest.mark.parametrize("rope_dim", [0, 6, 16])
@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("has_temperatures", [False, True])
def test_prepare_heads(pool, n_tokens, rope_dim, qk_norm, has_temperatures):
    """Rotation, then the norm, then the temperature, which keys do not have."""
    q, k = normal(n_tokens, 4, 16), normal(n_tokens, 2, 16)
    angles = normal(n_tokens, rope_dim // 2)
    rotation = np.stack([np.cos(angles), np.sin(angles)])
    temperatures = np.arange(1, n_tokens + 1, dtype=np.float32)
    expected_q, expected_k = q.copy(), k.copy()
    for states in (expected_q, expected_k):
        rotate_adjacent(states, *rotation)
        if qk_norm:
            rms_norm_heads(states, EPS)
    if has_temperatures:
        expected_q *= temperatures[:, None, None]
    heads = np.zeros(1, HEADS)[0]
    heads["qk_norm"], heads["eps"] = qk_norm, EPS
    prepare_heads(
        pool, q, k, heads, rotation if rope_dim else NO_ANGLES,
        temperatures if has_temperatures else NO_TEMPERATURES,
    )  # fmt: skip
    np.testing.assert_array_equal(q, expected_q)
    np.testing.assert_array_equal(k, expected_k)
