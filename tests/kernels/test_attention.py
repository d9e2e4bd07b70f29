"""Attention over a cache, against a softmax in float64, and bit against bit.

SIMD targets differ by an environment variable that is read at import, so each runs in a process of
its own: this file, as a script, writes what attention gave to an npz file. There every buffer ends
at a page that nobody may touch.
"""

import subprocess
import sys

import gguf
import numpy as np
import pytest
from helpers.guard_pages import guarded
from helpers.scripts import script_environment
from numba.core.errors import TypingError

from q4run.kernels.attention.attend import MAX_HEAD_DIM, NO_SINKS, attend
from q4run.kernels.attention.kinds import find_kind
from q4run.kernels.attention.online_softmax import exp2
from q4run.kernels.attention.rows import NO_WINDOW, KVRows, write_cache
from q4run.kernels.compiling import target
from q4run.kernels.compiling.compile import kernel
from q4run.kernels.simd.memory import load_f32x8, store
from q4run.kernels.threads.pool import ALONE, Pool, ThreadPool

KV_TYPES = ["f32", "f16", "q8_0"]
# Filled with it, elements of any of the types are no numbers: in q8_0, the blocks' scales.
NOT_A_NUMBER = {"f32": np.nan, "f16": 0x7E00, "q8_0": 0x7E}


def empty_cache(kv_type: str, n_head_kv: int, capacity: int, head_dim: int) -> KVRows:
    kind = find_kind(kv_type)
    shape = (n_head_kv, capacity, kind.row_length(head_dim))
    return KVRows(kind, np.full(shape, NOT_A_NUMBER[kv_type], kind.dtype))


def filled_cache(kv_type: str, rows: np.ndarray, capacity: int) -> KVRows:
    """rows (n_positions, n_head_kv, head_dim) from position 0 on; NaN where no token is yet."""
    cache = empty_cache(kv_type, rows.shape[1], capacity, rows.shape[2])
    write_cache(rows, cache, 0, NO_WINDOW)
    return cache


def values_in(cache: KVRows, n_positions: int, head_dim: int) -> np.ndarray:
    """What a cache holds, as float64 (n_head_kv, n_positions, head_dim)."""
    rows = np.ascontiguousarray(cache.array[:, :n_positions])
    if cache.kind.name == "q8_0":
        rows = gguf.quants.dequantize(rows, gguf.GGMLQuantizationType.Q8_0)
    elif cache.kind.name == "f16":
        rows = rows.view(np.float16)
    return rows[..., :head_dim].astype(np.float64)


def made_up(n_tokens: int, n_seen: int, n_head: int, n_head_kv: int, head_dim: int, seed: int = 0):
    """Queries, and the keys and values up to the last query's own."""
    rng = np.random.default_rng([seed, n_tokens, n_seen, n_head, head_dim])
    n_positions = n_seen + n_tokens - 1
    q = rng.standard_normal((n_tokens, n_head, head_dim), dtype=np.float32)
    k = rng.standard_normal((n_positions, n_head_kv, head_dim), dtype=np.float32)
    v = rng.standard_normal((n_positions, n_head_kv, head_dim), dtype=np.float32)
    return q, k, v


def run(
    kv_type: str,
    q: np.ndarray,
    k: np.ndarray,
    v: np.ndarray,
    scale: float,
    pool: Pool = ALONE,
    unused: int = 3,
) -> np.ndarray:
    """Attention over caches with room for ``unused`` tokens more."""
    n_seen = len(k) - len(q) + 1
    caches = [filled_cache(kv_type, rows, len(k) + unused) for rows in (k, v)]
    out = np.full((*q.shape[:2], v.shape[2]), np.nan, np.float32)
    attend(pool, q, *caches, n_seen, np.float32(scale), NO_WINDOW, NO_SINKS, out)
    return out


def exact(kv_type: str, q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float) -> np.ndarray:
    """The same in float64, over what the caches hold."""
    n_tokens, n_head, _ = q.shape
    n_seen = len(k) - n_tokens + 1
    k, v = (
        values_in(filled_cache(kv_type, rows, len(rows)), len(rows), rows.shape[2])
        for rows in (k, v)
    )
    out = np.empty((*q.shape[:2], v.shape[2]), np.float64)
    unseen = np.arange(k.shape[1]) >= n_seen + np.arange(n_tokens)[:, None]
    for head in range(n_head):
        kv_head = head * len(k) // n_head
        scores = q[:, head].astype(np.float64) @ k[kv_head].T * scale
        scores[unseen] = -np.inf
        weights = np.exp(scores - scores.max(axis=1, keepdims=True))
        out[:, head] = weights / weights.sum(axis=1, keepdims=True) @ v[kv_head]
    return out


def assert_close_to_exact(kv_type, q, k, v, scale, pool=ALONE):
    got = run(kv_type, q, k, v, scale, pool)
    tolerance = 3e-6 * np.abs(v).max()
    np.testing.assert_allclose(got, exact(kv_type, q, k, v, scale), rtol=0, atol=tolerance)


HEADS = [(1, 1), (4, 4), (4, 2), (8, 2), (5, 1), (16, 2), (3, 1), (12, 2)]  # query and KV heads


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize(("n_head", "n_head_kv"), HEADS)
@pytest.mark.parametrize("head_dim", [1, 5, 8, 12, 31, 32, 33, 64, 80, 100, 128])
def test_heads_of_any_shape(kv_type, n_head, n_head_kv, head_dim):
    assert_close_to_exact(kv_type, *made_up(3, 70, n_head, n_head_kv, head_dim), head_dim**-0.5)


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("head_dim", [256, 300, 576, 1024, MAX_HEAD_DIM])
def test_long_heads(kv_type, head_dim):
    """The longer they are, the fewer queries and keys are at work at once: two, in the end."""
    assert_close_to_exact(kv_type, *made_up(7, 515, 4, 1, head_dim), head_dim**-0.5)
    assert_close_to_exact(kv_type, *made_up(1, 67, 5, 1, head_dim), head_dim**-0.5)


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize(("key_dim", "value_dim"), [(24, 12), (12, 80), (192, 128), (576, 512)])
@pytest.mark.parametrize(("n_tokens", "n_seen"), [(1, 1100), (5, 70), (67, 500)])
def test_values_of_another_length_than_keys(pool, kv_type, key_dim, value_dim, n_tokens, n_seen):
    q, k, _ = made_up(n_tokens, n_seen, 4, 2, key_dim)
    _, _, v = made_up(n_tokens, n_seen, 4, 2, value_dim, seed=1)
    assert_close_to_exact(kv_type, q, k, v, key_dim**-0.5, pool)


BORDERS = [1, 2, 7, 8, 9, 31, 32, 33, 63, 64, 65, 127, 128, 129, 511, 512, 513, 1023, 1024, 1025]


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("n_tokens", [1, 2, 3, 7, 33])
def test_contexts_across_the_borders_of_blocks(pool, kv_type, n_tokens):
    for n_seen in BORDERS:
        assert_close_to_exact(kv_type, *made_up(n_tokens, n_seen, 4, 2, 20), 0.25, pool)


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize(("n_head", "n_head_kv"), [(2, 2), (5, 1), (8, 2)])
@pytest.mark.parametrize("n_tokens", [64, 65, 200])
def test_prompts_of_many_blocks(pool, kv_type, n_head, n_head_kv, n_tokens):
    for n_seen in (1, 450):
        assert_close_to_exact(kv_type, *made_up(n_tokens, n_seen, n_head, n_head_kv, 12), 0.3, pool)


def test_no_tokens_at_all():
    q = np.empty((0, 4, 8), np.float32)
    cache = empty_cache("f32", 2, 8, 8)
    attend(ALONE, q, cache, cache, 1, np.float32(1), NO_WINDOW, NO_SINKS, np.empty_like(q))
    write_cache(q[:, :2].copy(), cache, 8, NO_WINDOW)
    assert np.isnan(cache.array).all()


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_a_single_key_gives_its_value_exactly(kv_type):
    q, k, v = made_up(1, 1, 4, 2, 12)
    cache = filled_cache(kv_type, v, 1)
    expected = values_in(cache, 1, 12)[:, 0].repeat(2, axis=0)
    np.testing.assert_array_equal(run(kv_type, q, k, v, 0.3)[0], expected)


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("order", ["rising", "falling", "mixed"])
@pytest.mark.parametrize("size", [1.0, 10.0, 100.0, 60000.0])
def test_large_scores_do_not_overflow(kv_type, order, size):
    """Scores of up to +-60000, all exact in float32, with the largest first, last or anywhere."""
    n = 1100
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
def test_scores_beyond_what_exponents_hold(kv_type):
    """The one large score has all the weight, wherever it stands."""
    for place in (0, 1, 63, 64, 511, 512, 699):
        k = np.full((700, 1, 8), -3e4, np.float32)
        k[place] = 3e4
        q = np.full((1, 1, 8), 1e30, np.float32)
        v = np.random.default_rng(place).standard_normal((700, 1, 8), dtype=np.float32)
        expected = values_in(filled_cache(kv_type, v, 700), 700, 8)[0, place]
        got = run(kv_type, q, k, v, 1.0)[0, 0]
        np.testing.assert_allclose(got, expected, rtol=1e-6)


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_equal_scores_average_all_values(kv_type):
    q, k, v = made_up(1, 700, 1, 1, 8)
    got = run(kv_type, np.zeros_like(q), k, v, 1.0)
    held = values_in(filled_cache(kv_type, v, 700), 700, 8)
    np.testing.assert_allclose(got[0, 0], held[0].mean(axis=0), atol=1e-6)


@kernel()
def _powers(x, out):
    for i in range(0, len(x), 8):
        store(out, i, exp2(load_f32x8(x, i)))


def test_powers_of_two():
    rng = np.random.default_rng(3)
    near_zero = -np.abs(rng.standard_normal(100_000)) * 10.0 ** rng.uniform(-8, 0, 100_000)
    parts = [rng.uniform(-125, 8, 400_000), near_zero, np.arange(-250, 17) / 2, np.zeros(5)]
    x = np.concatenate(parts).astype(np.float32)
    x = x[: len(x) // 8 * 8]
    got = np.empty_like(x)
    _powers(x, got)
    expected = np.exp2(x.astype(np.float64))
    assert (np.abs(got - expected) / np.spacing(expected.astype(np.float32))).max() <= 1
    whole = x == np.rint(x)
    assert whole.sum() > 130
    np.testing.assert_array_equal(got[whole], expected[whole])


def test_powers_of_two_below_all_others():
    x = np.array([-125.1, -126, -127, -150, -1e9, -3e38, -np.inf, np.nan], np.float32)
    got = np.empty_like(x)
    _powers(x, got)
    assert (got[:7] == 2.0**-125).all()
    assert np.isnan(got[7])


# What is no number, and who sees it.


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("which", ["q", "k", "v"])
@pytest.mark.parametrize("place", [5, 70, 700])
def test_what_is_not_a_number_is_not_hidden(kv_type, which, place):
    q, k, v = made_up(1, 701, 5, 1, 12)
    {"q": q[0], "k": k[place], "v": v[place]}[which][0, 3] = np.nan
    got = run(kv_type, q, k, v, 0.2)
    if which == "v":
        assert np.isnan(got[0, :, 3]).all()
    else:
        assert np.isnan(got[0, 0 if which == "q" else slice(None)]).all()
    if which == "q":
        assert not np.isnan(got[0, 1:]).any()


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("n_seen", [1, 30, 60, 62, 510])
def test_earlier_tokens_do_not_see_later_ones(pool, kv_type, n_seen):
    """Not even as zero times infinity."""
    q, k, v = made_up(9, n_seen, 6, 2, 12)
    expected = run(kv_type, q, k, v, 0.2)
    k[n_seen + 4 :] = np.nan
    v[n_seen + 4 :] = np.inf
    got = run(kv_type, q, k, v, 0.2, pool)
    np.testing.assert_array_equal(got[:5], expected[:5])
    assert not np.isfinite(got[5:]).any()


# The same bits, however the work is cut.


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize(("n_head", "n_head_kv"), [(2, 2), (4, 2), (4, 1), (5, 1), (8, 1)])
@pytest.mark.parametrize("head_dim", [12, 32, 80])
def test_a_batch_equals_one_token_at_a_time(pool, kv_type, n_head, n_head_kv, head_dim):
    for n_tokens, before in ((37, 30), (67, 480)):
        q, k, v = made_up(n_tokens, before, n_head, n_head_kv, head_dim)
        together = run(kv_type, q, k, v, 0.2, pool)
        for token in range(n_tokens):
            n_seen = before + token
            alone = run(kv_type, q[token : token + 1], k[:n_seen], v[:n_seen], 0.2)
            np.testing.assert_array_equal(alone[0], together[token])


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_batches_of_any_size_are_equal(kv_type):
    q, k, v = made_up(100, 1000, 5, 1, 20)
    whole = run(kv_type, q, k, v, 0.2)
    for n_batch in (2, 3, 13, 14, 64):  # 13 tokens are one block of queries, 14 are two
        for first in range(0, 100, n_batch):
            some = q[first : first + n_batch]
            n_positions = 1000 + first + len(some) - 1
            got = run(kv_type, some, k[:n_positions], v[:n_positions], 0.2)
            np.testing.assert_array_equal(got, whole[first : first + n_batch])


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_the_capacity_of_the_cache_changes_nothing(kv_type):
    q, k, v = made_up(2, 40, 4, 2, 12)
    expected = run(kv_type, q, k, v, 0.2)
    for unused in (0, 100):
        np.testing.assert_array_equal(run(kv_type, q, k, v, 0.2, unused=unused), expected)


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("n_tokens", [1, 9, 100])
def test_any_number_of_threads_gives_the_same_bits(kv_type, n_tokens):
    q, k, v = made_up(n_tokens, 2100, 6, 2, 16)
    expected = run(kv_type, q, k, v, 0.2)
    for n_threads in (1, 2, 3, 8):
        with ThreadPool(n_threads) as pool:
            np.testing.assert_array_equal(run(kv_type, q, k, v, 0.2, pool.state), expected)


TARGET_CASES = [(1, 700, 5, 1, 33), (9, 505, 6, 2, 20), (70, 60, 4, 2, 128), (3, 5, 1, 1, 8)]


def _write_results(path: str) -> None:
    """What this process's target makes of all cases, in buffers that end at forbidden pages."""
    results: dict[str, np.ndarray] = {"target": np.array(target.TARGET)}
    for kind in map(find_kind, KV_TYPES):
        for i, case in enumerate(TARGET_CASES):
            q, k, v = (guarded(array, "end") for array in made_up(*case))
            shape = (case[3], len(k), kind.row_length(case[4]))
            keys, values = (
                KVRows(kind, guarded(np.zeros(shape, kind.dtype), "end")) for _ in range(2)
            )
            out = guarded(np.zeros_like(q), "end")
            print(kind.name, case, flush=True)
            write_cache(k, keys, 0, NO_WINDOW)
            write_cache(v, values, 0, NO_WINDOW)
            attend(ALONE, q, keys, values, case[1], np.float32(0.2), NO_WINDOW, NO_SINKS, out)
            results[f"{kind.name}_{i}_keys"] = keys.array.copy()
            results[f"{kind.name}_{i}"] = out.copy()
    np.savez(path, **results)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", target.TARGETS)
def test_every_target_gives_the_same_bits(tmp_path, name):
    """The order of all sums is the kernel's, not the machine's."""
    if name not in target.available_targets():
        pytest.skip(f"this machine does not run {name}")
    path = tmp_path / "results.npz"
    process = subprocess.run(
        [sys.executable, __file__, str(path)],
        env=script_environment({"Q4RUN_SIMD": name}),
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert process.returncode == 0, [*process.stdout.splitlines()[-1:], process.stderr]
    with np.load(path) as results:
        assert str(results["target"]) == name
        for kv_type in KV_TYPES:
            for i, case in enumerate(TARGET_CASES):
                q, k, v = made_up(*case)
                keys = filled_cache(kv_type, k, len(k))
                np.testing.assert_array_equal(results[f"{kv_type}_{i}_keys"], keys.array)
                np.testing.assert_array_equal(results[f"{kv_type}_{i}"], run(kv_type, q, k, v, 0.2))


# From compiled code, and what is refused.


@kernel()
def _layer(pool, q, k, v, keys, values, place, out):
    write_cache(k, keys, place, NO_WINDOW)
    write_cache(v, values, place, NO_WINDOW)
    attend(pool, q, keys, values, place + 1, np.float32(0.2), NO_WINDOW, NO_SINKS, out)


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_compiled_code_can_call_it(pool, kv_type):
    q, k, v = made_up(5, 600, 4, 2, 12)
    keys, values = (filled_cache(kv_type, rows[:599], 604) for rows in (k, v))
    out = np.full_like(q, np.nan)
    _layer(pool, q, k[599:], v[599:], keys, values, 599, out)
    np.testing.assert_array_equal(out, run(kv_type, q, k, v, 0.2))


def test_too_many_tokens_are_refused():
    rows, cache = np.zeros((3, 2, 8), np.float32), empty_cache("f32", 2, 10, 8)
    with pytest.raises(ValueError, match="room"):
        write_cache(rows, cache, 8, NO_WINDOW)
    with pytest.raises(ValueError, match="room"):
        attend(
            ALONE, rows, cache, cache, 9, np.float32(1), NO_WINDOW, NO_SINKS, np.empty_like(rows)
        )
    attend(ALONE, rows, cache, cache, 8, np.float32(1), NO_WINDOW, NO_SINKS, np.empty_like(rows))


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_heads_that_do_not_fit_are_refused(kv_type):
    rows, cache = np.zeros((1, 1, 33), np.float32), empty_cache(kv_type, 1, 1, 32)
    with pytest.raises(ValueError, match="room"):
        write_cache(rows, cache, 0, NO_WINDOW)
    with pytest.raises(ValueError, match="fit"):
        attend(
            ALONE, rows, cache, cache, 1, np.float32(1), NO_WINDOW, NO_SINKS, np.empty_like(rows)
        )
    longest = np.zeros((1, 1, MAX_HEAD_DIM + 1), np.float32)
    cache = filled_cache(kv_type, longest, 1)
    with pytest.raises(ValueError, match="MAX_HEAD_DIM"):
        attend(
            ALONE,
            longest,
            cache,
            cache,
            1,
            np.float32(1),
            NO_WINDOW,
            NO_SINKS,
            np.empty_like(longest),
        )


@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_strided_arrays_are_refused(kv_type):
    """Rows are counted flat: strides would be ignored silently."""
    q, cache = np.zeros((1, 2, 32), np.float32), empty_cache(kv_type, 2, 8, 32)
    strided = KVRows(cache.kind, cache.array[:, ::2])
    with pytest.raises(TypingError):
        write_cache(q, strided, 0, NO_WINDOW)
    with pytest.raises(TypingError):
        attend(ALONE, q, strided, strided, 1, np.float32(1), NO_WINDOW, NO_SINKS, np.empty_like(q))
    with pytest.raises(TypingError):
        attend(
            ALONE,
            q,
            cache,
            cache,
            1,
            np.float32(1),
            NO_WINDOW,
            NO_SINKS,
            np.empty((1, 4, 32), np.float32)[:, ::2],
        )


# Writing to the cache.


@pytest.mark.parametrize("kv_type", KV_TYPES)
@pytest.mark.parametrize("head_dim", [1, 7, 8, 13, 16, 32, 33, 70])
def test_tokens_land_at_their_positions(kv_type, head_dim):
    rng = np.random.default_rng(3)
    cache = empty_cache(kv_type, 2, 9, head_dim)
    cache.array.fill(3)  # not zeros, also behind the head: what write_cache must fill itself
    rows = rng.standard_normal((4, 2, head_dim), dtype=np.float32)
    write_cache(rows, cache, 5, NO_WINDOW)
    assert (cache.array[:, :5] == 3).all()
    padded = -(-head_dim // 32) * 32 if kv_type == "q8_0" else -(-head_dim // 8) * 8
    written = values_in(KVRows(cache.kind, cache.array[:, 5:]), 4, padded)
    assert not written[..., head_dim:].any()
    tolerance = {"f32": 0, "f16": 2.0**-11, "q8_0": 0.0045}[kv_type]
    error = np.abs(written[..., :head_dim] - rows.transpose(1, 0, 2))
    assert (error <= tolerance * np.abs(rows).max(axis=2).T[..., None]).all()


def test_f16_rounds_to_nearest_even_and_overflows_to_infinity():
    values = np.array([1 + 2.0**-11, 1 + 3 * 2.0**-11, 2.0**-25, 65519, 65520, -1e9], np.float32)
    cache = filled_cache("f16", values.reshape(1, 1, 6), 1).array
    with np.errstate(over="ignore"):
        expected = values.astype(np.float16)
    np.testing.assert_array_equal(cache[0, 0, :6], expected.view(np.uint16))


@pytest.mark.parametrize("head_dim", [20, 32, 128])
def test_q8_0_is_quantised_as_ggml_does(head_dim):
    """Bit for bit, also where values lie halfway between two codes."""
    rng = np.random.default_rng(4)
    rows = rng.standard_normal((200, 2, head_dim), dtype=np.float32)
    rows *= np.float32(10) ** rng.uniform(-4, 4, (200, 2, 1)).astype(np.float32)
    halves = rng.integers(-253, 254, (100, 2, head_dim)).astype(np.float32) / 2
    halves[..., 0] = 127  # a scale of one: codes from -126.5 to 126.5 are halfway
    rows[:100] = halves
    rows[150] = 0
    cache = filled_cache("q8_0", rows, 200).array
    padded = np.zeros((200, 2, -(-head_dim // 32) * 32), np.float32)
    padded[..., :head_dim] = rows
    expected = gguf.quants.quantize(padded, gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_array_equal(cache, expected.transpose(1, 0, 2))


def test_q8_0_of_the_smallest_and_the_largest_numbers():
    """Scales that f16 cannot hold are zero or infinite: never a number made of nothing."""
    tiny = np.full((1, 1, 32), 1e-44, np.float32)
    assert not values_in(filled_cache("q8_0", tiny, 1), 1, 32).any()
    huge = np.full((1, 1, 32), 3e38, np.float32)
    assert np.isinf(values_in(filled_cache("q8_0", huge, 1), 1, 32)).all()


if __name__ == "__main__":
    _write_results(sys.argv[1])
