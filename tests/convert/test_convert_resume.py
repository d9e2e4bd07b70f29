"""``--resume``: what is finished is kept, and the end is the file of an uninterrupted run."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from helpers.converting import edit_tensors, load_checkpoint
from helpers.tiny_checkpoints import make_checkpoint

from q4run.convert import convert
from q4run.convert.output import outputs, stream
from q4run.convert.output.journal import Journal, fingerprint
from q4run.convert.output.layout import Part
from q4run.convert.tensors import OutputTensor, PlannedTensor
from q4run.errors import Error, FormatError
from q4run.kernels.formats import find_format_named
from q4run.models.parts import Role

COMMAND = [sys.executable, "-m", "q4run", "convert"]
SPLIT = {"split_max_size": 150_000}


@pytest.fixture(scope="module")
def mixtral(tmp_path_factory):
    return make_checkpoint("mixtral_sharded", tmp_path_factory.mktemp("checkpoint") / "mixtral")


@pytest.fixture(scope="module")
def whole(mixtral, tmp_path_factory):
    """The bytes of an uninterrupted run's files by name, in one file and in several."""
    folder = tmp_path_factory.mktemp("whole")
    convert(mixtral, folder / "model.gguf", type="q8_0")
    convert(mixtral, folder / "model.gguf", type="q8_0", **SPLIT)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def stop_after(share: float, kind=KeyboardInterrupt):
    """A progress callback that ends the conversion after a share of its bytes."""

    def progress(done: int, total: int) -> None:
        if done >= share * total:
            raise kind

    return progress


def interrupt(folder: Path, out: Path, share: float, **options) -> None:
    with pytest.raises(KeyboardInterrupt):
        convert(folder, out, type="q8_0", resume=True, progress=stop_after(share), **options)


def check_is_whole(folder: Path, whole: dict[str, bytes]) -> None:
    """Nothing but the output is in the folder, and it is the uninterrupted run's."""
    names = names_in(folder)
    assert names == ["model.gguf"] or len(names) > 3
    for name in names:
        assert (folder / name).read_bytes() == whole[name], name


@pytest.mark.parametrize("options", [{}, SPLIT], ids=["one", "split"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.5, 0.77, 1.0])
def test_resumed_after_any_share(share, options, mixtral, whole, tmp_path):
    out = tmp_path / "model.gguf"
    interrupt(mixtral, out, share, **options)
    assert all(name.startswith(".") for name in names_in(tmp_path))
    summary = convert(mixtral, out, type="q8_0", resume=True, **options)
    check_is_whole(tmp_path, whole)
    assert share == 0 or any("were kept" in note for note in summary.notes)


def test_resumed_many_times(mixtral, whole, tmp_path):
    out = tmp_path / "model.gguf"
    for share in (0.1, 0.2, 0.2, 0.6, 0.9):
        interrupt(mixtral, out, share)
    convert(mixtral, out, type="q8_0", resume=True)
    check_is_whole(tmp_path, whole)


def test_finished_matrices_are_not_done_again(mixtral, whole, tmp_path, monkeypatch):
    """Not even those of a stack of experts that was interrupted in the middle."""
    stack = "blk.1.ffn_up_exps.weight"
    before: list[tuple[str, int]] = []
    done: list[tuple[str, int]] = []
    quantise = stream.quantize_rows

    def fail_within_the_stack(planned, matrix, values):
        if (planned.tensor.name, matrix) == (stack, 5):
            before.extend(done)  # the thread may do another block before the end is told
            raise KeyboardInterrupt
        done.append((planned.tensor.name, matrix))
        return quantise(planned, matrix, values)

    def note(planned, matrix, values):
        done.append((planned.tensor.name, matrix))
        return quantise(planned, matrix, values)

    monkeypatch.setattr(stream, "quantize_rows", fail_within_the_stack)
    with pytest.raises(KeyboardInterrupt):
        convert(mixtral, tmp_path / "model.gguf", type="q8_0", resume=True, threads=1)
    assert (stack, 4) in before
    done.clear()
    monkeypatch.setattr(stream, "quantize_rows", note)
    convert(mixtral, tmp_path / "model.gguf", type="q8_0", resume=True, threads=1)
    assert [matrix for name, matrix in done if name == stack] == [5, 6, 7]
    assert not set(before) & set(done)
    check_is_whole(tmp_path, whole)


def test_a_plain_run_keeps_nothing_and_does_not_disturb(mixtral, whole, tmp_path):
    interrupt(mixtral, tmp_path / "model.gguf", 0.5)
    kept = names_in(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        convert(mixtral, tmp_path / "model.gguf", type="q8_0", progress=stop_after(0.5))
    assert names_in(tmp_path) == kept
    convert(mixtral, tmp_path / "model.gguf", type="q8_0", resume=True)
    check_is_whole(tmp_path, whole)


def test_nothing_is_left_of_a_run_that_could_not_begin(mixtral, tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"precious")
    with pytest.raises(Error, match="exists already"):
        convert(mixtral, tmp_path / "model.gguf", type="q8_0", resume=True)
    assert names_in(tmp_path) == ["model.gguf"]
    with pytest.raises(Error, match="no such folder"):
        convert(mixtral, tmp_path / "missing" / "model.gguf", type="q8_0", resume=True)


def test_an_existing_output_is_replaced_once_the_new_is_whole(mixtral, whole, tmp_path):
    out = tmp_path / "model.gguf"
    out.write_bytes(b"precious")
    interrupt(mixtral, out, 0.5, force=True)
    assert out.read_bytes() == b"precious"
    convert(mixtral, out, type="q8_0", resume=True, force=True)
    check_is_whole(tmp_path, whole)


@pytest.mark.parametrize("options", [{"type": "q4_0"}, {"type": "q8_0", "expert_type": "f16"}])
def test_other_options_are_refused(options, mixtral, whole, tmp_path):
    out = tmp_path / "model.gguf"
    interrupt(mixtral, out, 0.5)
    kept = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(Error, match=r"\.model\.gguf\.journal: .*other options.*delete"):
        convert(mixtral, out, resume=True, **options)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == kept
    # What the message advises.
    (tmp_path / ".model.gguf.journal").unlink()
    assert convert(mixtral, out, resume=True, **options).written
    assert names_in(tmp_path) == ["model.gguf"]


def test_arrays_that_quantising_goes_by_are_options_too():
    @dataclass(frozen=True)
    class Weighed(PlannedTensor):
        importance: np.ndarray | None = None

    tensor = OutputTensor("made.up", (2, 32), Role.MATRIX, lambda *_: np.zeros((2, 32)))
    fmt = find_format_named("q8_0")
    marks = [
        fingerprint([Part(Path("model.gguf"), b"GGUF", [Weighed(tensor, fmt, array)])], [])
        for array in (None, np.ones((1, 32)), np.ones((1, 32)), np.full((1, 32), 2.0))
    ]
    assert marks[1] == marks[2]
    assert len(set(marks)) == 3


def test_a_changed_source_is_refused(tmp_path):
    folder = make_checkpoint("llama_gqa", tmp_path / "llama")
    out = tmp_path / "out" / "model.gguf"
    out.parent.mkdir()
    interrupt(folder, out, 0.5)
    name = "model.norm.weight"
    edit_tensors(folder, **{name: load_checkpoint(folder)[name] * 2})
    with pytest.raises(Error, match="other files, or they have changed since"):
        convert(folder, out, type="q8_0", resume=True)


def test_damage_to_what_was_kept_begins_anew(mixtral, whole, tmp_path):
    partial, journal = tmp_path / ".model.gguf.partial", tmp_path / ".model.gguf.journal"

    def cut() -> None:
        os.truncate(partial, partial.stat().st_size // 3)

    def change_the_header() -> None:
        data = bytearray(partial.read_bytes())
        data[100] ^= 1
        partial.write_bytes(data)

    for damage in (cut, change_the_header, partial.unlink):
        interrupt(mixtral, tmp_path / "model.gguf", 0.6)
        damage()
        summary = convert(mixtral, tmp_path / "model.gguf", type="q8_0", resume=True)
        assert any("damaged: all was done anew" in note for note in summary.notes)
        check_is_whole(tmp_path, whole)
        (tmp_path / "model.gguf").unlink()

    for text in (b"", b"{", b"[]", b"\xff" * 50, b'{"version": 1, "n_bytes": "x"}', b"[" * 9000):
        interrupt(mixtral, tmp_path / "model.gguf", 0.6)
        journal.write_bytes(text)
        convert(mixtral, tmp_path / "model.gguf", type="q8_0", resume=True)
        check_is_whole(tmp_path, whole)
        (tmp_path / "model.gguf").unlink()


def test_a_journal_that_claims_too_much_begins_anew(mixtral, whole, tmp_path):
    interrupt(mixtral, tmp_path / "model.gguf", 0.6)
    journal = tmp_path / ".model.gguf.journal"
    entry = json.loads(journal.read_text())
    journal.write_text(json.dumps(entry | {"n_bytes": 10**15}))
    convert(mixtral, tmp_path / "model.gguf", type="q8_0", resume=True)
    check_is_whole(tmp_path, whole)


def test_only_one_conversion_to_an_output(mixtral, tmp_path):
    interrupt(mixtral, tmp_path / "model.gguf", 0.5)
    held = Journal(tmp_path / ".model.gguf.journal")
    try:
        with pytest.raises(Error, match="another conversion to this output is running"):
            convert(mixtral, tmp_path / "model.gguf", type="q8_0", resume=True)
    finally:
        held.close()
    assert convert(mixtral, tmp_path / "model.gguf", type="q8_0", resume=True).written


def test_what_is_kept_needs_no_room(mixtral, whole, tmp_path, monkeypatch):
    interrupt(mixtral, tmp_path / "model.gguf", 0.8)
    n_bytes = len(whole["model.gguf"])
    usage = type("Usage", (), {"free": n_bytes // 10})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with pytest.raises(Error, match="the rest of the output takes"):
        convert(mixtral, tmp_path / "model.gguf", type="q8_0", resume=True)
    usage.free = n_bytes // 3
    with pytest.raises(Error, match="the output takes"):
        convert(mixtral, tmp_path / "model.gguf", type="q8_0")
    assert convert(mixtral, tmp_path / "model.gguf", type="q8_0", resume=True).written


def test_a_disk_that_fills_up_keeps_what_is_finished(mixtral, whole, tmp_path, monkeypatch):
    real = outputs.ResumableFiles.note

    def fail(self, file, written: int) -> None:
        real(self, file, written)
        if written > len(whole["model.gguf"]) // 2:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(outputs.ResumableFiles, "note", fail)
    with pytest.raises(Error, match=r"the disk filled up after .* what is finished was kept"):
        convert(mixtral, tmp_path / "model.gguf", type="q8_0", resume=True)
    monkeypatch.undo()
    summary = convert(mixtral, tmp_path / "model.gguf", type="q8_0", resume=True)
    assert any("were kept" in note for note in summary.notes)
    check_is_whole(tmp_path, whole)


def test_parts_that_cannot_be_put_in_place_are_kept(mixtral, whole, tmp_path, monkeypatch):
    real = Path.replace

    def fail(self, target):
        if Path(target).name.startswith("model-00003-of-"):
            raise OSError(5, "Input/output error")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(Error, match="cannot write: Input/output error"):
        convert(mixtral, tmp_path / "model.gguf", type="q8_0", resume=True, **SPLIT)
    assert all(name.startswith(".") for name in names_in(tmp_path))
    with pytest.raises(Error, match="cannot write"):
        convert(mixtral, tmp_path / "model.gguf", type="q8_0", **SPLIT)
    assert all(name.startswith(".") for name in names_in(tmp_path))
    monkeypatch.undo()
    summary = convert(mixtral, tmp_path / "model.gguf", type="q8_0", resume=True, **SPLIT)
    assert any("were kept" in note for note in summary.notes)
    check_is_whole(tmp_path, whole)


def test_an_error_of_the_source_keeps_what_is_finished(mixtral, whole, tmp_path, monkeypatch):
    quantise = stream.quantize_rows

    def fail(planned, matrix, values):
        if planned.tensor.name == "blk.2.attn_q.weight":
            raise FormatError("the network drive is gone")
        return quantise(planned, matrix, values)

    monkeypatch.setattr(stream, "quantize_rows", fail)
    with pytest.raises(FormatError, match="the network drive is gone"):
        convert(mixtral, tmp_path / "model.gguf", type="q8_0", resume=True)
    monkeypatch.undo()
    convert(mixtral, tmp_path / "model.gguf", type="q8_0", resume=True)
    check_is_whole(tmp_path, whole)


KILLED_PROGRAM = """
import os, signal, sys
from q4run.convert import convert
from q4run.convert.output import outputs
outputs.SYNC_BYTES = 50_000
def progress(done, total):
    if done >= float(sys.argv[3]) * total:
        os.kill(os.getpid(), signal.SIGKILL)
convert(sys.argv[1], sys.argv[2], type="q8_0", resume=True, progress=progress)
"""


def test_killed_at_any_moment(mixtral, whole, tmp_path):
    out = tmp_path / "model.gguf"
    for share in ("0.4", "0.8"):
        command = [sys.executable, "-c", KILLED_PROGRAM, mixtral, out, share]
        assert subprocess.run(command, timeout=120).returncode == -signal.SIGKILL
        assert names_in(tmp_path) == [".model.gguf.journal", ".model.gguf.partial"]
    summary = convert(mixtral, out, type="q8_0", resume=True)
    assert any("were kept" in note for note in summary.notes)
    check_is_whole(tmp_path, whole)


def test_ctrl_c_on_the_command_line_says_how_to_go_on(mixtral, whole, tmp_path):
    out = tmp_path / "model.gguf"
    command = [*COMMAND, mixtral, out, "--type", "q8_0", "--resume", "--threads", "1"]
    slow = (
        "import sys, time; from q4run.convert.output import stream; real = stream.quantize_rows\n"
        "def slowly(*arguments):\n    time.sleep(0.02)\n    return real(*arguments)\n"
        "stream.quantize_rows = slowly\n"
        "from q4run.cli import main; sys.argv[0] = 'q4run'; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", slow, *command[3:]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    partial = tmp_path / ".model.gguf.partial"
    deadline = time.monotonic() + 120
    while not partial.exists() or partial.stat().st_size < 60_000:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stdout == ""
    assert "the same command goes on from there" in stderr
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "of an interrupted conversion were kept" in result.stderr
    check_is_whole(tmp_path, whole)
