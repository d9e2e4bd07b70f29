"""A model three times larger than its budget stays inside it: measured, and under a hard limit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from q4run.bench.models.synthetic import Geometry, write_model
from q4run.budget import INTERPRETER_ALLOWANCE

BUDGET = 110_000_000
PROMPT_TOKENS, NEW_TOKENS = 200, 24

RUN = f"""
import json, sys
import q4run
path, budget = sys.argv[1], int(sys.argv[2])
with q4run.load(path, ram_budget=budget, context=512) as model:
    model.session.feed([1, *range(300, 300 + {PROMPT_TOKENS})])
    for token in range({NEW_TOKENS}):
        model.session.step(400 + token)
    stats = model.stats
    print(json.dumps(dict(peak=stats.peak_rss, read=stats.bytes_read, misses=stats.misses)))
"""


@pytest.fixture(scope="module")
def large_model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("large") / "large.gguf"
    write_model(path, Geometry(n_layers=6, n_embd=1024, n_head=8, n_head_kv=2, n_ff=2048))
    assert path.stat().st_size > 3 * BUDGET
    return path


@pytest.fixture(scope="module")
def smallest_peak(tmp_path_factory) -> int:
    """What a process holds that runs next to nothing: interpreter, numba, kernels, threads."""
    path = tmp_path_factory.mktemp("small") / "small.gguf"
    write_model(path, Geometry(1, 256, 2, 1, 128, 256, 2, 700))
    run(path, 20_000_000)  # compiles what is not compiled yet
    return run(path, 20_000_000)["peak"]


def run(path: Path, budget: int, cgroup: Path | None = None) -> dict[str, int]:
    def enter_cgroup() -> None:
        if cgroup:
            (cgroup / "cgroup.procs").write_text(str(os.getpid()))

    done = subprocess.run(
        [sys.executable, "-c", RUN, str(path), str(budget)],
        preexec_fn=enter_cgroup,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_process_stays_inside_its_budget(large_model, smallest_peak):
    result = run(large_model, BUDGET)
    assert result["misses"] > 0
    assert result["peak"] - smallest_peak < BUDGET
    assert result["peak"] < BUDGET + INTERPRETER_ALLOWANCE


def test_the_interpreter_stays_inside_its_allowance(smallest_peak):
    assert smallest_peak < INTERPRETER_ALLOWANCE


@pytest.fixture
def limited_cgroup():
    """A new memory cgroup limited to budget and allowance, page cache included, or a skip."""
    limit = BUDGET + INTERPRETER_ALLOWANCE
    for parent, file in (
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        ("/sys/fs/cgroup", "memory.max"),
    ):
        group = Path(parent) / f"q4run-test-{os.getpid()}"
        try:
            group.mkdir()
            (group / file).write_text(str(limit))
        except OSError:
            if group.is_dir():
                group.rmdir()
            continue
        yield group
        group.rmdir()
        return
    pytest.skip("this machine lets us make no memory cgroup")


def test_a_process_lives_under_an_enforced_limit(large_model, limited_cgroup):
    result = run(large_model, BUDGET, limited_cgroup)
    assert result["misses"] > 0
    assert result["peak"] < BUDGET + INTERPRETER_ALLOWANCE
