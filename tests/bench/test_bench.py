"""``q4run bench``: its figures, and q4run and llama.cpp in turn."""

import json
import os
import re
import subprocess
import sys
import textwrap
from copy import deepcopy
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers.commands import assert_one_error_line, command, invoke
from helpers.fake_peer import DISK_BYTES, make_fake_peer

import q4run
from q4run.bench.figures.figures import median_of, ratios_of
from q4run.bench.figures.stored import Results
from q4run.bench.figures.tables import number
from q4run.bench.measure import compare, limits, speed
from q4run.bench.models.synthetic import write_model
from q4run.bench.pages import bench_runs
from q4run.bench.pages.results_pages import PAGES
from q4run.bench.peer import llama_cpp_speed
from q4run.budget import INTERPRETER_ALLOWANCE
from q4run.models.shapes import Geometry
from q4run.planning import memory_speed as memory_limit
from q4run.sizes import format_size

KEYS = {
    "model": str,
    "threads": int,
    "io": str,
    "ram_budget": int,
    "start": str,
    "from_disk_share": type(None),
    "prefill": {
        "tokens": int,
        "tok_s": float,
        "disk_bytes": DISK_BYTES,
        "floor_bytes": int,
        "once_per_chunk_bytes": int,
        "wait_s": float,
        "busy_share": type(None),  # nothing waits where all is in RAM
    },
    "decode": {
        "tokens": int,
        "tok_s": float,
        "as_chat_tok_s": float,
        "bytes_per_token": int,
        "read_limit_ratio": float,
        "disk_bytes": DISK_BYTES,
        "floor_bytes": float,
        "busy_share": type(None),
        "disk_share": type(None),
    },
    "load_s": float,
    "first_token_s": float,
    "peak_rss": int,
    "experts": {
        "count": int,
        "slots": int,
        "hit_rate": float,
        "bytes_read": int,
        "requests": int,
        "read_gb_s": float,
        "wait_s": float,
    },
}
UNKNOWN = dict.fromkeys(("floor_bytes", "once_per_chunk_bytes", "wait_s"), type(None))
PEER_KEYS = KEYS | {
    "ram_budget": type(None),
    "prefill": KEYS["prefill"] | UNKNOWN,
    "decode": KEYS["decode"] | dict.fromkeys(("floor_bytes", "as_chat_tok_s"), type(None)),
    "experts": dict.fromkeys(KEYS["experts"], type(None)),
}
RATIO_KEYS = {"prefill": float, "decode": float, "peak_rss": float}
SPREAD_KEYS = {phase: {"least": float, "most": float} for phase in ("prefill", "decode")}
SUMMARY_KEYS = {"notes": list, "spread": SPREAD_KEYS, "runs": list}
ALONE = {"peer": type(None), "ratio": type(None), "ratio_spread": type(None)}
REPORT_KEYS = KEYS | SUMMARY_KEYS | ALONE
PAIR_KEYS = REPORT_KEYS | {
    "peer": PEER_KEYS | SUMMARY_KEYS,
    "ratio": RATIO_KEYS,
    "ratio_spread": dict.fromkeys(RATIO_KEYS, list),
}
MADE_KEYS = {
    "read_limit": float,
    "disk_rate": type(None),
    "file_bytes": int,
    "date": str,
    "machine": str,
    "command": str,
    "versions": {"q4run": str},
}
MADE_WITH_PEER_KEYS = MADE_KEYS | {"versions": {"q4run": str, "llama_cpp": str}}
SHARE = float if DISK_BYTES is int else type(None)
COLD_KEYS = {
    "from_disk_share": SHARE,
    "decode": KEYS["decode"] | {"as_chat_tok_s": type(None)},
}
READ_LIMIT = 20e9


def shape_of(value: Any) -> Any:
    """The keys of nested dicts and the types of what they hold."""
    if isinstance(value, dict):
        return {key: shape_of(inner) for key, inner in value.items()}
    return type(value)


def shape_of_report(figures: Any) -> Any:
    """``shape_of``, but where it depends on the disk: whether it was seen to be waited for."""
    shape = shape_of(figures)
    for one in (shape, shape["cold"], shape["cold"] and shape["cold"]["peer"]):
        if isinstance(one, dict):
            for phase in ("prefill", "decode"):
                assert one[phase]["busy_share"] in (float, type(None))
                one[phase]["busy_share"] = type(None)
    return shape


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """4 layers, the second and the fourth with 8 experts of which one is used."""
    path = tmp_path_factory.mktemp("bench") / "model.gguf"
    write_model(path, Geometry(4, 128, 2, 1, 64, 256, 8, 600, moe_step=2), "q8_0")
    return path


@pytest.fixture
def known_read_limit(monkeypatch):
    monkeypatch.setattr("q4run.planning.memory_speed.read_limit", lambda threads: READ_LIMIT)


@pytest.fixture(scope="module")
def figures_of_requests() -> dict[str, list[dict[str, Any]]]:
    return {}


@pytest.fixture
def quick_runs(figures_of_requests, monkeypatch) -> None:
    """q4run runs a request once for all tests that ask for this fixture; a peer runs each time."""
    run = compare._run

    def run_once(name: str, command: list[str], request: compare.Request) -> Any:
        if name == compare.LLAMA_CPP:
            return run(name, command, request)
        key = repr(request)
        if key not in figures_of_requests:
            figures_of_requests[key] = run(name, command, request)
        return deepcopy(figures_of_requests[key])

    monkeypatch.setattr(compare, "_run", run_once)


def bench(*arguments: object) -> Any:
    """Runs it in this process, briefly, on one thread."""
    return invoke("bench", *arguments, "-p", 20, "-n", 6, "--runs", 2, "--threads", 1)


def test_the_json_is_what_scripts_rely_on(model, known_read_limit, monkeypatch):
    monkeypatch.setattr("sys.argv", ["q4run", "bench", str(model), "--json"])
    result = bench(model, "--json")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("\n") == 1
    figures = json.loads(result.stdout)
    expected = REPORT_KEYS | {"cold": REPORT_KEYS | COLD_KEYS} | MADE_KEYS
    assert shape_of_report(figures) == expected
    cold = figures["cold"]
    assert (figures["start"], cold["start"]) == ("warm", "cold")
    assert figures["model"] == cold["model"] == str(model)
    assert figures["command"] == "q4run bench model.gguf --json"
    assert figures["file_bytes"] == model.stat().st_size
    assert figures["threads"] == 1
    assert figures["prefill"]["tokens"] == 20
    assert figures["decode"]["tokens"] == 6
    for one in (figures, cold):
        decode = one["decode"]
        assert decode["read_limit_ratio"] == pytest.approx(
            decode["bytes_per_token"] * decode["tok_s"] / READ_LIMIT
        )
        assert min(one[key] for key in ("load_s", "first_token_s", "peak_rss")) > 0
        speeds = [run["decode"]["tok_s"] for run in one["runs"]]
        assert len(speeds) == 2
        assert one["spread"]["decode"] == {"least": min(speeds), "most": max(speeds)}
    for run, first in zip(figures["runs"], cold["runs"], strict=True):
        assert run["load_s"] == first["load_s"]
        assert run["first_token_s"] == first["first_token_s"]
        assert first["first_token_s"] == pytest.approx(20 / first["prefill"]["tok_s"])
    # The cold pass has brought all that the tokens need into RAM.
    assert figures["experts"] == {
        "count": 16,
        "slots": 16,
        "hit_rate": 1.0,
        "bytes_read": 0,
        "requests": 0,
        "read_gb_s": 0.0,
        "wait_s": 0.0,
    }


@pytest.mark.parametrize("start", ["cold", "warm"])
def test_one_start_alone(model, start, known_read_limit):
    result = bench(model, f"--{start}", "--json")
    assert result.exit_code == 0, result.stderr
    figures = json.loads(result.stdout)
    assert figures["start"] == start
    if start == "cold":
        once = REPORT_KEYS | COLD_KEYS
        assert shape_of_report(figures) == once | {"cold": once} | MADE_KEYS
        assert figures["cold"]["decode"] == figures["decode"]
    else:
        assert figures["cold"] is None
        assert re.search(r"loading, s +[\d.]+", result.stderr)
    other = {"cold": "warm", "warm": "cold"}[start]
    assert other not in result.stderr.splitlines()[1]


def test_the_table_has_every_figure(model, known_read_limit, quick_runs):
    result = bench(model)
    assert result.exit_code == 0, result.stderr
    both = r"[\d.]+(  \([\d.]+ to [\d.]+\))? +[\d.]+"
    for row in (
        r"model\.gguf, 1 thread +(cold|first) +warm",
        r"loading, s +[\d.]+(  \([\d.]+ to [\d.]+\))? +\n",
        r"first token, s +[\d.]+(  \([\d.]+ to [\d.]+\))? +\n",
        rf"prompt of 20, tokens/s +{both}",
        rf"decoding 6, tokens/s +{both}",
        r"as chat does, tokens/s +[\d.]+(  \([\d.]+ to [\d.]+\))? *\n",
        r"of memory's read limit +\d+ %",
        r"weights per token +\d.* kB|MB",
        r"experts there is room for +100 % +100 %",
        r"experts found in RAM .* +100 %",
        r"read per token +\d.* +0 B",
        r"waited for reads, s .* 0\.00",
        r"peak memory +\d.* MB",
        r"memory gives 20\.0 GB/s to 1 thread",
        *([r"from disk, all of it +\d", r"from disk per token +\d"] if DISK_BYTES is int else []),
    ):
        assert re.search(row, result.stdout), row
    assert "ratio" not in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


@pytest.fixture(scope="module")
def cold_run(model) -> list[dict[str, Any]]:
    prompt, continuation = speed.choose_tokens(model, 20, 6)
    request = compare.Request(
        str(model), prompt, continuation, context=26, threads=1, warm_up=False
    )
    return compare.run_in_turn(request, runs=1)[compare.Q4RUN]


@pytest.fixture
def bench_cold(model, cold_run, known_read_limit, monkeypatch):
    """``bench --cold`` where the kernel counts ``share`` of what was read as read from disk.

    The real share says little of so small a file: a page of the program itself counts as well.
    """

    def run(share: float | None) -> Any:
        figures = [figures | {"from_disk_share": share} for figures in cold_run]
        monkeypatch.setattr(compare, "_run", lambda *words: figures)
        return bench(model, "--cold")

    return run


@pytest.mark.parametrize("share", [0.0, 0.4, 0.89])
def test_what_was_in_the_page_cache_is_not_called_cold(bench_cold, share):
    result = bench_cold(share)
    assert re.search(r"1 thread +first", result.stdout)
    assert re.search(rf"really from disk +{share * 100:.0f} %", result.stdout)
    warning = f"first, not cold: the kernel counts only {share * 100:.0f} %"
    assert warning in " ".join(result.stderr.split())


@pytest.mark.parametrize("share", [None, 0.9, 1.0])
def test_what_came_from_disk_is_called_cold(bench_cold, share):
    result = bench_cold(share)
    assert re.search(r"1 thread +cold", result.stdout)
    assert "not cold" not in result.stderr


def test_where_nothing_can_be_dropped_it_says_so(bench_cold, monkeypatch):
    monkeypatch.setattr("q4run.cli.bench_report.CAN_DROP", False)
    result = bench_cold(1.0)
    assert re.search(r"1 thread +first", result.stdout)
    assert "first, not cold: this system lets no program drop a file" in result.stderr


def test_kernels_are_compiled_before_anything_is_timed(model):
    heard = []
    request = compare.Request(str(model), [1], [2], context=8, threads=1)
    compare.compile_kernels(request, lambda *step: heard.append(step))
    assert {what for what, _, _ in heard} == {"compiling kernels"}
    assert heard[-1][1] == heard[-1][2] > 0


def test_bytes_per_token_are_those_a_token_is_multiplied_with(model):
    n_embd, n_ff, n_vocab, per_value = 128, 256, 600, 34 / 32
    attention = (2 * 64 * 2 + 64 * 2) * n_embd
    expert = 3 * n_embd * n_ff
    matrices = 4 * attention + 2 * (2 * expert) + 2 * 2 * expert + n_vocab * n_embd
    f32 = 4 * (9 * n_embd + 2 * 8 * n_embd)  # norms and routers
    # Two MoE layers: an expert and the shared one each; two dense layers, twice as wide.
    assert speed.weight_bytes_per_token(model) == matrices * per_value + f32


def test_bytes_per_token_of_a_tied_output_count_it(shared_data):
    path = shared_data / "weights" / "stories260K.gguf"
    file = q4run.gguf_file.open_gguf(path)
    n_bytes = sum(tensor.n_bytes for tensor in file.tensors.values())
    if "output.weight" in file.tensors:
        n_bytes -= file.tensor("token_embd.weight").n_bytes
    assert speed.weight_bytes_per_token(path) == n_bytes


def test_experts_that_come_from_disk_are_counted(model):
    with q4run.load(model, context=64, threads=1) as opened:
        plan = opened.plan
    budget = plan.dense + plan.tokenizer + plan.kv + 8 * plan.slot_bytes  # scratch takes some
    ids = speed.choose_tokens(model, 16, 40)
    with q4run.load(model, ram_budget=budget, context=64, threads=1) as opened:
        assert 0 < opened.plan.n_slots < opened.plan.n_experts == 16
        first, second = speed.measure(opened, *ids, runs=2, warm_up=False)
    for run in (first, second):
        assert run["experts"]["hit_rate"] < 1
        assert run["experts"]["bytes_read"] > 0
        assert 0 < run["experts"]["requests"] <= run["experts"]["bytes_read"] / 1000
        assert run["experts"]["read_gb_s"] == pytest.approx(
            run["experts"]["bytes_read"] * run["decode"]["tok_s"] / 40 / 1e9
        )
    assert first["first_token_s"] == second["first_token_s"]
    assert first["first_token_s"] == pytest.approx(16 / first["prefill"]["tok_s"])


def test_tokens_are_within_the_vocabulary_and_always_the_same(model):
    prompt, continuation = speed.choose_tokens(model, 700, 50)
    assert (len(prompt), len(continuation)) == (700, 50)
    assert 0 <= min(prompt + continuation) <= max(prompt + continuation) < 600
    assert len(set(prompt)) == 600
    assert speed.choose_tokens(model, 700, 50) == (prompt, continuation)


def test_only_what_had_to_come_from_disk_counts_as_cold():
    def phase(n_bytes: int | None) -> Any:
        return SimpleNamespace(disk_bytes=n_bytes)

    share = speed._from_disk_share
    assert share(100, 300, 100, phase(200), phase(100)) == 1.0
    assert share(100, 300, 250, phase(100), phase(50)) == 1.0  # read ahead while it was loaded
    assert share(100, 300, 100, phase(100), phase(0)) == 0.5
    assert share(100, 300, 50, phase(800), phase(800)) == 0.5  # read twice makes up for nothing
    assert share(100, 0, 0, phase(0), phase(0)) == 0.0
    assert share(100, 0, None, phase(0), phase(0)) is None
    assert share(100, 0, 0, phase(0), phase(None)) is None


@pytest.mark.parametrize(
    "arguments",
    [
        ["-p", "0"],
        ["-n", "0"],
        ["--runs", "0"],
        ["--vs", "another"],
        ["--limit", "much"],
        ["-p", "20", "-n", "5", "--context", "24"],
    ],
)
def test_wrong_usage_is_status_2(arguments, model):
    assert invoke("bench", model, *arguments).exit_code == 2


@pytest.mark.parametrize("arguments", [[], ["--limit", "1G"]])
def test_a_file_that_is_no_model_is_one_error_line(arguments, tmp_path):
    path = tmp_path / "broken.gguf"
    path.write_bytes(b"GGUF")
    result = invoke("bench", path, *arguments)
    assert result.exit_code == 1
    assert_one_error_line(result.stderr)


@pytest.fixture
def peer(tmp_path):
    """Makes a fake peer; returns its path and that of its log."""

    def make(**behaviour: Any) -> tuple[Path, Path]:
        return make_fake_peer(tmp_path, **behaviour)

    return make


def test_both_programs_run_the_same_and_are_compared(model, peer, known_read_limit, quick_runs):
    python, log = peer()
    result = bench(model, "--vs", "llama.cpp", "--peer-python", python, "--json")
    assert result.exit_code == 0, result.stderr
    figures = json.loads(result.stdout)
    expected = PAIR_KEYS | {"cold": PAIR_KEYS | COLD_KEYS} | MADE_WITH_PEER_KEYS
    assert shape_of_report(figures) == expected
    peer_figures, ratio = figures["peer"], figures["ratio"]
    assert ratio["prefill"] == pytest.approx(figures["prefill"]["tok_s"] / 200)
    assert ratio["decode"] == pytest.approx(figures["decode"]["tok_s"] / 50)
    least, most = figures["ratio_spread"]["decode"]
    assert 0 < least <= ratio["decode"] <= most
    assert figures["versions"]["llama_cpp"] == "a fake"
    n_bytes = figures["decode"]["bytes_per_token"]
    assert peer_figures["decode"]["bytes_per_token"] == n_bytes
    assert peer_figures["decode"]["read_limit_ratio"] == pytest.approx(50 * n_bytes / READ_LIMIT)
    asked = [json.loads(line) for line in log.read_text().splitlines()]
    assert len(asked) == 2
    prompt, continuation = speed.choose_tokens(model, 20, 6)
    for script, request in asked:
        assert script == llama_cpp_speed.__file__
        assert request == {
            "model": str(model),
            "prompt": prompt,
            "continuation": continuation,
            "context": 26,
            "threads": 1,
            "kv_type": "f16",
            "io": "auto",
            "cache": "layers",
            "prefetch": "auto",
            "ram_budget": None,
            "warm_up": False,
            "passes": 2,
            "repack": True,
            "watch_disk": True,
        }


def test_its_json_is_what_the_report_reads(
    model, peer, known_read_limit, monkeypatch, tmp_path, quick_runs
):
    python, _ = peer()
    words = ("bench", str(model), "--vs", "llama.cpp", "--peer-python", str(python), "--json")
    monkeypatch.setattr("sys.argv", ["q4run", *words])
    result = bench(*words[1:])
    (tmp_path / "speed-small-scout-q8_0.json").write_text(result.stdout)
    (record,) = bench_runs.small_scouts(Results(tmp_path)).values()
    assert bench_runs.command_of(record) == "q4run bench FILE --vs llama.cpp"
    assert record.number("read_limit") == READ_LIMIT
    assert bench_runs.ratio_of(record, "decode").startswith(number(record.number("ratio.decode")))
    assert bench_runs.made_of([record]).endswith("1 thread; reads by pread; a fake.")
    page = "\n".join(PAGES["speed-small-scout"](Results(tmp_path)))
    assert re.search(r"\n\| decoding 6, tok/s \| [\d.]+ \|\n\| – llama.cpp \| 50.0 \|\n", page)
    assert re.search(r"\n\| – llama.cpp \| 1.00 GB \|\n\| – q4run over it \| 0.\d\d", page)


def test_the_table_has_both_programs_and_the_ratios(model, peer, known_read_limit, quick_runs):
    python, _ = peer()
    result = bench(model, "--vs", "llama.cpp", "--peer-python", python)
    assert re.search(r"q4run +llama\.cpp +ratio", result.stdout), result.stderr
    number = r"[\d.]+(  \([\d.]+ to [\d.]+\))?"
    rows = re.findall(rf"decoding 6, tokens/s +{number} +50\.0 +{number}", result.stdout)
    assert len(rows) == 2
    assert re.search(
        r"model\.gguf, 1 thread, (cold|first) .*model\.gguf, 1 thread, warm",
        result.stdout,
        re.DOTALL,
    )
    assert len(re.findall("loading, s", result.stdout)) == 1
    assert re.search(r"peak memory +.*MB.* 1\.00 GB +0\.\d\d", result.stdout)


def test_a_peer_that_is_not_there_is_one_error_line(model, peer, tmp_path):
    cannot_import, log = peer(able=False)
    for python in (cannot_import, tmp_path / "absent"):
        result = bench(model, "--vs", "llama.cpp", "--peer-python", python)
        assert result.exit_code == 1
        assert_one_error_line(result.stderr)
        assert "[bench]" in result.stderr
        assert str(python) in result.stderr
    assert not log.exists()


def test_a_peer_that_fails_is_one_error_line(model, peer, quick_runs):
    python, _ = peer(fails=True)
    result = bench(model, "--vs", "llama.cpp", "--peer-python", python)
    assert result.exit_code == 1
    assert_one_error_line(result.stderr)
    assert "a run of llama.cpp ended with status 1: the peer is out of sorts" in result.stderr


def test_a_peer_that_prints_no_figures_is_no_python(model):
    request = compare.Request(str(model), [1], [2], context=8)
    for words in (["true"], ["echo", "hello"], ["echo", "3"], ["echo", "{}"]):
        with pytest.raises(q4run.Error, match=f"printed no figures: is {words[0]} a Python"):
            compare._run("llama.cpp", words, request)


def test_what_q4run_cannot_do_is_told_as_it_tells_it(model):
    request = compare.Request(str(model), [1], [2], context=8, ram_budget="1M")
    with pytest.raises(q4run.Error, match=r"does not fit into 1\.00 MB: it needs at least"):
        compare.run_in_turn(request, runs=1)


def test_programs_take_turns(model, monkeypatch):
    heard, ran = [], []

    def run(name: str, command: list[str], request: compare.Request) -> list[dict[str, Any]]:
        ran.append((name, request.threads))
        return [{"threads": 2}]

    monkeypatch.setattr(compare, "_run", run)
    request = compare.Request(str(model), [1], [2], context=8)
    results = compare.run_in_turn(
        request, runs=3, peer_python="python", progress=lambda *step: heard.append(step)
    )
    names = ["q4run", "llama.cpp", "llama.cpp", "q4run", "q4run", "llama.cpp"]
    assert [name for name, _ in ran] == names
    assert [threads for _, threads in ran] == [None, 2, 2, 2, 2, 2]
    assert heard == [(names[i], i, 6) for i in range(6)]
    assert {name: len(runs) for name, runs in results.items()} == {"q4run": 3, "llama.cpp": 3}


def test_medians_keep_whole_numbers_whole():
    runs = [
        {"peak_rss": rss, "n": n, "x": {"rate": rate, "io": "pread", "none": None}}
        for rss, n, rate in ((5, 1, 1.0), (9, 2, 4.0), (7, 8, 2.0), (6, 9, 3.0))
    ]
    middle = median_of(runs)
    assert middle == {"peak_rss": 9, "n": 2, "x": {"rate": 2.5, "io": "pread", "none": None}}
    assert type(middle["n"]) is int


def test_medians_are_of_what_is_known():
    runs = [{"peak_rss": 1, "share": share} for share in (None, 0.5, 0.7, None, 0.9)]
    assert median_of(runs)["share"] == 0.7


def test_ratios_are_taken_pair_by_pair():
    def run(speed: float) -> dict[str, Any]:
        return {"prefill": {"tok_s": speed}, "decode": {"tok_s": 2 * speed}, "peak_rss": 10}

    ratios = ratios_of([run(2.0), run(9.0)], [run(1.0), run(3.0)])
    assert ratios == {"prefill": [2.0, 3.0], "decode": [2.0, 3.0], "peak_rss": [1.0, 1.0]}


# As much of llama-cpp-python as the script uses; it writes down what is done to it.
FAKE_LIBRARY = """
    import json, sys
    GGML_TYPE_F16, GGML_TYPE_F32 = 1, 0

    class Parameters:
        use_extra_bufts = None

    def llama_model_default_params():
        return Parameters()

    class Llama:
        def __init__(self, path, **options):
            from llama_cpp.llama import llama_cpp
            self.log = [["load", path, options,
                         llama_cpp.llama_model_default_params().use_extra_bufts]]
        def reset(self):
            self.log.append(["reset"])
        def eval(self, ids):
            self.log.append(["eval", ids])
            print(json.dumps(self.log), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("warm_up", "passes", "starts"),
    [(True, 1, ["warm"]), (False, 1, ["cold"]), (False, 2, ["cold", "warm"])],
)
@pytest.mark.parametrize("repack", [True, False])
def test_the_peers_script(warm_up, passes, starts, repack, tmp_path):
    package = tmp_path / "llama_cpp"
    package.mkdir()
    (package / "__init__.py").write_text(textwrap.dedent(FAKE_LIBRARY))
    (package / "llama.py").write_text("import llama_cpp\n")
    request = {
        "model": "m.gguf",
        "prompt": [5, 6, 7],
        "continuation": [8, 9],
        "context": 64,
        "threads": 3,
        "kv_type": "f32",
        "io": "auto",
        "cache": "layers",
        "prefetch": "auto",
        "ram_budget": None,
        "warm_up": warm_up,
        "passes": passes,
        "repack": repack,
        "watch_disk": True,
    }
    done = subprocess.run(
        [sys.executable, llama_cpp_speed.__file__],
        input=json.dumps(request),
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert [figures["start"] for figures in measured] == starts
    expected = PEER_KEYS["decode"] | dict.fromkeys(
        ("bytes_per_token", "read_limit_ratio"), type(None)
    )
    for figures in measured:
        assert figures.pop("notes") == []
        assert shape_of(figures) == PEER_KEYS | {"decode": expected}
        assert figures["peak_rss"] > 1 << 20
    (load, *steps) = json.loads(done.stderr.splitlines()[-1])
    assert load[:2] == ["load", "m.gguf"]
    assert load[2]["n_ctx"] == 64
    assert load[2]["n_threads"] == load[2]["n_threads_batch"] == 3
    assert load[2]["type_k"] == load[2]["type_v"] == 0
    assert load[3] is repack
    once = [["reset"], ["eval", [5, 6, 7]], ["eval", [8]], ["eval", [9]]]
    assert steps == once * (passes + warm_up)


@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
def test_against_llama_cpp_itself(model):
    done = command(
        *("bench", model, "--vs", "llama.cpp", "--json"),
        *("-p", 20, "-n", 6, "--runs", 1, "--threads", 1),
    )
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    expected = PAIR_KEYS | {"cold": PAIR_KEYS | COLD_KEYS} | MADE_WITH_PEER_KEYS
    assert shape_of_report(figures) == expected
    assert figures["ratio"]["decode"] == pytest.approx(
        figures["decode"]["tok_s"] / figures["peer"]["decode"]["tok_s"]
    )


@pytest.fixture
def cgroups():
    """A skip where no memory limit can be enforced."""
    try:
        with limits.memory_cgroup(1 << 30):
            pass
    except q4run.Error as error:
        pytest.skip(str(error))


def test_a_limit_is_enforced_and_leaves_nothing_behind(cgroups):
    take = "import sys; b = bytearray(int(sys.argv[1])); print(len(b))"
    with limits.memory_cgroup(200 << 20) as group:
        for size, status in ((50 << 20, 0), (400 << 20, -9)):
            python = limits.inside(group, [sys.executable, "-c", take, str(size)])
            done = subprocess.run(python, capture_output=True, text=True, check=False)
            assert done.returncode == status, done.stderr
    assert not group.exists()


def test_runs_under_a_limit_begin_cold_and_stay_within_it(cgroups, model):
    limit = INTERPRETER_ALLOWANCE + 50_000_000
    request = compare.Request(str(model), [1, 2, 3], [4, 5], context=8, threads=1, warm_up=False)
    (figures,) = compare.run_in_turn(request, runs=1, limit=limit)["q4run"]
    assert figures["ram_budget"] == 49_000_000
    assert figures["peak_rss"] < limit
    assert figures["start"] == "cold"
    assert figures["first_token_s"] == pytest.approx(3 / figures["prefill"]["tok_s"])


def test_under_a_limit_the_peer_runs_from_its_map(cgroups, model, peer):
    python, log = peer()
    result = bench(model, "--vs", "llama.cpp", "--peer-python", python, "--limit", "600M")
    assert result.exit_code == 0, result.stderr
    for line in log.read_text().splitlines():
        asked = json.loads(line)[1]
        assert not asked["warm_up"]
        assert not asked["repack"]


def test_a_run_that_is_killed_says_so(cgroups):
    request = compare.Request("m.gguf", [1], [2], context=8)
    greedy = [sys.executable, "-c", "b = bytearray(10**9)"]
    with limits.memory_cgroup(100 << 20) as group, pytest.raises(q4run.Error, match="was killed"):
        compare._run("greedy", limits.inside(group, greedy), request)


def test_a_limit_that_python_alone_exceeds_is_an_error(model):
    result = bench(model, "--limit", INTERPRETER_ALLOWANCE)
    assert result.exit_code == 1
    assert_one_error_line(result.stderr)
    assert f"limit of {format_size(INTERPRETER_ALLOWANCE)}" in result.stderr


def test_the_read_limit_is_a_plausible_speed(monkeypatch):
    monkeypatch.setattr(memory_limit, "_N_BYTES", 64 << 20)
    assert 1e8 < memory_limit.read_limit(1) < 1e13


def test_the_runtime_does_not_import_it():
    code = """
        import sys
        import q4run.loading, q4run.generation.conversation, q4run.generation.perplexity
        import q4run.cli.bench
        assert not [name for name in sys.modules if name.startswith("q4run.bench")]
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
