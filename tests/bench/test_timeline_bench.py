"""What ``q4run bench --trace`` and ``--plot`` make of a timeline."""

import json
import re
from dataclasses import replace
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import assert_one_error_line, invoke
from rich.cells import cell_len

import q4run
from q4run.bench.figures.outputs import check_writable, write_whole
from q4run.bench.measure import compare
from q4run.bench.measure.recording import Recording
from q4run.bench.measure.speed import choose_tokens
from q4run.bench.models.synthetic import write_model
from q4run.bench.view.chrome_trace import BEGINS, trace_of
from q4run.bench.view.plot import check_can_plot, write_plot
from q4run.bench.view.timeline_report import draw_timeline
from q4run.bench.view.token_times import (
    Times,
    added_up,
    in_groups,
    times_of,
    token_seconds,
    typical_token,
)
from q4run.experts.use import ExpertUse
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
)

MS = 10**6
needs_matplotlib = pytest.mark.skipif(
    find_spec("matplotlib") is None, reason="matplotlib is not installed"
)


def token_spans(begin: int, n_layers: int, wait: int) -> list[Span]:
    """A token of 2 ms for the embedding, 1 + 4 ms + ``wait`` a layer and 3 ms for the head, in
    nanoseconds; each layer's read takes 2 ms longer than the wait for it."""
    spans = [Span(EMBEDDING, NO_LAYER, COMPUTING, begin, begin := begin + 2 * MS)]
    for layer in range(n_layers):
        routed = begin + 1 * MS
        end = routed + 4 * MS + wait
        arrived = routed + 2 * MS + wait
        spans += [
            Span(ATTENTION, layer, COMPUTING, begin, routed),
            Span(WAIT, layer, COMPUTING, routed + 2 * MS, arrived),
            Span(READ, layer, 1, routed, arrived, 5, 1000),
            Span(EXPERTS, layer, COMPUTING, routed, end),
        ]
        begin = end
    return [*spans, Span(HEAD, NO_LAYER, COMPUTING, begin, begin + 3 * MS)]


def made_recording(n_layers: int = 3, waits: tuple[int, ...] = (6, 2, 4, 8)) -> Recording:
    """A prompt's pass and then the tokens', which wait so many ms in each layer."""
    spans: list[Span] = []
    passes, now = [], 100 * MS
    for i, wait in enumerate(waits):
        mine = token_spans(now, n_layers, wait * MS)
        passes.append(Pass(1 if i else 64, now, mine[-1].end))
        spans += mine
        now = mine[-1].end + MS
    counts = np.tile(np.array([2, 0, 1, 9], np.int64), (n_layers, 1))
    in_ram = np.tile(np.array([True, False, False, True]), (n_layers, 1))
    use = ExpertUse(range(n_layers), counts, in_ram)
    return Recording(
        "some/model[x].gguf", 2, "direct", 10**9, 2 * n_layers, 4 * n_layers, "warm", use,
        passes, spans, 0,
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """4 layers, the second and the fourth with 8 experts of which one is used."""
    path = tmp_path_factory.mktemp("bench") / "model.gguf"
    write_model(path, Geometry(4, 128, 2, 1, 64, 256, 8, 600, moe_step=2), "q8_0")
    return path


@pytest.fixture(scope="module")
def recording(model) -> Recording:
    """Of that model, in a process of its own, with half of the experts in RAM."""
    with q4run.load(model, context=64, threads=1) as opened:
        plan = opened.plan
    budget = plan.dense + plan.tokenizer + plan.kv + 8 * plan.slot_bytes  # scratch takes some
    ids = choose_tokens(model, 16, 40)
    return compare.record(
        compare.Request(str(model), *ids, context=64, threads=1, ram_budget=budget)
    )


# What the drawings draw


def test_the_time_of_a_token_is_shared_out():
    recording = made_recording()
    rows = times_of(recording, recording.passes[1])
    assert [(row.first, row.last) for row in rows] == [(-1, -1), (0, 0), (1, 1), (2, 2)]
    ends, *layers = rows
    assert ends == Times(-1, -1, rest=pytest.approx(0.005))
    for row in layers:
        assert row.attention == pytest.approx(0.001)
        assert row.feed_forward == pytest.approx(0.004)
        assert row.wait == pytest.approx(0.002)
        assert row.reading == pytest.approx(0.004)
        assert row.n_bytes == 1000
    one = recording.passes[1]
    assert added_up(rows).total == pytest.approx((one.end - one.begin) / 1e9)
    assert token_seconds(recording)[0] == (pytest.approx(0.020), pytest.approx(0.006))


def test_reads_at_the_same_time_count_once():
    recording = made_recording(1)
    extra = [span._replace(lane=2) for span in recording.spans if span.kind == READ]
    recording.spans.extend(extra)
    _, row = times_of(recording, recording.passes[1])
    assert row.reading == pytest.approx(0.004)
    assert row.n_bytes == 2000


def test_the_typical_token_is_the_one_of_middle_length():
    assert typical_token(made_recording(waits=(9, 1, 5, 3))) == 3
    assert typical_token(made_recording(waits=(9, 1, 5))) == 1
    assert typical_token(made_recording(waits=(9,))) is None


@pytest.mark.parametrize("n_layers", [1, 5, 48])
@pytest.mark.parametrize("most", [2, 3, 10, 100])
def test_layers_are_put_together_where_there_is_no_room(n_layers, most):
    recording = made_recording(n_layers)
    rows = times_of(recording, recording.passes[1])
    groups = in_groups(rows, most)
    assert len(groups) <= most
    assert len(groups) == len(rows) or len(rows) > most
    assert added_up(groups).total == pytest.approx(added_up(rows).total)
    assert [row.first for row in groups][:2] == [-1, 0]
    assert groups[-1].last == n_layers - 1
    for earlier, later in pairwise(groups):
        assert later.first == earlier.last + 1


# In the terminal


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("n_layers", [1, 3, 48, 126])
@pytest.mark.parametrize("height", [None, 24, 40])
@pytest.mark.parametrize("colour", [False, True])
def test_the_timeline_fits(width, n_layers, height, colour):
    text = draw_timeline(made_recording(n_layers), width, height, colour=colour)
    lines = text.plain.split("\n")
    assert max(map(cell_len, lines)) <= width
    if height is not None:
        assert len(lines) <= height
    assert bool([span for span in text.spans if span.style != "default"]) == colour


def test_bars_and_shares_say_where_the_time_went():
    lines = draw_timeline(made_recording(2), 59, colour=False).plain.split("\n")
    assert lines == [
        "token 2 of 3, a typical one: 23.0 ms",
        "▒ attention              2.00 ms   9 %",
        "█ experts, feed-forward  8.00 ms  35 %",
        "▓ embedding, head        5.00 ms  22 %",
        "· waiting for reads      8.00 ms  35 %",
        "  a read under way       12.0 ms  52 %",
        "prompt of 64: 27.0 ms, 44 % waiting",
        "layer     ms                               reading    bytes",
        " ends   5.00 ▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓                  0 %        -",
        "    0   9.00 ▒▒▒█████████████·············    67 %  1.00 kB",
        "    1   9.00 ▒▒▒█████████████·············    67 %  1.00 kB",
    ]


def test_without_streaming_it_is_of_computing_alone():
    resident = made_recording(1, waits=(0, 0))
    kept = [span for span in resident.spans if span.kind not in (READ, WAIT)]
    lines = draw_timeline(replace(resident, spans=kept), 59, colour=False).plain.split("\n")
    assert lines == [
        "token 1 of 1, a typical one: 10.0 ms",
        "▒ attention              1.00 ms  10 %",
        "█ experts, feed-forward  4.00 ms  40 %",
        "▓ embedding, head        5.00 ms  50 %",
        "prompt of 64: 10.0 ms",
        "layer     ms",
        " ends   5.00 ▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓▓",
        "    0   5.00 ▒▒▒▒▒▒███████████████████████",
    ]


def test_nothing_recorded_is_nothing_drawn():
    nothing = made_recording(waits=(3,))
    assert draw_timeline(nothing, 80, colour=False).plain == ""
    lost = made_recording()
    lost.spans.clear()
    assert draw_timeline(lost, 80, colour=True).plain == ""


# Of a model


def test_a_recording_is_of_a_prompt_and_some_tokens(recording):
    assert [one.n_tokens for one in recording.passes] == [16] + [1] * 32
    assert recording.start == "warm"
    assert recording.n_dropped == 0
    use = recording.use
    assert use is not None
    assert list(use.layers) == [1, 3]
    # Warmed up with all 40 tokens; a prompt uses an expert once a batch.
    assert (use.counts.sum(axis=1) >= 40 + 32 + 2).all()
    assert 0 < use.in_ram.sum() <= recording.n_slots < 16
    for one in recording.passes:
        rows = times_of(recording, one)
        assert [row.first for row in rows] == [-1, 0, 1, 2, 3]
        assert added_up(rows).total == pytest.approx((one.end - one.begin) / 1e9)
        assert min(min(vars(row).values()) for row in rows[1:]) >= 0
    assert {span.kind for span in recording.spans} == {
        EMBEDDING, ATTENTION, FEED_FORWARD, EXPERTS, HEAD, WAIT, READ,
    }  # fmt: skip
    again = Recording.from_json(json.loads(json.dumps(recording.to_json())))
    assert again.to_json() == recording.to_json()


def check_trace(content: bytes) -> list[dict]:
    """The complete events of a file in the Trace Event Format."""
    assert content.startswith(BEGINS)
    trace = json.loads(content)
    assert trace["displayTimeUnit"] in ("ms", "ns")
    events = trace["traceEvents"]
    assert {event["ph"] for event in events} <= {"X", "M"}
    for event in events:
        assert {"ph", "pid", "tid", "name", "args"} <= event.keys()
        if event["ph"] == "X":
            assert event["ts"] >= 0
            assert event["dur"] >= 0
    named = {event["tid"] for event in events if event["name"] == "thread_name"}
    assert {event["tid"] for event in events} == named
    return [event for event in events if event["ph"] == "X"]


def test_traces_are_what_viewers_expect(recording):
    events = check_trace(trace_of(recording))
    assert len(events) == len(recording.spans) + len(recording.passes)
    n_bytes = sum(span.n_bytes for span in recording.spans)
    assert sum(event["args"].get("bytes", 0) for event in events) == n_bytes > 0
    assert events[0]["name"] == "prompt of 16"
    assert {"attention 0", "feed-forward 0", "experts 1", "wait 3", "head"} <= {
        event["name"] for event in events
    }
    # Events of one thread lie beside or within each other.
    computing = sorted(
        (event["ts"], -event["dur"]) for event in events if event["tid"] == COMPUTING
    )
    open_ends: list[float] = []
    for begin, minus in computing:
        while open_ends and open_ends[-1] <= begin + 1e-3:
            open_ends.pop()
        assert not open_ends or begin - minus <= open_ends[-1] + 1e-3
        open_ends.append(begin - minus)


def test_a_trace_of_nothing(recording):
    empty = made_recording(waits=())
    assert check_trace(trace_of(empty)) == []


# The command


@pytest.fixture
def known_read_limit(monkeypatch):
    monkeypatch.setattr("q4run.planning.memory_speed.read_limit", lambda threads: 20e9)


def bench(*arguments: object):
    return invoke("bench", *arguments, "-p", 20, "-n", 6, "--runs", 1, "--warm", "--threads", 1)


def test_trace_writes_a_file_and_draws(model, tmp_path, known_read_limit):
    path = tmp_path / "timeline.json"
    path.write_bytes(BEGINS + b"an older one")
    result = bench(model, "--trace", path)
    assert result.exit_code == 0, result.stderr
    check_trace(path.read_bytes())
    assert list(tmp_path.iterdir()) == [path]
    for row in (
        r"token \d of 6, a typical one",
        r"layer +ms",
        r"layer experts 0 to 7",
        "in RAM: o",
    ):
        assert re.search(row, result.stdout), row
    assert "ui.perfetto.dev" in result.stderr


def test_json_stays_alone_on_standard_output(model, tmp_path, known_read_limit):
    result = bench(model, "--trace", tmp_path / "timeline.json", "--json")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count("\n") == 1
    json.loads(result.stdout)
    assert "a typical one" in result.stderr


@needs_matplotlib
@pytest.mark.parametrize("suffix", ["png", "svg", "pdf", "PNG"])
def test_plots(suffix, recording, tmp_path):
    path = tmp_path / f"plot.{suffix}"
    check_can_plot(path)
    write_plot(path, recording, {})
    begins = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix.lower()]
    assert path.read_bytes().startswith(begins)
    assert path.stat().st_size > 5000


@needs_matplotlib
@pytest.mark.parametrize("made", [{"n_layers": 126}, {"waits": (3,)}, {"n_layers": 1}])
def test_plots_of_many_layers_and_of_few(made, tmp_path):
    write_plot(tmp_path / "plot.png", made_recording(**made), {})
    assert (tmp_path / "plot.png").stat().st_size > 5000


@needs_matplotlib
def test_the_plot_of_a_model_without_experts(tmp_path):
    dense = replace(made_recording(), use=None)
    write_plot(tmp_path / "plot.svg", dense, {})
    assert (tmp_path / "plot.svg").stat().st_size > 5000


@needs_matplotlib
def test_plot_writes_a_picture(model, tmp_path, known_read_limit):
    path = tmp_path / "plot.png"
    result = bench(model, "--plot", path)
    assert result.exit_code == 0, result.stderr
    assert path.read_bytes().startswith(b"\x89PNG")
    assert "a typical one" not in result.stdout


def test_without_matplotlib_it_says_what_to_install(model, tmp_path, monkeypatch):
    monkeypatch.setattr("q4run.bench.view.plot.find_spec", lambda name: None)
    result = bench(model, "--plot", tmp_path / "plot.png")
    assert result.exit_code == 1
    assert_one_error_line(result.stderr)
    assert "pip install matplotlib" in result.stderr


@needs_matplotlib
@pytest.mark.parametrize("name", ["plot.gguf", "plot", "plot.docx"])
def test_unknown_kinds_of_picture_are_one_line(name, model, tmp_path):
    result = bench(model, "--plot", tmp_path / name)
    assert result.exit_code == 1
    assert_one_error_line(result.stderr)
    assert "end the name in .png, .svg or .pdf" in result.stderr
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_told_before_anything_is_measured(model, tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "run_in_turn", lambda *_, **__: pytest.fail("measured"))
    other = tmp_path / "notes.json"
    other.write_text("{}")
    for path, message in (
        (tmp_path / "none" / "t.json", "cannot be written"),
        (tmp_path, "is a folder"),
        (other, "is there already and is something else"),
        (Path("/dev/null"), "no ordinary file"),
    ):
        result = bench(model, "--trace", path)
        assert result.exit_code == 1
        assert_one_error_line(result.stderr)
        assert message in result.stderr
    assert other.read_text() == "{}"


def test_files_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "out"
    check_writable(path)
    assert not list(tmp_path.iterdir())
    write_whole(path, b"first")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(q4run.Error, match="out: cannot be written: No space left"):
        write_whole(path, b"second")
    assert path.read_bytes() == b"first"
    assert list(tmp_path.iterdir()) == [path]
