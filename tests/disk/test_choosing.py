"""What ``--io auto`` takes, and what it remembers of a disk."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest

from q4run.disk import auto, speed
from q4run.disk.auto import Choice, choose_method
from q4run.disk.experience import Experience
from q4run.disk.speed import _DEEPER as DEEPER
from q4run.disk.speed import MOST_READERS, N_READERS, measure, remembered_speeds
from q4run.errors import Error
from q4run.machine.load import Load


@pytest.fixture
def model(tmp_path, monkeypatch, others) -> Path:
    """A file of 64 pieces of 4 kB, and notes that are this test's own."""
    monkeypatch.setattr(speed, "PIECE_BYTES", 4096)
    for module in (auto, speed):
        monkeypatch.setattr(module, "FEWEST_BYTES", 64 * 4096)
    monkeypatch.setattr(speed, "_NOTES", tmp_path / "cache" / "disks.json")
    path = tmp_path / "model.gguf"
    with path.open("wb") as file:
        file.write(np.random.default_rng(0).bytes(64 * 4096))
        file.flush()
        os.fsync(file.fileno())  # or it stays in the page cache
    return path


@pytest.fixture
def speeds(monkeypatch):
    """What a measurement gives; and how often one was made."""
    made = {"direct": 2e9, "pread": 1e9, DEEPER: 2e9}
    calls = []

    def measured(paths, seconds):
        calls.append(paths)
        return dict(made)

    monkeypatch.setattr(speed, "measure", measured)
    return made, calls


def test_what_is_asked_for_is_taken(model, speeds):
    for name in ("pread", "direct", "mmap"):
        assert choose_method(name, [model], False, 0) == Choice(name, "", keep_cached=False)
        assert choose_method(name, [model], False, 1 << 30) == Choice(name, "", keep_cached=True)
    assert not speeds[1]


def test_what_fits_into_memory_is_read_through_the_page_cache(model, speeds):
    size = model.stat().st_size
    assert choose_method("auto", [model], True, 0).method == "pread"
    assert choose_method("auto", [model], False, size).method == "pread"
    assert choose_method("auto", [model, model], False, 2 * size).method == "pread"
    assert not speeds[1]
    assert choose_method("auto", [model], False, size - 1).method == "direct"
    assert speeds[1]


def test_a_little_more_speed_is_not_worth_a_copy(model, speeds):
    made, _ = speeds
    made |= {"direct": 1e9, "pread": 1.4e9, DEEPER: 1e9}
    assert choose_method("auto", [model], False, 0).method == "direct"


@pytest.mark.parametrize("faster", ["direct", "pread"])
def test_what_does_not_fit_is_read_in_the_faster_way(model, speeds, faster):
    made, calls = speeds
    made |= {"direct": 1.6e9, "pread": 1e9, DEEPER: 1.6e9, faster: 2.5e9}
    choice = choose_method("auto", [model], False, 0)
    assert choice.method == faster
    assert f"{faster} 2.5 GB/s" in choice.reason
    assert "measured just now" in choice.reason
    again = choose_method("auto", [model], False, 0)
    assert again.method == faster
    assert "measured before" in again.reason
    assert len(calls) == 1


@pytest.mark.parametrize(("deeper", "n_readers"), [(1.9, N_READERS), (2.3, MOST_READERS)])
def test_more_threads_read_where_that_is_much_faster(model, speeds, deeper, n_readers):
    made, _ = speeds
    made |= {"direct": 2e9, DEEPER: deeper * 1e9}
    for _ in range(2):
        assert choose_method("auto", [model], False, 0).n_readers == n_readers


@pytest.mark.parametrize(
    "notes",
    ["", "{", "[]", "3", '{"0": {}}', '{"DEVICE": 7}', '{"DEVICE": {"figures": {"direct": 1e9}}}',
     '{"DEVICE": {"when": NOW, "figures": {"direct": "fast", "pread": 1}}}',
     '{"DEVICE": {"when": NOW, "figures": {"direct": 0, "pread": 1}}}',
     '{"DEVICE": {"when": NOW, "figures": {"direct": NaN, "pread": 1}}}',
     '{"DEVICE": {"when": NOW, "figures": 3}}', '{"DEVICE": {"when": NOW, "figures": {}}}'],
)  # fmt: skip
def test_notes_that_are_broken_are_made_anew(model, speeds, notes):
    device = speed._device(model)
    speed._NOTES.parent.mkdir()
    speed._NOTES.write_text(notes.replace("DEVICE", device).replace("NOW", str(time.time())))
    choose_method("auto", [model], False, 0)
    assert len(speeds[1]) == 1
    known = json.loads(speed._NOTES.read_text())
    assert known[device].pop("when") == pytest.approx(time.time(), abs=60)
    figures = {"direct": 2e9, "pread": 1e9, DEEPER: 2e9}
    assert known[device] == {"figures": figures, "beside_others": False}
    assert ("0" in known) == notes.startswith('{"0"')  # what is known of other disks stays


def test_what_was_measured_is_asked_again_the_next_day(model, speeds, monkeypatch):
    choose_method("auto", [model], False, 0)
    now = time.time()
    for later, n_measured in [(23 * 3600, 1), (25 * 3600, 2), (26 * 3600, 2), (-3600, 3)]:
        monkeypatch.setattr(time, "time", lambda later=later: now + later)
        choose_method("auto", [model], False, 0)
        assert len(speeds[1]) == n_measured


@pytest.mark.skipif(not hasattr(os, "RWF_NOWAIT"), reason="this system does not tell")
def test_what_stays_in_the_page_cache_is_not_measured(model, monkeypatch):
    monkeypatch.setattr(speed.os, "posix_fadvise", lambda *arguments: None)
    model.read_bytes()
    assert set(measure([model], seconds=0.01).values()) == {0.0}
    choice = choose_method("auto", [model], False, 0)
    assert choice.method == "direct"
    assert "could not be measured" in choice.reason
    assert not speed._NOTES.exists()


def test_what_other_programs_spoil_is_told_and_measured_again_when_they_are_done(
    model, speeds, others
):
    made, calls = speeds
    others.load = Load(disk=0.5)
    for n_measured, when in enumerate(("measured just now", "as measured before")):
        reason = choose_method("auto", [model], False, 0).reason
        assert reason.endswith(f"{when}, beside other programs")
        assert len(calls) == 1, n_measured
    others.load = Load()
    made["direct"] = 3e9
    reason = choose_method("auto", [model], False, 0).reason
    assert reason == "direct 3.0 GB/s, pread 1.0 GB/s from this disk, measured just now"
    assert choose_method("auto", [model], False, 0).reason.endswith("as measured before")
    assert len(calls) == 2


def test_where_nothing_can_be_noted_each_start_measures(model, speeds, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(speed, "_NOTES", tmp_path / "file" / "disks.json")
    for _ in range(2):
        assert choose_method("auto", [model], False, 0).method == "direct"
    assert len(speeds[1]) == 2


def test_a_small_file_is_not_measured(model, speeds):
    with model.open("r+b") as file:
        file.truncate(64 * 4096 - 1)
    assert choose_method("auto", [model], False, 0).method == "direct"
    assert not speeds[1]


def test_measuring_reads_the_largest_file(model, tmp_path, monkeypatch):
    small = tmp_path / "small"
    small.write_bytes(b"x" * 4096)
    read = []

    class Noting:
        def __init__(self, paths, *, keep_cached):
            pass

        def read(self, path, offset, target):
            assert len(target) == 4096
            read.append((path, offset))

        def close(self):
            read.append("closed")

    monkeypatch.setattr(speed, "METHODS", {"direct": Noting, "pread": Noting})
    monkeypatch.setattr(speed, "_is_cached", lambda file, offset: False)
    speeds = measure([small, model], seconds=60)
    assert set(speeds) == {"direct", "pread", DEEPER}
    assert all(speed > 0 for speed in speeds.values())
    # Every piece once, and by one method only: what is read twice comes from some cache.
    pieces = [entry for entry in read if entry != "closed"]
    assert sorted(pieces) == [(model, 4096 * i) for i in range(64)]
    assert read.count("closed") == 12


def test_measuring_a_real_file_takes_the_time_it_is_given(model, monkeypatch):
    monkeypatch.setattr(speed, "_is_cached", lambda file, offset: False)
    speeds = measure([model], seconds=0.01)
    assert all(speed > 0 for speed in speeds.values())


def test_a_file_that_shrinks_meanwhile_is_an_error(model, monkeypatch):
    class Shrunk:
        def __init__(self, paths, *, keep_cached):
            pass

        def read(self, path, offset, target):
            raise EOFError(f"{path}: the file became shorter while it was in use")

        def close(self):
            pass

    monkeypatch.setattr(speed, "METHODS", {"direct": Shrunk, "pread": Shrunk})
    monkeypatch.setattr(speed, "_is_cached", lambda file, offset: False)
    with pytest.raises(Error, match=r"cannot be read: .*shorter"):
        choose_method("auto", [model], False, 0)


# What a run reaches.

MB = 1 << 20


@pytest.mark.parametrize(
    ("method", "reached", "load", "expected"),
    [
        ("direct", 2.4e9, Load(), 2e9),  # as good as measured
        ("direct", 1.7e9, Load(), 2e9),
        ("direct", 4e9, Load(), 4e9),
        ("direct", 1e9, Load(), 1e9),
        ("direct", 4e9, Load(cpu=0.9), 4e9),
        ("direct", 1e9, Load(cpu=0.9), 2e9),
        ("pread", 4e9, Load(), 2e9),  # perhaps from the page cache
    ],
)
def test_a_run_corrects_what_was_measured(model, speeds, others, method, reached, load, expected):
    choose_method("auto", [model], False, 0)
    others.load = load
    run = Experience([model], Choice(method, ""))
    run.tell(round(2 * reached), 2.0)
    known = remembered_speeds(model)
    assert known is not None
    assert known.speeds == {"direct": expected, "pread": 1e9, DEEPER: 2e9}


def test_a_short_run_says_nothing_of_a_disk(model, speeds):
    choose_method("auto", [model], False, 0)
    run = Experience([model], Choice("direct", ""))
    run.tell(100 * MB, 2.0)
    run.tell(3000 * MB, 0.1)
    known = remembered_speeds(model)
    assert known is not None
    assert known.speeds["direct"] == 2e9


def test_a_run_on_a_disk_of_which_nothing_is_noted_notes_nothing(model, speeds):
    Experience([model], Choice("direct", "")).tell(3000 * MB, 1.0)
    assert remembered_speeds(model) is None


def test_a_run_with_the_deeper_queue_corrects_that(model, speeds):
    choose_method("auto", [model], False, 0)
    Experience([model], Choice("direct", "", MOST_READERS)).tell(6000 * MB, 1.0)
    known = remembered_speeds(model)
    assert known is not None
    assert known.speeds[DEEPER] == 6000 * MB
    assert known.speeds["direct"] == 2e9
