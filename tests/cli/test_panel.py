"""The live panel's lines, from made-up figures: what they say, and that they fit."""

from dataclasses import replace

import numpy as np
import pytest
from helpers.chat_models import make_chat_model
from rich.cells import cell_len
from rich.text import Text

import q4run
from q4run.cli.meter import Meter
from q4run.cli.panel import Figures, panel
from q4run.experts.use import ExpertUse
from q4run.generation.completion import Completion
from q4run.generation.sampler import Sampler, SamplingParameters

FIGURES = Figures(
    prompt_done=24,
    prompt_tokens=24,
    tokens=71,
    rate_now=12.34,
    rate=11.8,
    hit_rate=0.872,
    read_rate=4.2e8,
    wait_share=0.31,
    resident=203_000_000,
    budget=12_000_000,
    allowance=250_000_000,
)
READING = replace(FIGURES, prompt_done=9, tokens=0, rate_now=None, rate=None, hit_rate=None)
LARGE = replace(
    FIGURES,
    prompt_done=123_456,
    prompt_tokens=10**7,
    tokens=10**6,
    rate_now=12345.6,
    rate=12345.6,
    hit_rate=1.0,
    read_rate=1.2e11,
    wait_share=1.4,
    resident=10**12,
    budget=500 * 10**9,
)


def use(n_layers: int, n_experts: int) -> ExpertUse:
    counts = np.arange(n_layers * n_experts).reshape(n_layers, n_experts) % 7
    return ExpertUse(range(n_layers), counts, counts > 3)


def shown(lines: list[str]) -> list[str]:
    return [Text.from_ansi(line).plain for line in lines]


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("height", [1, 2, 3, 5, 8, 13])
@pytest.mark.parametrize("width", [1, 5, 20, 40, 80, 120])
@pytest.mark.parametrize("shape", [None, (3, 4), (6, 16), (48, 16), (24, 128), (200, 1024)])
def test_a_panel_fits_and_keeps_its_height(shape, width, height, colour):
    experts = use(*shape) if shape else None
    heights = set()
    for figures in (FIGURES, READING, LARGE):
        lines = panel(figures, experts, width, height, colour=colour)
        assert all(cell_len(line) < max(width, 2) for line in shown(lines))
        assert colour or "\x1b" not in "".join(lines)
        heights.add(len(lines))
    assert len(heights) == 1
    assert 1 <= heights.pop() <= height


def test_what_a_panel_says():
    lines = panel(FIGURES, use(6, 16), 80, 8, colour=False)
    assert lines[0] == "── 12.3 tok/s now · 11.8 mean · 71 tokens " + "─" * 37
    assert lines[1] == "hits 87 % · reading 0.42 GB/s · waiting 31 % of the time"
    assert lines[2] == "RAM ████████████░░░░ 203 MB of 262 MB · budget 12.0 MB + 250 MB for Python"
    assert [line[0] for line in lines[3:6]] == ["0", "1", "2"]
    assert lines[6] == "in RAM o░▒▓█ · on disk .-+x# · unused to most used"
    assert shown(panel(FIGURES, use(6, 16), 80, 8, colour=True))[:3] == lines[:3]


def test_while_the_prompt_is_read():
    lines = panel(READING, use(6, 16), 80, 8, colour=False)
    assert lines[0].startswith("── reading the prompt: 9 of 24 tokens ──")
    assert lines[1].startswith("hits – · ")
    faster = replace(READING, rate=123.4)
    line = panel(faster, None, 80, 8, colour=False)[0]
    assert line.startswith("── reading the prompt: 9 of 24 tokens · 123 tok/s ──")


def test_the_first_token_has_no_rate_yet():
    figures = replace(FIGURES, tokens=1, rate_now=None, rate=None)
    assert panel(figures, None, 40, 1, colour=False) == ["── 1 token " + "─" * 28]


def test_a_model_without_experts_has_figures_only():
    lines = panel(FIGURES, None, 80, 8, colour=False)
    assert [line[:3] for line in lines] == ["── ", "RAM"]


def test_low_terminals_have_figures_only_and_narrow_ones_the_first_of_them():
    lines = panel(FIGURES, use(6, 16), 40, 3, colour=False)
    assert lines == [
        "── 12.3 tok/s now · 11.8 mean ─────────",
        "hits 87 % · reading 0.42 GB/s",
        "RAM ████████████░░░░ 203 MB of 262 MB",
    ]


def test_more_ram_than_the_limit_fills_the_bar():
    lines = panel(replace(FIGURES, resident=10**9), None, 80, 8, colour=True)
    assert "█" * 16 in lines[1]
    assert "\x1b[33m" in lines[1]


# Where the figures come from


def test_the_meter_reads_off_a_model(tmp_path):
    with q4run.load(make_chat_model(tmp_path), context=512, threads=1) as model:
        prompt = model.tokenize("in the end and then", special=True)
        sampler = Sampler(SamplingParameters(temperature=0.0))
        for _ in range(2):  # the second time, the cache holds the prompt already
            completion = Completion(model.session, model.tokenizer, prompt, sampler, 12)
            meter = Meter(model, completion)
            before = meter.figures()
            assert (before.prompt_done, before.prompt_tokens) == (0, len(prompt))
            assert (before.tokens, before.rate, before.rate_now) == (0, None, None)
            assert before.hit_rate is None
            assert meter.use().counts.max() == 0
            text = "".join(completion)
            after = meter.figures()
            assert text
            assert (after.prompt_done, after.tokens) == (len(prompt), 12)
            assert after.rate == completion.rate
            assert after.rate_now > 0
            assert after.hit_rate == completion.stats.hit_rate
            assert after.resident > 10**7
            assert after.budget == model.plan.budget
            assert meter.use().counts.sum() == completion.stats.hits + completion.stats.misses
        assert model.session.progress == len(model.session.tokens)
