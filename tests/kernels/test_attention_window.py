"""Windows and sinks of attention against float64, past the borders of blocks, chunks and rings."""

import numpy as np
import pytest

from q4run.kernels.attention.attend import NO_SINKS, attend
from q4run.kernels.attention.kinds import find_kind
from q4run.kernels.attention.rows import NO_WINDOW, KVRows, write_cache

N_HEAD, N_HEAD_KV, DIM = 4, 2, 16
SCALE = np.float32(0.3)


def normal(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


def empty_rows(capacity: int, kv_type: str = "f32") -> KVRows:
    kind = find_kind(kv_type)
    return KVRows(kind, np.zeros((N_HEAD_KV, capacity, kind.row_length(DIM)), kind.dtype))


def reference(q, k, v, first, window, sinks):
    """Softmax attention in float64; query t stands at position ``first + t``."""
    out = np.empty(q.shape)
    for t, head in np.ndindex(*q.shape[:2]):
        seen = slice(max(0, first + t + 1 - window), first + t + 1)
        kv = head * N_HEAD_KV // N_HEAD
        scores = k[seen, kv].astype(np.float64) @ q[t, head] * SCALE
        most = max(scores.max(), sinks[head] if len(sinks) else -np.inf)
        weights = np.exp(scores - most)
        total = weights.sum() + (np.exp(sinks[head] - most) if len(sinks) else 0)
        out[t, head] = weights @ v[seen, kv] / total
    return out


def run(pool, q, k, v, steps, window, sinks, capacity):
    """Attention of all tokens, in passes of so many; a ring where the capacity is shorter."""
    keys, values = empty_rows(capacity), empty_rows(capacity)
    out, first = np.empty_like(q), 0
    for n in steps:
        some = slice(first, first + n)
        is_ring = window if capacity < len(q) else NO_WINDOW
        write_cache(k[some].copy(), keys, first, is_ring)
        write_cache(v[some].copy(), values, first, is_ring)
        attend(pool, q[some].copy(), keys, values, first + 1, SCALE, window, sinks, out[some])
        first += n
    assert first == len(q)
    return out


SINKS = np.array([0.5, -3, 9, 60], np.float32)  # the last takes all


@pytest.mark.parametrize("sinks", [NO_SINKS, SINKS], ids=["no sinks", "sinks"])
@pytest.mark.parametrize("window", [1, 2, 63, 64, 65, 128, 511, 512, 513, 700, NO_WINDOW])
def test_each_query_sees_its_window(pool, window, sinks):
    n = 1200
    q, k, v = (
        normal(n, N_HEAD, DIM, seed=1),
        normal(n, N_HEAD_KV, DIM, seed=2),
        normal(n, N_HEAD_KV, DIM, seed=3),
    )
    whole = run(pool, q, k, v, [n], window, sinks, n)
    np.testing.assert_allclose(whole, reference(q, k, v, 0, window, sinks), rtol=2e-4, atol=2e-5)
    steps = [1, 63, 64, 65, 300, 19, *([1] * 40), 648]
    np.testing.assert_array_equal(run(pool, q, k, v, steps, window, sinks, n), whole)


@pytest.mark.parametrize("window", [1, 60, 64, 500])
def test_a_ring_gives_the_same_bits(pool, window):
    n, most = 1500, 100
    q, k, v = (
        normal(n, N_HEAD, DIM, seed=4),
        normal(n, N_HEAD_KV, DIM, seed=5),
        normal(n, N_HEAD_KV, DIM, seed=6),
    )
    whole = run(pool, q, k, v, [n], window, NO_SINKS, n)
    capacity = -(-(window + most) // 64) * 64
    steps = [*([most] * 13), *([1] * 130), 70]
    np.testing.assert_array_equal(run(pool, q, k, v, steps, window, NO_SINKS, capacity), whole)


def test_what_a_ring_has_no_room_for_is_refused(pool):
    keys = empty_rows(128)
    q, rows = normal(65, N_HEAD, DIM, seed=7), normal(129, N_HEAD_KV, DIM, seed=8)
    with pytest.raises(ValueError, match="room"):
        write_cache(rows, keys, 0, 64)
    write_cache(rows[:65].copy(), keys, 1000, 65)
    with pytest.raises(ValueError, match="room"):
        attend(pool, q, keys, keys, 1001, SCALE, 65, NO_SINKS, np.empty_like(q))
    attend(pool, q[:64].copy(), keys, keys, 1001, SCALE, 65, NO_SINKS, np.empty_like(q[:64]))
