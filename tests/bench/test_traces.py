"""Traces: written whole, read with suspicion, generated as stated."""

import json
import resource
import signal
from pathlib import Path

import numpy as np
import pytest

from q4run.bench.models.traces import Pass, in_chunks, made_trace, read_trace
from q4run.errors import Error, FormatError
from q4run.experts.trace import TraceWriter

HEADER = {"q4run_trace": 1, "layers": [1, 3], "n_expert": [4, 8], "n_expert_used": 2}


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "routing.trace"


def write(path: Path, *lines: object) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_what_is_written_is_read(path):
    writer = TraceWriter(path, [1, 3], [4, 8], [2, 3])
    writer.begin_pass(1)
    writer.layer(1, [2, 0])
    writer.layer(3, (7, 1, 4))
    writer.begin_pass(5)
    writer.layer(1, range(4))
    writer.layer(3, range(8))
    writer.close()
    trace = read_trace(path)
    assert (trace.layers, trace.n_expert, trace.n_used) == ([1, 3], [4, 8], [2, 3])
    expected = [Pass(1, [[0, 2], [1, 4, 7]]), Pass(5, [list(range(4)), list(range(8))])]
    assert trace.passes == expected
    assert trace.n_tokens == 6


def test_a_pass_is_in_the_file_with_its_last_layer_and_not_before(path):
    writer = TraceWriter(path, [0, 1], [4, 4], [1, 1])
    writer.begin_pass(1)
    writer.layer(0, [3])
    assert path.read_bytes().count(b"\n") == 1
    writer.begin_pass(1)  # the one before was cut short
    writer.layer(0, [1])
    writer.layer(1, [2])
    assert read_trace(path).passes == [Pass(1, [[1], [2]])]
    writer.begin_pass(1)
    writer.layer(0, [0])
    writer.close()
    assert read_trace(path).passes == [Pass(1, [[1], [2]])]


def test_layers_out_of_order_are_a_mistake(path):
    writer = TraceWriter(path, [0, 2], [4, 4], [1, 1])
    writer.begin_pass(1)
    with pytest.raises(ValueError, match="layer 2"):
        writer.layer(2, [0])
    writer.layer(0, [0])
    writer.layer(2, [0])
    with pytest.raises(ValueError, match="layer 0"):
        writer.layer(0, [0])
    writer.close()


def test_a_trace_is_replaced_and_nothing_else(path):
    for _ in range(2):
        TraceWriter(path, [0], [4], [1]).close()
    path.write_bytes(b"GGUF and more")
    with pytest.raises(Error, match="no trace"):
        TraceWriter(path, [0], [4], [1])
    assert path.read_bytes() == b"GGUF and more"


def test_a_full_disk_leaves_whole_lines(path):
    writer = TraceWriter(path, [0], [4], [1])
    size = path.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 15, before[1]))
        with pytest.raises(Error, match="cannot be written"):  # noqa: PT012
            for _ in range(3):
                writer.begin_pass(1)
                writer.layer(0, [3])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert read_trace(path).passes == [Pass(1, [[3]])]
    writer.begin_pass(1)
    writer.layer(0, [2])  # there is space again
    writer.close()
    assert read_trace(path).passes == [Pass(1, [[3]]), Pass(1, [[2]])]


def test_a_folder_that_is_not_there_is_one_clear_line(path):
    with pytest.raises(Error, match="cannot be written: No such file"):
        TraceWriter(path / "deeper", [0], [4], [1])
    with pytest.raises(Error, match="cannot be read: No such file"):
        read_trace(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q4run_trace": 2}, "another version"),
        ({"layers": [3, 1]}, "layers"),
        ({"layers": []}, "layers"),
        ({"layers": [1, 10**9]}, "layers"),
        ({"layers": "13"}, "layers"),
        ({"layers": [1, True]}, "layers"),
        ({"n_expert": [4]}, "n_expert"),
        ({"n_expert": [4, 10**12]}, "n_expert"),
        ({"n_expert": [4, 0]}, "n_expert"),
        ({"n_expert": None}, "n_expert"),
        ({"n_expert_used": 5}, "n_expert_used"),
        ({"n_expert_used": [1]}, "n_expert_used"),
        ({"n_expert_used": 0}, "n_expert_used"),
        ({"n_expert_used": "2"}, "n_expert_used"),
    ],
)
def test_broken_headers(path, change, message):
    write(path, HEADER | change, [1, [[0, 1], [2, 3]]])
    assert_refused(path, message)


@pytest.mark.parametrize(
    "broken",
    [
        {},
        [],
        [1],
        [1, [[0, 1], [2, 3]], 0],
        [0, [[0, 1], [2, 3]]],
        [True, [[0, 1], [2, 3]]],
        [1.5, [[0, 1], [2, 3]]],
        [1, [[0, 1]]],
        [1, [[0, 1], [2, 8]]],
        [1, [[0, 1], [2, -1]]],
        [1, [[0, 1], [2, 2]]],
        [1, [[0, 1], [2]]],
        [1, [[0, 1], [2, 3, 4]]],
        [1, [[0, 1], [2, "3"]]],
        [1, [[0, 1], 2]],
        [1, None],
    ],
)
def test_broken_passes(path, broken):
    write(path, HEADER, [1, [[0, 1], [2, 3]]], broken)
    assert_refused(path, "line 3 is no pass")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "line 1 is not"),
        (b"[1, 2]\n", "no trace"),
        (b"GGUF\x03\x00\x00\x00", "line 1 is not"),
        (b"\xff\xfe\xff", "line 1 is not"),
        (b"[" * 100_000, "line 1 is not"),
        (b"9" * 5000, "line 1 is not"),
        (json.dumps(HEADER).encode(), "without a single pass"),
        (json.dumps(HEADER).encode() + b"\n[1,[[0,1],[2,", "line 2 is not"),
        (b"\x93NUMPY", "damaged"),
        (b"\x93NUMPY\x01\x00\x10\x00{'descr': 'O'}  \n", "damaged"),
    ],
)
def test_other_files(path, content, message):
    path.write_bytes(content)
    assert_refused(path, message)


def test_a_file_too_large_is_refused_unread(path):
    with open(path, "wb") as file:
        file.truncate(1 << 40)
    assert_refused(path, "larger than")


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((2, 3)),
        np.zeros(3, np.uint8),
        np.zeros((0, 3), np.uint8),
        np.full((2, 3), -1),
        np.full((2, 3), 1 << 40),
        np.zeros((5000, 2), np.uint8),
        np.zeros((1, (1 << 23) + 1), np.uint8),
        np.array([[None]]),
    ],
)
def test_arrays_that_are_no_traces(path, array):
    with open(path, "wb") as file:
        np.save(file, array)
    assert_refused(path, "trace|damaged")


def test_an_array_that_claims_more_than_the_file_has(path):
    with open(path, "wb") as file:
        np.save(file, np.zeros((8, 500), np.uint8))
    path.write_bytes(path.read_bytes().replace(b"(8, 500)", b"(8, 900)"))
    assert_refused(path, "damaged")


def assert_refused(path: Path, message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        read_trace(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_an_array_of_layers_and_tokens(path):
    with open(path, "wb") as file:
        np.save(file, np.array([[1, 2, 1], [0, 5, 5]], np.uint8))
    trace = read_trace(path)
    assert (trace.layers, trace.n_expert, trace.n_used) == ([0, 1], [6, 6], [1, 1])
    assert trace.passes == [Pass(1, [[1], [0]]), Pass(1, [[2], [5]]), Pass(1, [[1], [5]])]


def test_the_recorded_routing(shared_data):
    trace = read_trace(shared_data / "weights" / "tiny-llama4" / "routing-trace.npy")
    assert (len(trace.layers), trace.n_expert, trace.n_tokens) == (8, [16] * 8, 20202)


def test_chunks_want_an_expert_once():
    trace = in_chunks(made_trace(2, 8, 2, 10, seed=3), 4)
    assert [one.n_tokens for one in trace.passes] == [4, 4, 2]
    single = made_trace(2, 8, 2, 10, seed=3).passes
    for layer in range(2):
        wanted = {expert for one in single[4:8] for expert in one.experts[layer]}
        assert trace.passes[1].experts[layer] == sorted(wanted)


def test_made_traces_have_their_shape_and_are_reproducible():
    trace = made_trace(3, 8, 3, 50, skew=1.0, reuse=0.5, seed=7)
    assert trace.passes == made_trace(3, 8, 3, 50, skew=1.0, reuse=0.5, seed=7).passes
    assert trace.passes != made_trace(3, 8, 3, 50, skew=1.0, reuse=0.5, seed=8).passes
    for one in trace.passes:
        assert [len(set(experts)) for experts in one.experts] == [3, 3, 3]
        assert all(0 <= expert < 8 for experts in one.experts for expert in experts)


def test_made_traces_may_use_every_expert():
    assert made_trace(1, 4, 4, 2, reuse=1.0).passes == [Pass(1, [[0, 1, 2, 3]])] * 2


def test_made_traces_have_their_skew_and_reuse():
    even = np.array([one.experts for one in made_trace(4, 8, 1, 4000).passes])[:, :, 0].T
    skewed = np.array([one.experts for one in made_trace(4, 8, 1, 4000, 1.0).passes])[:, :, 0].T
    for layer in range(4):
        assert np.abs(np.bincount(even[layer], minlength=8) / 4000 - 1 / 8).max() < 0.03
        shares = np.sort(np.bincount(skewed[layer], minlength=8) / 4000)[::-1]
        zipf = 1 / np.arange(1, 9)
        assert np.abs(shares - zipf / zipf.sum()).max() < 0.03
    assert len({tuple(np.bincount(layer, minlength=8).argsort()) for layer in skewed}) > 1
    kept = made_trace(4, 8, 1, 4000, reuse=0.4)
    chosen = np.array([one.experts for one in kept.passes])[:, :, 0]
    # Kept, or drawn anew and by chance the same.
    assert abs((chosen[1:] == chosen[:-1]).mean() - (0.4 + 0.6 / 8)) < 0.02
