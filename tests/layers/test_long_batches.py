"""Long prompts of streamed models run in longer batches, in memory that slots lend."""

import sys

import numpy as np
import psutil
import pytest

import q4run
from q4run import budget
from q4run.bench.models.synthetic import Geometry, write_model
from q4run.model import Model

N_LAYER, N_EXPERT, CONTEXT = 3, 16, 300
SHORT, LONG = 16, 64


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("long") / "model.gguf"
    geometry = Geometry(N_LAYER, 64, 4, 2, 16, 1024, N_EXPERT, 300)
    write_model(path, geometry, "q8_0", expert_type="q4_0")
    return path


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr(budget, "_BATCH_SIZES", (SHORT, 4, 1))
    monkeypatch.setattr(budget, "_LONG_BATCH", LONG)


def streamed(path, n_slots: int, context: int = CONTEXT) -> Model:
    with q4run.load(path, context=context) as model:
        plan = model.plan
    assert plan.all_resident
    ram_budget = plan.total - plan.slots + n_slots * plan.slot_bytes
    return q4run.load(path, ram_budget, context=context)


def experts_in_ram(model: Model) -> int:
    return int(np.count_nonzero(model.store.slots.addresses))


@pytest.mark.parametrize("n_tokens", [1, SHORT, SHORT + 1, LONG, LONG + 1, 150, 2 * LONG + SHORT])
def test_a_long_prompt_reads_every_expert_once_a_long_batch(path, small_batches, n_tokens):
    ids = [token % 300 for token in range(7, 7 + n_tokens)]
    with q4run.load(path, context=CONTEXT) as resident:
        assert resident.plan.n_lent_slots == 0
        assert resident.plan.n_long_batch == SHORT
        expected = resident.logits(ids)
    with streamed(path, 40) as model:
        plan = model.plan
        assert 0 < plan.n_lent_slots <= plan.n_slots // 4
        np.testing.assert_array_equal(model.logits(ids), expected)
        n_batches = -(-n_tokens // (LONG if n_tokens > SHORT else SHORT))
        wanted = model.stats.hits + model.stats.misses
        assert wanted <= n_batches * N_LAYER * N_EXPERT
        n_slots = plan.n_slots - (plan.n_lent_slots if n_tokens > SHORT else 0)
        assert model.store.slots.n_slots == n_slots
        assert experts_in_ram(model) <= n_slots
        model.session.step(3)
        assert model.store.slots.n_slots == plan.n_slots  # what was lent is back


def test_where_nothing_is_streamed_or_slots_are_few_nothing_is_lent(path, small_batches):
    with streamed(path, 2) as model:
        assert (model.plan.n_lent_slots, model.plan.n_long_batch) == (0, model.plan.n_batch)
        assert len(model.logits(list(range(100)))) == 100
    with streamed(path, 24, context=SHORT) as model:  # no prompt is longer
        assert model.plan.n_lent_slots == 0


def test_what_is_lent_does_not_pass_for_short_memory(path, small_batches):
    heard: list[int] = []
    with streamed(path, 40) as model:
        model.tell_of_slots(heard.append)
        for _ in range(3):
            model.logits(list(range(150)))
            model.session.step(3)
    assert heard == []


@pytest.mark.skipif(sys.platform != "linux", reason="others keep freed pages for a while")
def test_borrowed_memory_is_given_back(tmp_path):
    """With real sizes: 512 tokens a batch, 1024 where they are more."""
    path = tmp_path / "wide.gguf"
    write_model(path, Geometry(2, 1024, 8, 2, 128, 2048, 16, 300), "q8_0", expert_type="q8_0")
    with q4run.load(path, context=1100) as resident:
        plan = resident.plan
    ram_budget = plan.total - plan.slots + 24 * plan.slot_bytes
    with q4run.load(path, ram_budget, context=1100) as model:
        assert model.plan.n_lent_slots
        process, before = psutil.Process(), psutil.Process().memory_info().rss
        model.session.feed([token % 300 for token in range(1050)])
        model.session.step(1)
        grown = process.memory_info().rss - before
        assert grown < model.plan.slots + model.plan.kv + 30_000_000
