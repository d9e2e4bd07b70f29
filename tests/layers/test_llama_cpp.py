"""Greedy text beside llama.cpp's from the same file (stored by reference/make_llama_cpp.py)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import q4run
from q4run.convert import convert
from q4run.generation.sampler import Sampler, SamplingParameters

STORED: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "reference" / "llama_cpp.json").read_text()
)
# Where the two part, ours is the best in float32 on the same values, or below it by less than this
# (in logits of about 10): int8 activations, of which llama.cpp shares a scale among 256 and q4run
# among 32, decide near ties, the router's as well.
NEAR_TIE = 0.06
# Of the questions to each file: at least so many answers are the same to the last token.
LEAST_EQUAL = 6
TYPES = ["f32", "f16", "bf16", "q8_0", "q4_0", "tq1_0", "tq2_0", "q8_0+q4_0"]


def greedy(model: q4run.Model, prompt_ids: list[int], n_tokens: int) -> list[int]:
    sampler = Sampler(SamplingParameters(temperature=0))
    return list(model.session.generate(prompt_ids, sampler, model.tokenizer.stop_ids, n_tokens))


@pytest.mark.parametrize("name", ["stories260K.gguf", "stories260K-gguf-v1.gguf"])
def test_stories_are_llama_cpps(name, shared_data):
    expected = STORED["stories"]["stories260K.gguf"]
    with q4run.load(shared_data / "weights" / name) as model:
        prompt_ids = model.tokenize(expected["prompt"])
        assert prompt_ids == expected["prompt_ids"]
        ids = greedy(model, prompt_ids, len(expected["generated_ids"]))
        assert ids == expected["generated_ids"]
        text = "".join(model.generate(expected["prompt"], max_tokens=len(ids)))
    assert text == expected["text"]


@pytest.fixture(scope="module")
def path_of(shared_data, tmp_path_factory):
    """The trained model converted to a type, or to dense+expert types; each once."""
    folder = tmp_path_factory.mktemp("types")

    def convert_to(name: str) -> Path:
        dense, _, experts = name.partition("+")
        path = folder / f"{name}.gguf"
        convert(
            shared_data / "weights" / "tiny-llama4", path, type=dense, expert_type=experts or None
        )
        return path

    return convert_to


def answers(name: str) -> Iterator[dict[str, Any]]:
    prefix = f"{name}.gguf: "
    yield from (entry for key, entry in STORED["answers"].items() if key.startswith(prefix))


def exact_lead(path: Path, ids: list[int], ours: int, theirs: int) -> float:
    """By how much the next token ``ours`` leads ``theirs`` with the file's values in float32."""
    exact = path.with_suffix(".f32.gguf")
    convert(path, exact, type="f32", force=True)
    with q4run.load(exact, context=512, kv_type="f32") as model:
        logits = model.logits(ids)[-1]
    return float(logits[ours] - logits[theirs])


@pytest.mark.parametrize("name", TYPES)
def test_a_converted_file_gives_llama_cpps_text(name, path_of):
    path = path_of(name)
    n_equal = n_answers = 0
    with q4run.load(path, context=512, kv_type="f32") as model:
        for expected in answers(name):
            n_answers += 1
            prompt_ids = expected["prompt_ids"]
            ids = greedy(model, prompt_ids, 60)
            theirs = expected["generated_ids"]
            if ids == theirs[: len(ids)]:
                n_equal += 1
                continue
            pairs = enumerate(zip(ids, theirs, strict=False))
            first = next(i for i, (ours, their) in pairs if ours != their)
            before = prompt_ids + ids[:first]
            lead = exact_lead(path, before, ids[first], theirs[first])
            assert lead > -NEAR_TIE, expected["question"]
    assert n_answers == 8
    assert n_equal >= LEAST_EQUAL
