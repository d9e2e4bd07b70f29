"""Sampling: what may be drawn, how often, and what is refused."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from q4run.errors import Error
from q4run.generation.sampler import Sampler, SamplingParameters
from q4run.kernels.attention.kinds import find_kind
from q4run.kernels.sampling.choose import choose
from q4run.kernels.sampling.cut import cut
from q4run.kernels.sampling.weights import weigh, weight_bits
from q4run.kernels.warmup import warm_up
from tests.helpers.sampling import PlainSampler, penalised


def draw(logits: Sequence[float], times: int = 1, **options: Any) -> Counter[int]:
    """How often each token is drawn, seed 1 unless given."""
    sampler = Sampler(SamplingParameters(**{"seed": 1, "temperature": 1.0, **options}))
    array = np.asarray(logits, np.float32)
    return Counter(sampler.sample(array, []) for _ in range(times))


def softmax(logits: Sequence[float], temperature: float = 1.0) -> np.ndarray:
    scaled = np.asarray(logits, np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    return weights / weights.sum()


def assert_distribution(counts: Counter[int], wanted: np.ndarray) -> None:
    """Pearson's chi-square, with a bound that a right sampler goes over once in 100,000 times."""
    times = counts.total()
    assert all(wanted[token] > 0 for token in counts)
    observed = np.array([counts[token] for token in range(len(wanted))])
    likely = wanted > 0
    expected = wanted[likely] * times
    assert expected.min() > 5
    statistic = float(((observed[likely] - expected) ** 2 / expected).sum())
    freedom = int(likely.sum()) - 1
    assert statistic < freedom + 4.5 * np.sqrt(2 * freedom) + 14


LOGITS = [1.0, -0.5, 2.0, 0.0, 2.0, -1.0, 1.5, 0.5]


# How often


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_softmax_at_a_temperature(temperature: float) -> None:
    counts = draw(LOGITS, 20_000, temperature=temperature)
    assert_distribution(counts, softmax(LOGITS, temperature))


def test_the_bound_can_fail() -> None:
    counts = draw(LOGITS, 20_000, temperature=1.0)
    with pytest.raises(AssertionError):
        assert_distribution(counts, softmax(LOGITS, 1.1))


def test_filters_see_the_probabilities_before_the_temperature() -> None:
    # 0.5, 0.3, 0.15, 0.05: together 0.8 at the second one. At temperature 3 it would take three.
    logits = np.log([0.5, 0.3, 0.15, 0.05])
    counts = draw(logits, 20_000, top_p=0.79, temperature=3.0)
    assert_distribution(counts, np.append(softmax(logits[:2], 3.0), [0, 0]))


def test_top_p_sees_what_top_k_left() -> None:
    # Of all, the first two reach 0.55; of the best three, where they have 0.5 of 0.9, it is the
    # first two as well, but 0.5 alone is then 0.555.
    logits = np.log([0.5, 0.25, 0.15, 0.1])
    assert set(draw(logits, 200, top_p=0.55)) == {0, 1}
    assert set(draw(logits, 200, top_p=0.55, top_k=3)) == {0}


def test_min_p_is_a_share_of_the_best() -> None:
    logits = np.log([0.4, 0.21, 0.19, 0.2])
    assert set(draw(logits, 400, min_p=0.5)) == {0, 1, 3}
    assert set(draw(logits, 400, min_p=0.51)) == {0, 1}
    assert set(draw(logits, 400, min_p=1.0)) == {0}


def test_a_large_vocabulary() -> None:
    # Four of 200,000 tokens share nearly everything, at both ends and in the middle.
    best = [0, 99_999, 100_000, 199_999]
    logits = np.random.default_rng(0).uniform(-31.0, -30.0, 200_000)
    logits[best] = [0.0, 0.5, 1.0, 1.5]
    wanted = np.zeros(len(logits))
    wanted[best] = softmax([0.0, 0.5, 1.0, 1.5])
    for options in ({"top_k": 4}, {"top_p": 0.9999999}, {"min_p": 0.01}):
        assert_distribution(draw(logits, 200, **options), wanted)


def test_top_p_of_an_even_distribution_takes_a_share_of_it() -> None:
    counts = draw(np.zeros(10_000), 500, top_p=0.3)
    assert 2_900 < max(counts) < 3_000
    assert len(counts) > 400


# What is chosen at the borders


@pytest.mark.parametrize(
    "options",
    [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 0.0}, {"min_p": 1.0}, {"temperature": 1e-300}],
)
def test_only_the_best(options: dict[str, Any]) -> None:
    assert draw([1.0, 3.0, 2.0, -np.inf], 100, **options) == {1: 100}


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_k": 1}, {"top_p": 0.0}])
def test_the_lowest_id_among_equals(options: dict[str, Any]) -> None:
    assert draw([0.0, 5.0, 1.0, 5.0, 5.0], 50, **options) == {1: 50}


def test_top_k_among_equals() -> None:
    assert set(draw([1.0, 2.0, 1.0, 1.0, 3.0], 500, top_k=3)) == {0, 1, 4}
    assert set(draw([1.0] * 6, 500, top_k=4)) == {0, 1, 2, 3}
    assert set(draw([1.0] * 6, 500, top_p=0.5)) == {0, 1, 2}


@pytest.mark.parametrize(
    "options", [{}, {"top_k": 8}, {"top_k": 1000}, {"top_p": 1.0}, {"min_p": 0.0}]
)
def test_filters_that_are_off(options: dict[str, Any]) -> None:
    assert_distribution(draw(LOGITS, 10_000, **options), softmax(LOGITS))


@pytest.mark.parametrize("options", [{}, {"temperature": 0.0}, {"top_k": 5, "top_p": 0.5}])
def test_a_vocabulary_of_one(options: dict[str, Any]) -> None:
    assert draw([-7.0], 10, **options) == {0: 10}


@pytest.mark.parametrize("options", [{}, {"top_k": 3}, {"top_p": 0.999999}, {"min_p": 1e-9}])
def test_impossible_tokens_are_never_drawn(options: dict[str, Any]) -> None:
    logits = [-np.inf, 0.0, -np.inf, 0.0, -np.inf]
    assert set(draw(logits, 500, **options)) == {1, 3}


@pytest.mark.parametrize("high", [60_000.0, 3e38])
def test_large_logits(high: float) -> None:
    assert draw([-high, high, 0.0], 20) == {1: 20}
    assert set(draw([high, high, -high], 100)) == {0, 1}


# Repetition


def test_repetition_penalty() -> None:
    logits = np.array([2.0, 1.9, -1.0, -1.1], np.float32)
    sampler = Sampler(SamplingParameters(temperature=0.0, repetition_penalty=2.0))
    assert sampler.sample(logits, [3]) == 0
    assert sampler.sample(logits, [0]) == 1
    assert sampler.sample(logits, [0, 0, 0]) == 1, "a token is punished once, however often it came"
    assert sampler.sample(logits, [0, 1]) == 0
    negative = np.array([-1.0, -1.5], np.float32)
    assert sampler.sample(negative, [0]) == 1, "a negative logit is multiplied"
    assert sampler.sample(np.array([-np.inf, 0.0], np.float32), [0, 1]) == 1


def test_repetition_window() -> None:
    logits = np.array([2.0, 1.9, 0.0], np.float32)
    history = [0, 2, 2]
    for window, token in ((3, 1), (64, 1), (2, 0), (0, 0)):
        parameters = SamplingParameters(
            temperature=0.0, repetition_penalty=2.0, repetition_window=window
        )
        assert Sampler(parameters).sample(logits, history) == token


@pytest.mark.parametrize("history", [[-1], [4], [0, 2**40]])
def test_a_history_from_elsewhere(history: list[int]) -> None:
    sampler = Sampler(SamplingParameters(repetition_penalty=1.1))
    with pytest.raises(Error, match="history"):
        sampler.sample(np.zeros(4, np.float32), history)


# The same again


def test_same_seed_same_tokens() -> None:
    logits = np.random.default_rng(0).standard_normal(1000).astype(np.float32)

    def tokens(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingParameters(temperature=1.0, seed=seed))
        return [sampler.sample(logits, []) for _ in range(30)]

    assert tokens(5) == tokens(5)
    assert tokens(5) != tokens(6)
    assert tokens(None) != tokens(None)
    assert len(set(tokens(5))) > 20


def test_the_input_stays_as_it_is() -> None:
    logits = np.asarray(LOGITS, np.float32)
    logits.flags.writeable = False
    parameters = SamplingParameters(
        top_k=5, top_p=0.9, min_p=0.01, repetition_penalty=1.5, repetition_window=3
    )
    token = Sampler(parameters).sample(logits, [2, 4])
    assert isinstance(token, int)
    assert logits.tolist() == LOGITS


# What is refused


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    "logits",
    [[0.0, np.nan], [np.nan, 9.0], [1.0, np.inf], [-np.inf, -np.inf], [], [[1.0, 2.0]]],
)
def test_logits_that_leave_no_choice(logits: list[float], temperature: float) -> None:
    sampler = Sampler(SamplingParameters(temperature=temperature))
    with pytest.raises(Error, match="no token can be chosen"):
        sampler.sample(np.array(logits, np.float32), [])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", np.nan),
        ("temperature", np.inf),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_k", -1),
        ("top_k", 1.5),
        ("top_p", -0.01),
        ("top_p", 1.01),
        ("top_p", np.nan),
        ("min_p", -1),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("repetition_penalty", -1.0),
        ("repetition_penalty", np.inf),
        ("repetition_window", -1),
        ("repetition_window", 2.0),
        ("seed", -1),
        ("seed", 0.5),
        ("seed", "x"),
    ],
)
def test_parameters_that_make_no_sense(name: str, value: Any) -> None:
    with pytest.raises(Error, match=f"^{name} is "):
        SamplingParameters(**{name: value})


def test_parameters_of_numpy() -> None:
    parameters = SamplingParameters(temperature=np.float32(0.5), top_k=np.int64(3), seed=2**70)
    assert Sampler(parameters).sample(np.zeros(4, np.float32), []) in range(3)


# The same tokens as a sampler that sorts, and the parts of the compiled one

N_VOCABS = (1, 2, 3, 63, 64, 65, 127, 1000, 4099, 30_000)


def any_logits(rng: np.random.Generator, n: int) -> np.ndarray:
    """Peaked, flat, tied, with tokens that cannot be, or in a corner of float32's range."""
    kind = rng.integers(7)
    normal = rng.standard_normal(n)
    if kind == 0:
        logits = normal * rng.choice([0.01, 1.0, 3.0, 10.0, 300.0])
    elif kind == 1:
        logits = np.round(normal * rng.choice([0.5, 2.0, 5.0]))  # ties, and both zeros
    elif kind == 2:
        logits = np.full(n, rng.choice([0.0, -0.0, 7.5, -30.0, 1e30, -1e-40]))
    elif kind == 3:
        logits = normal - 20
        logits[rng.integers(0, n, 5)] += 15
    elif kind == 4:
        logits = np.where(rng.random(n) < 0.5, -np.inf, normal)
    elif kind == 5:
        logits = normal * rng.choice([1e-42, 1e-38, 1e35, 5e37])
    else:
        logits = np.where(rng.random(n) < 0.5, 0.0, -0.0)
    if not np.isfinite(logits).any():
        logits[rng.integers(n)] = 0
    return logits.astype(np.float32)


def any_parameters(rng: np.random.Generator, n: int) -> SamplingParameters:
    return SamplingParameters(
        temperature=float(rng.choice([0.0, 1e-300, 1e-3, 0.6, 0.8, 1.0, 2.0, 50.0])),
        top_k=int(rng.choice([0, 0, 0, 1, 2, 40, n // 2, n - 1, n, n + 1, 2**70 % 10**9])),
        top_p=float(rng.choice([0.0, 0.1, 0.5, 0.9, 0.95, 0.9999, 1.0, 1.0, rng.random()])),
        min_p=float(rng.choice([0.0, 0.0, 1e-9, 0.01, 0.05, 0.5, 1.0, rng.random()])),
        repetition_penalty=float(rng.choice([1.0, 1.0, 1.1, 0.5, 3.0])),
        repetition_window=int(rng.choice([0, 1, 64, 1000])),
        seed=int(rng.integers(2**32)),
    )


@pytest.mark.parametrize("n", N_VOCABS)
def test_the_tokens_of_a_sampler_that_sorts(n: int) -> None:
    rng = np.random.default_rng(n)
    n_seen = 0
    for _ in range(1200 if n < 2000 else 150):
        parameters = any_parameters(rng, n)
        compiled, plain = Sampler(parameters), PlainSampler(parameters)
        for _ in range(3):
            logits = any_logits(rng, n)
            history = rng.integers(0, n, rng.integers(0, 100)).tolist()
            if not np.isfinite(penalised(logits, history, parameters).max()):
                continue
            token = compiled.sample(logits, history)
            assert token == plain.sample(logits, history), parameters
            n_seen += 1
    assert n_seen > 300


def test_nothing_of_one_choice_is_left_in_the_next() -> None:
    rng = np.random.default_rng(9)
    parameters = SamplingParameters(
        temperature=0.7, top_p=0.9, min_p=0.01, repetition_penalty=1.2, seed=4
    )
    compiled, plain = Sampler(parameters), PlainSampler(parameters)
    history: list[int] = []
    for step in range(400):
        logits = any_logits(rng, (500, 3000)[step % 2])
        if not np.isfinite(penalised(logits, history, parameters).max()):
            continue
        history.append(compiled.sample(logits, history))
        assert history[-1] == plain.sample(logits, history[:-1])
        history[-1] %= 500


def test_the_first_choice_finds_its_kernel_warm() -> None:
    warm_up([], find_kind("f16"))
    n_compiled = len(choose.signatures)
    for options in ({}, {"top_k": np.int64(2), "top_p": 1, "min_p": 1, "temperature": 1}):
        draw(LOGITS, **options)
    assert len(choose.signatures) == n_compiled == 1


@pytest.mark.parametrize("where", [0, 1, 63, 64, 4096])
@pytest.mark.parametrize("nan", [np.nan, -np.nan])
@pytest.mark.parametrize("options", [{}, {"top_k": 40}, {"top_p": 0.9, "min_p": 0.01}])
def test_one_nan_of_many_logits(where: int, nan: float, options: dict[str, Any]) -> None:
    logits = np.zeros(4097, np.float32)
    logits[where] = nan
    with pytest.raises(Error, match="the largest logit is nan"):
        Sampler(SamplingParameters(**options)).sample(logits, [])


@pytest.mark.parametrize("n", [1, 5, 64, 129, 5000])
def test_the_cut_is_what_sorting_finds(n: int) -> None:
    rng = np.random.default_rng(n)
    for _ in range(300):
        values = any_logits(rng, n)
        of_value = {value: int(rng.integers(1, 2**40)) for value in np.unique(values).tolist()}
        weights = np.array([of_value[value] for value in values.tolist()])
        order = np.argsort(-values, kind="stable")
        sums = np.cumsum(weights[order])
        for wanted in (1, int(sums[-1]), int(rng.integers(1, sums[-1] + 1))):
            last = order[np.searchsorted(sums, wanted)]
            assert cut(values, weights, wanted) == (values[last], last)


@pytest.mark.parametrize("n", [1, 1000, 202_048, 262_144, 1_000_000])
def test_weights_are_exponentials_to_the_last_place(n: int) -> None:
    bits = weight_bits(n)
    assert n * 2**bits < 2**63
    logits = np.random.default_rng(n).uniform(-45, 3.5, 4001).astype(np.float32)
    logits[:4] = [3.5, -np.inf, -1e38, 3.5 - 64.5]
    for temperature in (0.6, 1.0, 1e-300, 1e300):
        weights = np.empty(4001, np.int64)
        weigh(logits, np.float32(3.5), temperature, bits, weights)
        with np.errstate(over="ignore"):
            wanted = np.exp((logits.astype(np.float64) - 3.5) / temperature) * 2.0**bits
        assert weights[0] == 2**bits
        assert np.abs(weights - wanted).max() <= 0.5 + 2.0 ** (bits - 50)
