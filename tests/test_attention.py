"""Attention over a cache, against a softmax in float64, and bit against bit."""

import numba
import numpy as np
import pytest

from q4run.kernels.attention import attend, write_cache

pytestmark = pytest.mark.usefixtures("kernel_form")

KV_TYPES = {"f32": np.float32, "f16": np.uint16}
HEADS = [(1, 1), (4, 4), (4, 2), (6, 1)]  # query heads, KV heads


def round_to(kv_type: str, values: np.ndarray) -> np.ndarray:
    """What the cache can hold of ``values``, as float64."""
    stored = values.astype(np.float16) if kv_type == "f16" else values
    return stored.astype(np.float64)


def filled_cache(kv_type: str, rows: np.ndarray, capacity: int) -> np.ndarray:
    """rows (n_positions, n_head_kv, head_dim) from position 0 on; NaN where no token is yet."""
    n_positions, n_head_kv, head_dim = rows.shape
    padded_dim = (head_dim + 7) // 8 * 8
    cache = np.zeros((n_head_kv, capacity, padded_dim), KV_TYPES[kv_type])
    cache[:, n_positions:] = 0x7E00 if kv_type == "f16" else np.nan
    write_cache(rows, cache, 0)
    return cache


def made_up(n_tokens: int, n_seen: int, n_head: int, n_head_kv: int, head_dim: int, seed: int = 0):
    """Queries, and the keys and values up to the last query's own."""
    rng = np.random.default_rng([seed, n_tokens, n_seen, n_head, head_dim])
    n_positions = n_seen + n_tokens - 1
    q = rng.standard_normal((n_tokens, n_head, head_dim), dtype=np.float32)
    k = rng.standard_normal((n_positions, n_head_kv, head_dim), dtype=np.float32)
    v = rng.standard_normal((n_positions, n_head_kv, head_dim), dtype=np.float32)
    return q, k, v


def run(kv_type: str, q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float) -> np.ndarray:
    n_seen = len(k) - len(q) + 1
    caches = [filled_cache(kv_type, rows, len(k) + 3) for rows in (k, v)]
    out = np.full_like(q, np.nan)
    attend(q, *caches, n_seen, np.float32(scale), out)
    return out


def exact(kv_type: str, q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float) -> np.ndarray:
    n_tokens, n_head, _ = q.shape
    n_seen = len(k) - n_tokens + 1
    k, v = round_to(kv_type, k), round_to(kv_type, v)
    out = np.empty(q.shape, np.float64)
    for token in range(n_tokens):
        for head in range(n_head):
            kv_head = head * k.shape[1] // n_head
            seen = slice(0, n_seen + token)
            scores = k[seen, kv_head] @ q[token, head].astype(np.float64) * scale
            weights = np.exp(scores - scores.max())
            out[token, head] = weights / weights.sum() @ v[seen, kv_head]
    return out


def assert_close_to_exact(kv_type, q, k, v, scale):
    got = run(kv_type, q, k, v, scale)
    np.testing.assert_allclose(got, exact(kv_type, q, k, v, scale), atol=5e-6 * np.abs(v).max())


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize(("n_head", "n_head_kv"), HEADS)
@pytest.mark.parametrize("head_dim", [1, 5, 8, 12, 64])
def test_heads_of_any_shape(kv_type, n_head, n_head_kv, head_dim):
    assert_close_to_exact(kv_type, *made_up(3, 40, n_head, n_head_kv, head_dim), head_dim**-0.5)


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("n_tokens", [1, 2, 35])
@pytest.mark.parametrize("n_seen", [1, 2, 31, 32, 33, 64, 65, 200])
def test_contexts_across_the_borders_of_blocks(kv_type, n_tokens, n_seen):
    assert_close_to_exact(kv_type, *made_up(n_tokens, n_seen, 4, 2, 16), 0.25)


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_a_single_key_gives_its_value_exactly(kv_type):
    q, k, v = made_up(1, 1, 4, 2, 12)
    expected = round_to(kv_type, v)[0].repeat(2, axis=0)
    np.testing.assert_array_equal(run(kv_type, q, k, v, 0.3)[0], expected)


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("order", ["rising", "falling", "mixed"])
@pytest.mark.parametrize("size", [1.0, 100.0, 60000.0])
def test_large_scores_do_not_overflow(kv_type, order, size):
    """Scores of up to +-60000, all exact in float32, with the largest first, last or anywhere."""
    n = 70
    scores = np.round(np.linspace(-size, size, n) * 8) / 8
    if order == "falling":
        scores = scores[::-1]
    elif order == "mixed":
        scores = np.random.default_rng(1).permutation(scores)
    k = np.zeros((n, 1, 8), np.float32)
    k[:, 0, 0] = np.asarray(scores, np.float16 if kv_type == "f16" else np.float32)
    q = np.zeros((1, 1, 8), np.float32)
    q[0, 0, 0] = 1
    v = np.random.default_rng(2).standard_normal((n, 1, 8), dtype=np.float32)
    assert_close_to_exact(kv_type, q, k, v, 1.0)


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_equal_scores_average_all_values(kv_type):
    q, k, v = made_up(1, 100, 1, 1, 8)
    got = run(kv_type, np.zeros_like(q), k, v, 1.0)
    np.testing.assert_allclose(got[0, 0], round_to(kv_type, v)[:, 0].mean(axis=0), atol=1e-6)


# The same bits, however the work is cut.


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("head_dim", [12, 32])
def test_a_batch_equals_one_token_at_a_time(kv_type, head_dim):
    q, k, v = made_up(37, 30, 4, 2, head_dim)
    together = run(kv_type, q, k, v, 0.2)
    for token in range(len(q)):
        n_seen = 30 + token
        alone = run(kv_type, q[token : token + 1], k[:n_seen], v[:n_seen], 0.2)
        np.testing.assert_array_equal(alone[0], together[token])


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_the_capacity_of_the_cache_changes_nothing(kv_type):
    q, k, v = made_up(2, 40, 4, 2, 12)
    expected = run(kv_type, q, k, v, 0.2)
    for capacity in (len(k), 4 * len(k)):
        caches = [filled_cache(kv_type, rows, capacity) for rows in (k, v)]
        out = np.empty_like(q)
        attend(q, *caches, 40, np.float32(0.2), out)
        np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("n_tokens", [1, 9])
def test_any_number_of_threads_gives_the_same_bits(monkeypatch, kv_type, n_tokens):
    q, k, v = made_up(n_tokens, 50, 6, 2, 16)
    before = numba.get_num_threads()
    results = [run(kv_type, q, k, v, 0.2)]  # small work: one thread
    monkeypatch.setattr("q4run.kernels.compile._SMALL_WORK", -1)
    try:
        for n_threads in range(1, numba.config.NUMBA_NUM_THREADS + 1):
            numba.set_num_threads(n_threads)
            results.append(run(kv_type, q, k, v, 0.2))
    finally:
        numba.set_num_threads(before)
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


# Writing to the cache.


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("head_dim", [1, 7, 8, 13, 16])
def test_tokens_land_at_their_positions(kv_type, head_dim):
    rng = np.random.default_rng(3)
    padded_dim = (head_dim + 7) // 8 * 8
    # Anything but zeros, also behind the head: what write_cache must fill itself.
    cache = np.full((2, 9, padded_dim), 3, KV_TYPES[kv_type])
    rows = rng.standard_normal((4, 2, head_dim), dtype=np.float32)
    write_cache(rows, cache, 5)
    read = cache.view(np.float16) if kv_type == "f16" else cache
    expected = round_to(kv_type, rows).transpose(1, 0, 2)
    np.testing.assert_array_equal(read[:, 5:9, :head_dim], expected)
    assert not read[:, 5:9, head_dim:].any()
    assert (cache[:, :5] == 3).all()


def test_f16_rounds_to_nearest_even_and_overflows_to_infinity():
    values = np.array([1 + 2.0**-11, 1 + 3 * 2.0**-11, 2.0**-25, 65519, 65520, -1e9], np.float32)
    cache = np.zeros((1, 1, 8), np.uint16)
    write_cache(values.reshape(1, 1, 6), cache, 0)
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    np.testing.assert_array_equal(cache[0, 0, :6], expected.view(np.uint16))
