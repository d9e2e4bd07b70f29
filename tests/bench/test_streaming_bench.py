"""``bench/measure/streaming.py``: its floors, what it sees of the disk, its tables, and how it
ends.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
from helpers.commands import invoke
from helpers.expert_files import Experts
from helpers.fake_peer import make_fake_peer

import q4run
from q4run.bench.figures.provenance import command_line, computer, without_paths
from q4run.bench.measure import cache, compare, disk_watch, limits, record, speed, streaming
from q4run.bench.measure.disk_watch import DiskWatch, Looks
from q4run.bench.measure.streaming_report import (
    Case,
    Report,
    json_of,
    markdown_of,
    rows_of,
    table_of,
)
from q4run.bench.models.synthetic import write_model
from q4run.bench.models.traces import read_trace
from q4run.budget import INTERPRETER_ALLOWANCE
from q4run.disk.methods import METHODS
from q4run.experts.store import ExpertStore
from q4run.models.shapes import Geometry
from q4run.sizes import format_size

N_MOE_LAYERS, N_EXPERT = 2, 8
EXPERT_BYTES = 3 * 128 * 256 * 34 // 32
LIMIT = INTERPRETER_ALLOWANCE + 50_000_000
PLAIN = ("--io", "pread", "--cache", "lru", "--prefetch", "never")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """4 layers, the second and the fourth with 8 experts of which one is used."""
    path = tmp_path_factory.mktemp("streaming") / "model.gguf"
    write_model(path, Geometry(4, 128, 2, 1, 64, 256, N_EXPERT, 600, moe_step=2), "q8_0")
    return path


@pytest.fixture
def peer(tmp_path) -> Path:
    return make_fake_peer(tmp_path)[0]


@pytest.fixture
def no_cgroup(monkeypatch):
    """A machine that lets nobody make one."""
    monkeypatch.setattr(limits, "_places", lambda: [])


def run(*arguments: object) -> None:
    words = map(str, (*arguments, "--prompt", 20, "--tokens", 6, "--threads", 1))
    streaming.main(list(words))


# Floors


def streamed(model: Path, n_prompt: int, n_decode: int) -> list[dict[str, Any]]:
    """A cold pass and a warm one, with room for some of the experts."""
    with q4run.load(model, context=64, threads=1) as opened:
        plan = opened.plan
    # Scratch takes a part of it.
    budget = plan.dense + plan.tokenizer + plan.kv + plan.n_experts * plan.slot_bytes
    ids = speed.choose_tokens(model, n_prompt, n_decode)
    options: Any = {"context": 64, "threads": 1, "io": "pread", "prefetch": "never"}
    with q4run.load(model, ram_budget=budget, **options) as opened:
        assert 0 < opened.plan.n_slots < N_MOE_LAYERS * N_EXPERT
        assert opened.plan.n_batch >= n_prompt
        return speed.measure(opened, *ids, runs=2, warm_up=False)


def test_the_floor_of_decoding_is_what_the_hit_rate_leaves(model):
    for run_ in streamed(model, 16, 40):
        assert 0 < run_["experts"]["hit_rate"] < 1
        missed = 1 - run_["experts"]["hit_rate"]
        floor = run_["decode"]["floor_bytes"]
        assert floor == pytest.approx(missed * N_MOE_LAYERS * EXPERT_BYTES)
        # Reads of whole experts and nothing else: what was read is just that.
        assert run_["experts"]["bytes_read"] / 40 == pytest.approx(floor)


def test_the_floor_of_a_prompt_is_what_was_not_in_ram(model):
    cold, warm = streamed(model, 16, 4)
    assert (cold["start"], warm["start"]) == ("cold", "warm")
    once = N_MOE_LAYERS * N_EXPERT * EXPERT_BYTES
    assert (
        cold["prefill"]["once_per_chunk_bytes"] == warm["prefill"]["once_per_chunk_bytes"] == once
    )
    assert cold["prefill"]["floor_bytes"] % EXPERT_BYTES == 0
    assert 0.5 * once < cold["prefill"]["floor_bytes"] <= once
    assert warm["prefill"]["floor_bytes"] < cold["prefill"]["floor_bytes"]


@pytest.mark.parametrize(
    ("n_tokens", "n_resident", "n_wanted", "missing"),
    [
        (4, 0, 6, 6),
        (4, 2, 6, 4),
        (4, 3, 2, 0),  # in RAM, but not wanted
        (5, 0, 12, 9),  # two chunks: three of the first one's experts may have stayed
        (12, 3, 18, 9),
    ],
)
def test_floors_of_prompts_by_hand(n_tokens, n_resident, n_wanted, missing):
    layout = SimpleNamespace(n_bytes=800)
    plan = SimpleNamespace(batch_for=lambda n_tokens: 4, n_slots=3, n_experts=8)
    fake: Any = SimpleNamespace(plan=plan, store=SimpleNamespace(layout=layout))
    phase: Any = SimpleNamespace(
        n_resident=n_resident, stats=SimpleNamespace(hits=1, misses=n_wanted - 1)
    )
    assert speed._prompt_floor(fake, n_tokens, phase) == missing * 100


def test_a_model_without_experts_has_no_floor(shared_data):
    path = shared_data / "weights" / "stories260K.gguf"
    with q4run.load(path, context=32, threads=1) as opened:
        (run_,) = speed.measure(opened, [1, 2, 3], [4], warm_up=False)
    assert run_["prefill"]["floor_bytes"] is None
    assert run_["decode"]["floor_bytes"] is None


# The disk while it is waited for


def looks_until(watch: DiskWatch, least: int) -> Looks:
    give_up = time.monotonic() + 60
    while watch.looks.waiting < least:
        assert time.monotonic() < give_up
        time.sleep(0.005)
    return watch.looks


@pytest.fixture
def counters(tmp_path, monkeypatch) -> Path:
    """What the kernel would say of the device: reads and writes in flight."""
    path = tmp_path / "inflight"
    path.write_text("       3        0\n")
    opened = []

    def open_counters(paths: object) -> list[int]:
        opened.append(os.open(path, os.O_RDONLY))
        return opened[-1:]

    monkeypatch.setattr(disk_watch, "_open_counters", open_counters)
    return path


def test_a_disk_that_works_and_one_that_only_writes(counters):
    with DiskWatch([], lambda: True) as watch:
        busy = looks_until(watch, 3)
    assert busy.share_since(Looks()) == 1.0
    counters.write_text("       0        7\n")
    with DiskWatch([], lambda: True) as watch:
        idle = looks_until(watch, 3)
    assert idle.share_since(Looks()) == 0.0
    assert Looks(7, 5).share_since(Looks(3, 2)) == 0.75


def test_where_nothing_waits_nothing_is_seen(counters):
    with DiskWatch([], lambda: False) as watch:
        time.sleep(0.05)
    assert watch.looks == Looks()
    assert watch.looks.share_since(Looks()) is None


def test_devices_without_counters_are_not_watched():
    watched = [Path("/proc/self/io")] if Path("/proc/self/io").exists() else [Path(os.devnull)]
    with DiskWatch(watched, lambda: True) as watch:
        time.sleep(0.02)
    assert watch.looks == Looks()
    with DiskWatch([Path("/none/at/all")], lambda: True) as watch:
        pass
    assert watch.looks == Looks()


def test_the_store_says_when_it_waits(tmp_path):
    experts = Experts(tmp_path, 32)
    method = METHODS["pread"](experts.paths)
    was_waiting = []

    def read(path: Path, offset: int, target: memoryview) -> None:
        give_up = time.monotonic() + 30
        while not store.is_waiting and time.monotonic() < give_up:
            time.sleep(0.001)
        was_waiting.append(store.is_waiting)
        method.read(path, offset, target)

    slow: Any = SimpleNamespace(alignment=method.alignment, read=read, close=method.close)
    store = ExpertStore(experts.layout, 6, slow)
    try:
        assert not store.is_waiting
        with store.request(0, [1]) as request:
            assert next(iter(request)) == []  # computing goes on with what is there
            assert not store.is_waiting
            assert [expert for ready in request for expert in ready] == [1]
        assert not store.is_waiting
    finally:
        store.close()
    assert was_waiting
    assert all(was_waiting)


# Tables


def figures(speed_: float, rss: int, *, ours: bool = True, busy: float | None = 0.9) -> Any:
    return {
        "model": "m.gguf",
        "threads": 2,
        "io": "direct" if ours else "mmap",
        "ram_budget": 2_400_000_000 - INTERPRETER_ALLOWANCE if ours else None,
        "start": "cold",
        "prefill": {
            "tokens": 512,
            "tok_s": 10 * speed_,
            "disk_bytes": 6_000_000_000,
            "floor_bytes": 5_000_000_000 if ours else None,
            "once_per_chunk_bytes": 8_000_000_000 if ours else None,
            "wait_s": 1.5 if ours else None,
            "busy_share": busy if ours else None,
        },
        "decode": {
            "tokens": 10,
            "tok_s": speed_,
            "bytes_per_token": None,
            "as_chat_tok_s": None,
            "read_limit_ratio": None,
            "disk_bytes": 3_150_000_000,
            "floor_bytes": 300_000_000.0 if ours else None,
            "disk_share": 0.9 if ours else None,
            "busy_share": busy if ours else None,
        },
        "load_s": 1.0,
        "first_token_s": 2.0,
        "peak_rss": rss,
        "experts": {
            "hit_rate": 0.25 if ours else None,
            "bytes_read": 1 if ours else None,
            "requests": 1 if ours else None,
            "read_gb_s": None,
            "wait_s": 12.0 if ours else None,
        },
    }


@pytest.fixture
def case() -> Case:
    runs = {
        compare.Q4RUN: [figures(4.0, 2_400_000_000), figures(6.0, 2_400_000_000, busy=None)],
        compare.LLAMA_CPP: [figures(2.0, 3_000_000_000, ours=False) for _ in range(2)],
    }
    return Case(3_000_000_000, True, "cold", runs)


def test_rows_put_each_figure_beside_its_floor_and_its_peer(case):
    rows = rows_of(case)
    assert rows == [
        ("prompt of 512, tokens/s", ["50.0  (40.0 to 60.0)", "20.0"]),
        ("  q4run over it", ["", "2.50  (2.00 to 3.00)"]),
        ("  waited for the disk, s", ["1.50", ""]),
        ("  disk busy meanwhile", ["90 %", ""]),
        ("  read from disk", ["6.00 GB", "6.00 GB"]),
        ("  floor", ["5.00 GB", ""]),
        ("  of all experts, once a chunk", ["75 %", ""]),
        ("decoding 10, tokens/s", ["5.00  (4.00 to 6.00)", "2.00"]),
        ("  q4run over it", ["", "2.50  (2.00 to 3.00)"]),
        ("  waited for the disk, s", ["12.0", ""]),
        ("  disk busy meanwhile", ["90 %", ""]),
        ("  experts found in RAM", ["25 %", ""]),
        ("  read from disk per token", ["315 MB", "315 MB"]),
        ("  floor at that hit rate", ["300 MB", ""]),
        ("  read, times the floor", ["1.05", ""]),
        ("loading, s", ["1.00", "1.00"]),
        ("loading and first prompt, s", ["3.00", "3.00"]),
        ("peak memory", ["2.40 GB", "3.00 GB"]),
        ("  q4run over it", ["", "0.80"]),
        ("  of budget and allowance", ["100 %", ""]),
    ]


def test_what_nobody_knows_has_no_row(case):
    for runs in case.results.values():
        for one in runs:
            one["prefill"]["disk_bytes"] = one["decode"]["disk_bytes"] = None
    labels = [label for label, _ in rows_of(case)]
    assert "  read from disk" not in labels
    assert "  read, times the floor" not in labels
    assert "  of all experts, once a chunk" not in labels


@pytest.mark.parametrize(
    ("limit", "enforced", "title"),
    [
        (3_000_000_000, True, "3.00 GB enforced, cold"),
        (3_000_000_000, False, "3.00 GB UNENFORCED, cold"),
        (None, False, "no limit, cold"),
    ],
)
def test_titles_say_whether_the_limit_was_enforced(case, limit, enforced, title):
    named = Case(limit, enforced, "cold", case.results)
    report = Report("m[x].gguf", date(2026, 1, 2), "command", "", 2, [named])
    assert str(table_of(report, named).title) == f"m[x].gguf, 2 threads, {title}"
    assert f"\n## {title[0].upper()}{title[1:]}\n" in markdown_of(report)


def test_the_page_has_machine_date_and_command(case, monkeypatch):
    monkeypatch.setattr(
        "q4run.bench.measure.streaming_report.computer", lambda: "2 cores of a kind"
    )
    report = Report("m.gguf", date(2026, 1, 2), "python -m x m.gguf", "llama 1.2", 2, [case])
    lines = markdown_of(report).splitlines()
    assert lines[0] == "# Streaming m.gguf"
    assert lines[2].startswith("2026-01-02, 2 cores of a kind; 2 threads, reads by direct.")
    assert "llama 1.2" in lines[2]
    assert lines[4:7] == ["```bash", "python -m x m.gguf", "```"]
    assert lines[8].startswith("Medians of 2 runs in turn")
    assert "| | q4run | llama.cpp |" in lines
    assert "| – floor at that hit rate | 300 MB |  |" in lines
    table = [line for line in lines if line.startswith("|")]
    assert {line.count("|") for line in table} == {4}
    stored = json.loads(json.dumps(json_of(report)))
    (one,) = stored["cases"]
    assert one["limit"] == 3_000_000_000
    assert one["programs"]["q4run"]["decode"]["tok_s"] == 5.0
    assert len(one["programs"]["q4run"]["runs"]) == 2
    assert one["ratio"] == {"llama.cpp": {"prefill": 2.5, "decode": 2.5, "peak_rss": 0.8}}


def test_this_machine_has_a_name():
    assert re.fullmatch(r"\d+ cores? of \S.*, [\d.]+ .B of RAM, \w+ \S+", computer())


def test_commands_are_stored_without_the_paths_of_the_machine():
    words = ["/data/m.gguf", "--json=/tmp/out.json", "../text/", "50%", "a b"]
    shown = command_line("python -m x", words)
    assert shown == "python -m x m.gguf --json=out.json text 50% 'a b'"
    assert without_paths(shown) == shown
    command = "x ../a/b /data/m.gguf --json=/tmp/out.json '/a/c'"
    assert without_paths(command) == "x ../a/b m.gguf --json=out.json 'c'"


# The command


def test_a_limit_that_nobody_can_enforce_is_said(model, peer, no_cgroup, tmp_path, capsys):
    stored, page = tmp_path / "all.json", tmp_path / "page.md"
    words = ("--limit", str(LIMIT), "--runs", 1, "--peer-python", peer)
    run(model, *words, "--json", stored, "--table", page)
    told = capsys.readouterr()
    assert "UNENFORCED: no memory limit can be made here" in told.err
    for start in ("cold", "warm"):
        assert f"model.gguf, 1 thread, {format_size(LIMIT)} UNENFORCED, {start}" in told.out
        assert f"## {format_size(LIMIT)} UNENFORCED, {start}\n" in page.read_text()
    assert re.search(r"decoding 6, tokens/s +[\d.]+ +[\d.]+ +50\.0", told.out)
    assert "--peer-python peer" in page.read_text()
    assert str(tmp_path) not in page.read_text()
    report = json.loads(stored.read_text())
    assert report["peer"] == "a fake"
    assert [(one["limit"], one["enforced"], one["start"]) for one in report["cases"]] == [
        (LIMIT, False, "cold"),
        (LIMIT, False, "warm"),
    ]
    for one in report["cases"]:
        assert list(one["programs"]) == ["q4run", "q4run, pread + LRU", "llama.cpp"]
        ours, plain, theirs = one["programs"].values()
        assert ours["ram_budget"] == plain["ram_budget"] == 49_000_000
        assert plain["io"] == "pread"
        assert {program["start"] for program in (ours, plain, theirs)} == {one["start"]}
        assert one["ratio"]["llama.cpp"]["decode"] == pytest.approx(ours["decode"]["tok_s"] / 50)
        (single,) = ours["runs"]
        assert single["decode"]["tok_s"] == ours["decode"]["tok_s"]


def test_an_enforced_limit_and_the_plain_way_alone(model, peer, tmp_path, capsys):
    try:
        with limits.memory_cgroup(1 << 30):
            pass
    except q4run.Error as error:
        pytest.skip(str(error))
    stored = tmp_path / "all.json"
    words = (*PLAIN, "--cold", "--runs", 2, "--limit", str(LIMIT))
    run(model, *words, "--peer-python", peer, "--json", stored)
    assert f"{format_size(LIMIT)} enforced, cold" in capsys.readouterr().out
    (one,) = json.loads(stored.read_text())["cases"]
    assert one["enforced"]
    assert list(one["programs"]) == ["q4run", "llama.cpp"]
    assert len(one["programs"]["q4run"]["runs"]) == 2
    assert one["programs"]["q4run"]["prefill"]["floor_bytes"] > 0
    assert_no_cgroup(os.getpid())


def test_without_llama_cpp_it_says_so(model, monkeypatch, capsys, case):
    def check_peer(python: str) -> str:
        raise q4run.Error("no llama_cpp")

    asked = []

    def run_in_turn(request: compare.Request, **options: Any) -> dict[str, Any]:
        asked.append((request, options))
        start = "warm" if request.warm_up else "cold"
        return {compare.Q4RUN: [one | {"start": start} for one in case.results[compare.Q4RUN]]}

    monkeypatch.setattr(compare, "check_peer", check_peer)
    monkeypatch.setattr(compare, "run_in_turn", run_in_turn)
    run(model, "--cold", "--no-watch")
    told = capsys.readouterr()
    assert "Without llama.cpp" in told.err
    assert "model.gguf, 2 threads, no limit, cold" in told.out
    ((request, options),) = asked
    assert (request.warm_up, request.passes, request.watch_disk) == (False, 1, False)
    assert not request.repack
    assert options["peer_python"] is None
    assert options["limit"] is None
    run(model, "--warm")
    assert "no limit, warm" in capsys.readouterr().out
    request, _ = asked[-1]
    assert (request.warm_up, request.passes) == (True, 1)


def test_errors_are_one_line(model, tmp_path):
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF")
    failing, _ = make_fake_peer(tmp_path, fails=True)
    cannot = tmp_path / "nothing"
    for words, message in (
        ((broken,), "broken.gguf"),
        ((tmp_path / "none.gguf",), "none.gguf"),
        ((model, "--table", tmp_path / "deep" / "page.md"), "no such folder"),
        ((model, "--peer-python", cannot), "cannot import llama_cpp"),
        ((model, "--peer-python", failing, "--limit", "100M"), "less than what Python alone takes"),
        (
            (model, "--peer-python", failing, "--cold", *PLAIN),
            "the peer is out of sorts",
        ),
    ):
        with pytest.raises(SystemExit, match=message) as caught:
            run(*words)
        assert str(caught.value).startswith("error: ")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        ("--limit", "much"),
        ("--runs", "0"),
        ("--cold", "--warm"),
        ("--io", "telepathy"),
        ("--cache", "fifo"),
    ],
)
def test_wrong_usage_is_status_2(model, words):
    with pytest.raises(SystemExit) as caught:
        run(model, *words)
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 128 + signal.SIGTERM)]
)
def test_ctrl_c_leaves_nothing_behind(model, tmp_path, number, status):
    """Not even what a wrapper script has started."""
    note = tmp_path / "pid"
    before = f"import os, time; print(os.getpid(), file=open({str(note)!r}, 'w')); time.sleep(600)"
    program, _ = make_fake_peer(tmp_path, before=before)
    wrapper = tmp_path / "wrapper"
    wrapper.write_text(f'#!/bin/sh\n{program} "$@"\n')
    wrapper.chmod(0o755)
    words = (
        "--limit",
        str(LIMIT),
        "--runs",
        "1",
        "--prompt",
        "8",
        "--tokens",
        "2",
        "--threads",
        "1",
    )
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "q4run.bench.measure.streaming", str(model), *words),
            *("--peer-python", str(wrapper), *PLAIN),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    give_up = time.monotonic() + 120
    while not (note.exists() and note.read_text().strip()):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < give_up
        time.sleep(0.05)
    process.send_signal(number)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == status, output
    assert "Traceback" not in output
    assert not psutil.pid_exists(int(note.read_text()))
    assert_no_cgroup(process.pid)


def assert_no_cgroup(pid: int) -> None:
    for folder in ("/sys/fs/cgroup", "/sys/fs/cgroup/memory"):
        assert not (Path(folder) / f"q4run-bench-{pid}").exists()


# Recorded routing


def test_a_recording_is_what_the_model_used(tmp_path, shared_data):
    text = (shared_data / "weights" / "tiny-llama4" / "valid.txt").read_text(encoding="utf-8")
    model = tmp_path / "model.gguf"
    words = ("convert", shared_data / "weights" / "tiny-llama4", model, "--type", "bf16")
    assert invoke(*words).exit_code == 0
    record.record(model, text, tmp_path / "used.npy", 400, threads=1)
    record.record(model, text, tmp_path / "used.jsonl", 400, threads=1)
    recorded = read_trace(tmp_path / "used.npy")
    assert recorded.passes == read_trace(tmp_path / "used.jsonl").passes
    # The same tokens, and dialogue after dialogue from an empty context.
    assert recorded.passes == cache.find_trace("tiny-llama4").passes[:400]


def test_recordings_of_nothing_and_of_several_experts(model, tmp_path):
    with pytest.raises(q4run.Error, match="nothing to record"):
        record.record(model, "", tmp_path / "used.npy", threads=1)
    two = tmp_path / "two.gguf"
    write_model(two, Geometry(2, 128, 2, 1, 64, 256, 4, 600, n_expert_used=2), "q8_0")
    with pytest.raises(q4run.Error, match=r"used\.npy: an array holds one expert"):
        record.record(two, "abc", tmp_path / "used.npy", threads=1)


def test_what_comes_with_the_bench():
    trace = cache.find_trace("tiny-llama4")
    assert (trace.layers, trace.n_expert, trace.n_tokens) == (list(range(8)), [16] * 8, 20_000)
    chosen = np.array([one.experts for one in trace.passes])[:, :, 0]
    assert 0.15 < (chosen[1:] == chosen[:-1]).mean() < 0.17
    assert [cache.find_trace(name).n_tokens for name in ("slice", "scout", "skewed")] == [
        3000,
        500,
        300,
    ]
    with pytest.raises(q4run.Error, match="nameless: cannot be read"):
        cache.find_trace("nameless")
