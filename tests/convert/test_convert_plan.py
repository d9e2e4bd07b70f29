"""A conversion is a plan, then a writing: what the first says, the second does."""

import pytest
from helpers.tiny_checkpoints import make_checkpoint

from q4run.convert import ConversionOptions, plan_conversion, summarize, write
from q4run.convert.source.source import open_source
from q4run.convert.types.fit import measure_fit
from q4run.convert.types.recipe import make_recipe
from q4run.errors import BudgetError, Error, UnsupportedError


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint("mixtral_top_2", tmp_path_factory.mktemp("mixtral") / "checkpoint")


@pytest.mark.parametrize(
    "options", [{"type": "q8_0"}, {"fit": 10**6}, {"type": "q8_0", "split_max_size": 100_000}]
)
def test_what_is_written_is_what_was_planned(options, checkpoint, tmp_path):
    plan = plan_conversion(checkpoint, tmp_path / "model.gguf", ConversionOptions(**options))
    assert list(tmp_path.iterdir()) == []
    foretold, done = summarize(plan), write(plan)
    assert (foretold.written, done.written) == (False, True)
    assert foretold.counts == done.counts
    assert foretold.notes == done.notes
    assert done.seconds > plan.seconds
    assert sorted(tmp_path.iterdir()) == [part.path for part in plan.parts]
    for part in plan.parts:
        content = part.path.read_bytes()
        assert content.startswith(part.header)
        assert len(content) == part.n_bytes


def test_too_little_memory_is_told_before_anything_is_written(checkpoint, tmp_path):
    options = {"type": "q8_0", "max_ram": 10**6}
    with pytest.raises(BudgetError, match="allow it --max-ram"):
        plan_conversion(checkpoint, tmp_path / "model.gguf", ConversionOptions(**options))
    plan_conversion(checkpoint, None, ConversionOptions(**options, dry_run=True))


def test_a_recipe_and_a_size_choose_types_by_the_same_call(checkpoint):
    tensors = open_source(checkpoint).tensors
    for types in (make_recipe("q8_0", None, None, ()), measure_fit(10**6, tensors, {})):
        planned, notes = types.plan(tensors, lambda planned: 4096)
        assert [one.tensor.name for one in planned] == [tensor.name for tensor in tensors]
        assert notes == []


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({}, Error, "no type is given"),
        ({"type": "q9_9"}, UnsupportedError, "q9_9"),
        ({"recipe": "tasty"}, UnsupportedError, "tasty"),
        ({"type": "q8_0", "tensor_types": [("(", "f16")]}, Error, "no pattern"),
        ({"type": "q8_0", "fit": 10**6}, Error, "either types or the size"),
    ],
)
def test_options_are_checked_before_a_source_is_opened(options, kind, said):
    with pytest.raises(kind, match=said):
        ConversionOptions(**options)
