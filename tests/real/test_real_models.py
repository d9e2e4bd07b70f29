"""Trained models that people use, against llama.cpp on the same files (reference/make_real.py)."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from helpers.real_models import N_CHARACTERS, PACKAGES, WINDOW, fetch

import q4run
from q4run.generation.conversation import Conversation
from q4run.generation.perplexity import measure
from q4run.generation.sampler import Sampler, SamplingParameters
from q4run.text.windows import cut_windows

pytestmark = pytest.mark.real
STORED: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "reference" / "real.json").read_text()
)
# In logits: int8 activations on both sides, of which llama.cpp shares a scale among 256 values in
# k types and q4run among 32, decide what is nearer than this.
NEAR_TIE = 0.3
# One answer in twenty may part farther from a tie: Gemma's logits are the largest, about 19.
FARTHEST = 0.6
PERPLEXITY = 0.003  # the largest difference, as a part


@pytest.fixture(scope="module", params=PACKAGES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def path(name, tmp_path_factory):
    """The model from the folder Q4RUN_REAL_MODELS, or fetched by pip."""
    own = os.environ.get("Q4RUN_REAL_MODELS")
    folder = Path(own) if own else tmp_path_factory.getbasetemp().parent / "real"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        return fetch(name, folder)
    except subprocess.CalledProcessError:
        pytest.skip(f"pip cannot fetch {', '.join(PACKAGES[name])}")


@pytest.fixture(scope="module")
def model(path):
    with q4run.load(path, context=1024) as loaded:
        yield loaded


def greedy(model: q4run.Model, prompt_ids: list[int], n_tokens: int) -> list[int]:
    model.session.clear()
    sampler = Sampler(SamplingParameters(temperature=0))
    return list(model.session.generate(prompt_ids, sampler, model.tokenizer.stop_ids, n_tokens))


def test_greedy_answers_are_llama_cpps_or_part_at_a_near_tie(name, model):
    parted = []
    for expected in STORED[name]["greedy"]:
        prompt_ids = model.tokenize(expected["prompt"], special=True)
        assert prompt_ids == expected["prompt_ids"]
        theirs = expected["generated_ids"]
        ours = greedy(model, prompt_ids, len(theirs))
        at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
        if at is None:
            assert ours == theirs[: len(ours)]
        else:
            parted.append((expected["prompt"], at, expected["leads"][at]))
    farther = [lead for _, _, lead in parted if lead >= NEAR_TIE]
    assert len(farther) <= len(STORED[name]["greedy"]) // 20, parted
    assert all(lead < FARTHEST for lead in farther), parted


def test_perplexity_is_llama_cpps(name, model, shared_data):
    text = (shared_data / "text" / "wiki.test.raw").read_text(encoding="utf-8")[:N_CHARACTERS]
    report = measure(model.session, cut_windows(model.tokenizer, model.tokenize(text), WINDOW))
    expected = STORED[name]["perplexity"]
    assert abs(report.perplexity.value / expected - 1) < PERPLEXITY


def test_a_chat_knows_the_capital_of_france(name, model):
    """llama.cpp says the same words. Without a system message of ours both begin "L'Étoile"."""
    if model.template is None:
        pytest.skip("a base model: it has no chat template")
    model.session.clear()
    greedily, system = SamplingParameters(temperature=0), "You answer in one sentence."
    conversation = Conversation(model, greedily, system=system, max_tokens=32)
    with conversation.ask("What is the capital of France?") as turn:
        assert "".join(turn) == "The capital of France is Paris."
