"""Logits against the stored vectors of transformers, and streamed against resident, bit for bit."""

from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_checkpoints import CASES, Case, make_checkpoint

import q4run
from q4run.budget import _batch_bytes
from q4run.convert import convert

REFERENCE = Path(__file__).parents[1] / "reference"
TOLERANCE = 1e-4  # largest error over largest logit


@pytest.fixture(scope="module")
def stored_logits():
    with np.load(REFERENCE / "logits.npz") as stored:
        return {case.name: stored[case.name] for case in CASES}


@pytest.fixture(scope="module")
def gguf_of(tmp_path_factory):
    """Makes the f32 GGUF of a case, once each."""
    made: dict[str, Path] = {}

    def make(case: Case) -> Path:
        if case.name not in made:
            folder = tmp_path_factory.mktemp(case.name)
            checkpoint = make_checkpoint(case.name, folder / "checkpoint")
            made[case.name] = folder / "model.gguf"
            convert(checkpoint, made[case.name], type="f32")
        return made[case.name]

    return make


def error_of(logits: np.ndarray, reference: np.ndarray) -> float:
    return float(np.abs(logits - reference).max() / np.abs(reference).max())


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_logits_match_transformers(case, gguf_of, stored_logits):
    with q4run.load(gguf_of(case), context=64, kv_type="f32") as model:
        logits = model.logits(case.token_ids)
    assert logits.dtype == np.float32
    assert error_of(logits, stored_logits[case.name]) < TOLERANCE


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_token_by_token_is_the_same_bits_as_in_batches(case, gguf_of):
    with q4run.load(gguf_of(case), context=64, kv_type="f32") as model:
        together = model.logits(case.token_ids)
        model.session.clear()
        model.session.feed(case.token_ids[:1])
        alone = [model.session.step(token) for token in case.token_ids[1:]]
    assert np.array_equal(together[1:], np.array(alone))


def budget_of_two_experts(model: q4run.Model) -> int:
    """A budget with room for two experts, and for batches of some tokens."""
    plan = model.plan
    assert plan.all_resident
    without = plan.total - plan.slots - _batch_bytes(model.config, plan.n_batch)
    return without + int(2.8 * plan.slot_bytes)


MOE_CASES = [case for case in CASES if case.family != "llama"]


@pytest.mark.parametrize("kv_type", ["f16", "f32"])
@pytest.mark.parametrize("case", MOE_CASES, ids=lambda case: case.name)
def test_streamed_is_the_same_bits_as_resident(case, kv_type, gguf_of):
    path = gguf_of(case)
    with q4run.load(path, context=64, kv_type=kv_type) as model:
        resident = model.logits(case.token_ids)
        again = model.logits(case.token_ids)
        assert model.stats.hits > 0
        n_experts = model.plan.n_experts
        budget = budget_of_two_experts(model)
    with q4run.load(path, context=64, kv_type=kv_type, ram_budget=budget) as model:
        assert model.plan.n_slots == 2 < n_experts
        assert model.plan.n_batch > 1
        streamed = model.logits(case.token_ids)
        assert model.stats.bytes_read > 0
    assert np.array_equal(resident, again)
    assert np.array_equal(resident, streamed)


@pytest.mark.parametrize("io", ["pread", "direct", "mmap"])
def test_every_io_method_gives_the_same_bits(io, gguf_of):
    case = next(case for case in CASES if case.name == "llama4_scout")
    with q4run.load(gguf_of(case), context=64, io=io, ram_budget="1G") as model:
        resident = model.logits(case.token_ids)
        budget = budget_of_two_experts(model)
    with q4run.load(gguf_of(case), context=64, io=io, ram_budget=budget) as model:
        assert model.plan.n_slots == 2
        assert np.array_equal(resident, model.logits(case.token_ids))


@pytest.mark.parametrize("name", ["llama4_scout", "mixtral_top_2", "llama_mha_odd"])
def test_any_number_of_threads_gives_the_same_bits(name, gguf_of, monkeypatch):
    """More than this machine has cores, too; with every expert in RAM and with two."""
    monkeypatch.setattr("q4run.loading.choose_threads", lambda threads: threads)
    case = next(case for case in CASES if case.name == name)
    path, logits = gguf_of(case), []
    with q4run.load(path, context=64, threads=1) as model:
        logits.append(model.logits(case.token_ids))
        budgets = [None, budget_of_two_experts(model)] if model.plan.n_experts else [None]
    for threads in (2, 5):
        for budget in budgets:
            with q4run.load(path, context=64, threads=threads, ram_budget=budget) as model:
                logits.append(model.logits(case.token_ids))
                model.session.clear()
                model.session.feed(case.token_ids[:-1])
                last = model.session.step(case.token_ids[-1])
                assert np.array_equal(last, logits[0][-1])
    assert all(np.array_equal(logits[0], other) for other in logits[1:])


def test_the_trained_model_matches_transformers(shared_data, tmp_path):
    checkpoint = shared_data / "weights" / "tiny-llama4"
    path = tmp_path / "tiny.gguf"
    convert(checkpoint, path, type="f32")
    with (
        np.load(REFERENCE / "tiny_llama4.npz") as stored,
        q4run.load(path, context=1024, kv_type="f32") as model,
    ):
        for prompt in ("chat", "valid"):
            ids = stored[f"{prompt}_ids"].tolist()
            logits = model.logits(ids)
            positions, columns = stored[f"{prompt}_positions"], stored[f"{prompt}_columns"]
            some = logits[np.ix_(positions, columns)]
            assert error_of(some, stored[f"{prompt}_logits"]) < TOLERANCE
            assert error_of(logits[-1], stored[f"{prompt}_last"]) < TOLERANCE
