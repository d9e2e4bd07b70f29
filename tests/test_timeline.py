"""The timeline of passes: where all the time went, and what it says of reads."""

from itertools import pairwise
from pathlib import Path

import pytest

import q4run
from q4run.bench.measure.speed import choose_tokens
from q4run.bench.models.synthetic import write_model
from q4run.models.shapes import Geometry
from q4run.timeline import (
    ATTENTION,
    COMPUTING,
    EMBEDDING,
    EXPERTS,
    FEED_FORWARD,
    HEAD,
    NO_LAYER,
    READ,
    WAIT,
    Pass,
    Span,
    Timeline,
)


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """4 layers, the second and the fourth with 8 experts of which one is used."""
    path = tmp_path_factory.mktemp("timeline") / "model.gguf"
    write_model(path, Geometry(4, 128, 2, 1, 64, 256, 8, 600, moe_step=2), "q8_0")
    return path


@pytest.fixture(scope="module")
def budget(path) -> int:
    """One with which some of the experts have a slot."""
    with q4run.load(path, context=64, threads=1) as model:
        plan = model.plan
    return plan.dense + plan.tokenizer + plan.kv + 8 * plan.slot_bytes  # scratch takes some


def laps(timeline: Timeline, of: Pass) -> list[Span]:
    """What the computing thread did in a pass, without the waits in it."""
    return [
        span
        for span in timeline.spans
        if span.lane == COMPUTING and span.kind != WAIT and of.begin <= span.begin < of.end
    ]


@pytest.mark.parametrize("prefetch", ["never", "always"])
def test_a_pass_is_accounted_for_to_the_last_nanosecond(path, budget, prefetch):
    prompt, continuation = choose_tokens(path, 16, 12)
    with q4run.load(path, budget, context=64, threads=1, prefetch=prefetch) as model:
        assert 0 < model.plan.n_slots < 16
        before = model.stats
        with model.recording() as timeline:
            model.session.feed(prompt)
            for token in continuation:
                model.session.step(token)
        done = model.stats - before
        model.session.step(1)
    assert [one.n_tokens for one in timeline.passes] == [16] + [1] * 12
    assert timeline.n_dropped == 0
    batch = [(EMBEDDING, NO_LAYER)]
    for layer, kind in enumerate((FEED_FORWARD, EXPERTS) * 2):
        batch += [(ATTENTION, layer), (kind, layer)]
    for one in timeline.passes:
        mine = laps(timeline, one)
        n_batches = -(-one.n_tokens // model.plan.n_batch)
        whole = batch * n_batches + [(HEAD, NO_LAYER)]
        assert [(span.kind, span.layer) for span in mine] == whole
        assert all(earlier.end == later.begin for earlier, later in pairwise(mine))
        assert (mine[0].begin, mine[-1].end) == (one.begin, one.end)
    assert all(earlier.end <= later.begin for earlier, later in pairwise(timeline.passes))
    experts = [span for span in timeline.spans if span.kind == EXPERTS]
    waits = [span for span in timeline.spans if span.kind == WAIT]
    assert waits
    for wait in waits:
        (around,) = [e for e in experts if e.begin <= wait.begin and wait.end <= e.end]
        assert (around.layer, around.lane) == (wait.layer, wait.lane)
    assert all(earlier.end <= later.begin for earlier, later in pairwise(waits))
    assert sum(wait.end - wait.begin for wait in waits) == pytest.approx(1e9 * done.wait_s)
    reads = [span for span in timeline.spans if span.kind == READ]
    assert sum(read.n_bytes for read in reads) == done.bytes_read > 0
    assert sum(read.end - read.begin for read in reads) == pytest.approx(1e9 * done.read_s)
    assert {read.layer for read in reads} <= {1, 3}
    assert {read.expert for read in reads} <= set(range(8))
    for lane in {read.lane for read in reads}:
        assert lane > COMPUTING
        alone = sorted(read[3:5] for read in reads if read.lane == lane)
        assert all(earlier[1] <= later[0] for earlier, later in pairwise(alone))


def test_nothing_is_recorded_unless_somebody_asks(path, budget):
    with q4run.load(path, budget, context=64, threads=1) as model:
        with model.recording() as timeline:
            assert model.store.events.timeline is timeline
        model.session.feed([1, 2, 3])
        assert model.store.events.timeline is None
    assert timeline.spans == timeline.passes == []


def test_logits_of_a_whole_prompt_count_as_head(path):
    with q4run.load(path, context=64, threads=1) as model, model.recording() as timeline:
        model.logits([1, 2, 3])
    assert [span.kind for span in timeline.spans][-2:] == [HEAD, HEAD]
    assert len(timeline.passes) == 1


def test_a_pass_that_fails_is_not_told(path):
    with q4run.load(path, context=4, threads=1) as model, model.recording() as timeline:
        with pytest.raises(q4run.Error):
            model.session.feed([1] * 5)
        model.session.feed([1, 2])
    assert [one.n_tokens for one in timeline.passes] == [2]


def test_it_does_not_grow_without_end():
    timeline = Timeline(most_spans=3)
    timeline.begin_pass(1)
    for _ in range(5):
        timeline.lap(ATTENTION, 0)
    timeline.end_pass()
    assert len(timeline.spans) == 3
    assert timeline.n_dropped == 2
    assert timeline.passes[0].end >= timeline.spans[-1].end
