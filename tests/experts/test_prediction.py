"""Guesses of the next layer's experts: which are read, when they are left, and that bits stay."""

import numpy as np
import pytest

import q4run
from q4run.bench.models.synthetic import write_model
from q4run.errors import Error
from q4run.experts.prediction import Prediction, Trial
from q4run.generation.stats import Stats
from q4run.models.shapes import Geometry

N_LAYER, N_EXPERT = 4, 8


class Clock:
    """Stands still unless told otherwise."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def logits(first: int, lead: float) -> np.ndarray:
    """Eight logits: one expert leads the next best by so many standard deviations, roughly."""
    values = np.linspace(0, 1, N_EXPERT, dtype=np.float32)
    values[first], values[-1] = 1, values[first]
    values[first] += lead * values.std()
    return values


def test_the_likeliest_come_first():
    prediction = Prediction("always", N_LAYER)
    values = np.array([0, 3, 1, 5, 2, -1], np.float32)
    assert prediction.guess(1, values, 1) == [3]
    assert prediction.guess(1, values, 3) == [3, 1, 4]
    assert prediction.guess(1, values, 6) == [3, 1, 4, 2, 0, 5]
    assert prediction.guess(1, np.zeros(6, np.float32), 2) == [0, 1]


def test_a_layer_that_is_guessed_wrongly_is_not_read_any_more():
    prediction = Prediction("always", N_LAYER)
    for _ in range(20):
        for layer in (1, 2):
            prediction.guess(layer, logits(3, 0.3), 1)
            prediction.tell(layer, [3 if layer == 2 else 4])
    assert prediction.guess(1, logits(3, 0.3), 1) == []
    assert prediction.guess(2, logits(3, 0.3), 1) == [3]


def test_only_narrow_leads_are_distrusted_where_only_they_are_wrong():
    prediction = Prediction("always", N_LAYER)
    for _ in range(20):
        prediction.guess(1, logits(3, 0.01), 1)
        prediction.tell(1, [5])
        prediction.guess(1, logits(3, 2.0), 1)
        prediction.tell(1, [3])
    assert prediction.guess(1, logits(3, 0.01), 1) == []
    assert prediction.guess(1, logits(3, 2.0), 1) == [3]


def test_a_layer_that_was_wrong_long_ago_is_trusted_again():
    prediction = Prediction("always", N_LAYER)
    for wanted, times in ((4, 2000), (3, 600)):
        for _ in range(times):
            prediction.guess(1, logits(3, 0.3), 1)
            prediction.tell(1, [wanted])
    assert prediction.guess(1, logits(3, 0.3), 1) == [3]


def test_what_was_not_guessed_teaches_nothing():
    prediction = Prediction("always", N_LAYER)
    for _ in range(50):
        prediction.tell(1, [2])
    assert prediction.guess(1, logits(3, 0.3), 1) == [3]


@pytest.mark.parametrize(("mode", "expected"), [("always", True), ("never", False)])
def test_a_fixed_mode_stays(mode, expected):
    clock = Clock()
    prediction = Prediction(mode, N_LAYER, clock)
    for _ in range(300):
        prediction.begin_pass(1)
        assert prediction.is_on is expected
        clock.now += 2.0 if prediction.is_on else 1.0
        prediction.end_pass(1)


def test_prompts_are_not_guessed_for_nor_timed():
    clock = Clock()
    prediction = Prediction("auto", N_LAYER, clock)
    for _ in range(100):
        prediction.begin_pass(7)
        assert not prediction.is_on
        clock.now += 100
        prediction.end_pass(7)
    prediction.begin_pass(1)
    assert prediction.is_on


@pytest.mark.parametrize(("with_guesses", "without"), [(1.0, 1.1), (1.1, 1.0)])
def test_auto_does_mostly_what_is_faster(with_guesses, without):
    clock, n_on = Clock(), 0
    prediction = Prediction("auto", N_LAYER, clock)
    for _ in range(2000):
        prediction.begin_pass(1)
        n_on += prediction.is_on
        clock.now += with_guesses if prediction.is_on else without
        prediction.end_pass(1)
    share = n_on / 2000
    assert 0.9 < (share if with_guesses < without else 1 - share) < 1.0


def test_auto_notices_that_things_have_changed():
    trial = Trial()
    for _ in range(1000):
        trial.add(1.0 if trial.does_it else 2.0)
    assert trial.does_it
    n_done = 0
    for _ in range(4000):
        n_done += trial.does_it
        trial.add(2.0 if trial.does_it else 1.0)
    assert n_done < 1000


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("prediction") / "model.gguf"
    geometry = Geometry(N_LAYER, 64, 4, 2, 16, 1024, N_EXPERT, 300)
    write_model(path, geometry, "q8_0", expert_type="q4_0")
    return path


@pytest.fixture
def slot_budget(path):
    """A budget with room for a few of the experts."""
    with q4run.load(path, context=64) as model:
        plan = model.plan
    return plan.dense + plan.tokenizer + plan.kv + 20 * plan.slot_bytes  # scratch takes some


@pytest.mark.parametrize("prefetch", ["auto", "always"])
def test_bits_are_the_same_with_guesses(path, slot_budget, prefetch):
    def run(mode: str) -> tuple[np.ndarray, Stats]:
        with q4run.load(path, slot_budget, context=64, prefetch=mode) as model:
            assert not model.plan.all_resident
            model.session.feed([1, 2, 3])
            rows = [model.session.step(token) for token in range(5, 60)]
            return np.array(rows), model.stats

    expected, without = run("never")
    logits, stats = run(prefetch)
    np.testing.assert_array_equal(logits, expected)
    assert without.begun_ahead == 0
    assert 0 < stats.read_ahead <= stats.begun_ahead
    assert stats.hits + stats.misses == without.hits + without.misses


def test_nothing_is_guessed_where_all_is_in_ram(path):
    with q4run.load(path, context=64, prefetch="always") as model:
        model.session.feed([1, 2, 3])
        for token in range(5, 30):
            model.session.step(token)
        assert model.stats.begun_ahead == 0


def test_an_unknown_mode_is_refused(path):
    with pytest.raises(Error, match="no prefetch 'sometimes'; choose auto or always or never"):
        q4run.load(path, prefetch="sometimes")
