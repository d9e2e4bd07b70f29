"""``q4run.bench.measure.plan_check``: what was foretold beside what was measured."""

import json
import subprocess
import sys
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

import pytest

from q4run.bench.figures.tables import console
from q4run.bench.measure.plan_check import (
    Result,
    n_within,
    pooled,
    results_of,
    summary_of,
    table_of,
)

BOX = files("q4run.box") / "tiny-llama4.gguf"


def plan_check(*words) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "q4run.bench.measure.plan_check", *map(str, words)],
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def result(told: float, was: float, **others) -> Result:
    figures = {"prompt": 100.0, "peak": 2e9, "hit_rate": 0.5}
    return Result(
        model="m.gguf", ram_budget=10**9, limit=None, start="cold", io="pread", threads=2,
        disk=[1e9, 1e9], predicted=figures | {"decode": told},
        measured=figures | {"decode": was} | others,
    )  # fmt: skip


def test_errors_are_shares_of_the_measurement():
    results = [result(10, 8), result(6, 8), result(12, 8, peak=1e9)]
    assert [one.error("decode") for one in results] == pytest.approx([0.25, 0.25, 0.5])
    assert [one.error("peak") for one in results] == pytest.approx([0, 0, 1])
    assert "Decoding within 25 % in 2 of 3, memory within 5 % in 2" in summary_of(results)


def test_executions_are_put_together_by_case():
    (both,) = pooled([[result(10, 8)], [result(6, 12)]])
    assert (both.predicted["decode"], both.measured["decode"]) == (8, 10)
    assert n_within([result(10, 8), result(6, 12), both], "decode", 0.25) == 2
    other = replace(result(6, 12), ram_budget=1)
    with pytest.raises(ValueError, match="not the same cases"):
        pooled([[result(10, 8)], [other]])
    with pytest.raises(ValueError, match="zip"):
        pooled([[result(10, 8)], []])


def test_the_table_has_a_row_for_each(capsys):
    console(pipe_width=150).print(table_of([result(10, 8), result(1, 0.5)]))
    shown = capsys.readouterr().out
    assert "10.0 / 8.00 (1.25)" in shown
    assert "1.00 / 0.50 (2.00)" in shown
    assert "50 % / 50 %" in shown


def test_a_model_is_planned_and_run(tmp_path):
    out = tmp_path / "plan.json"
    done = plan_check(f"{BOX}:12M", "--prompt", 16, "--tokens", 4, "--runs", 2, "--json", out)
    assert done.returncode == 0, done.stderr
    cold, warm = json.loads(out.read_text())["cases"]
    assert (cold["start"], warm["start"]) == ("cold", "warm")
    assert len(cold["disk"]) == 3
    assert cold["model"] == "tiny-llama4.gguf"
    for case in (cold, warm):
        assert case["ram_budget"] == 12_000_000
        for told in ("predicted", "measured"):
            assert set(case[told]) == {"decode", "prompt", "peak", "hit_rate"}
            assert case[told]["decode"] > 0
        assert case["measured"]["peak"] > 12_000_000
    assert "Decoding within 25 %" in done.stdout
    assert [one.start for one in results_of(json.loads(out.read_text()))] == ["cold", "warm"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["model.gguf"], "MODEL:BUDGET"),
        ([f"{BOX}:0"], "0"),
        ([f"{BOX}:1M"], "needs at least"),
        ([f"{Path('nowhere.gguf')}:1G"], "nowhere.gguf"),
    ],
)
def test_what_cannot_be_checked_is_refused_in_a_line(words, said):
    done = plan_check(*words)
    assert done.returncode in (1, 2)
    assert said in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
