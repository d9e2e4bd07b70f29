"""How the command line ends: signals at any moment, what children and files are left, errors."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.chat_models import make_chat_model
from helpers.commands import COMMAND, assert_one_error_line, command, invoke
from helpers.fake_peer import make_fake_peer

from q4run.convert.output.leftovers import hold, remove_leftovers, temporary_path
from q4run.machine.interrupts import ending_cleanly, quit_on_ctrl_c, raising_ctrl_c


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("ends"))


def wait_for(condition) -> None:
    deadline = time.monotonic() + 600  # kernels may have to be compiled first
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Signals

# Presses Ctrl-C when a module is first looked for, and says so.
PRESS = """
import os, signal, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = ["q4run", *{words!r}]
from q4run.__main__ import main
main()
"""


@pytest.mark.parametrize(
    "module", ["typer", "q4run.cli", "rich", "q4run.cli.inspect", "q4run.settings"]
)
def test_ctrl_c_while_it_starts_is_status_130_without_a_word(module):
    program = PRESS.format(module=module, words=["inspect", "nothing.gguf"])
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_ctrl_c_raises_again_in_a_verb():
    before = signal.getsignal(signal.SIGINT)
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        quit_on_ctrl_c()
        quiet = signal.getsignal(signal.SIGINT)
        assert quiet is not signal.default_int_handler
        with pytest.raises(KeyboardInterrupt), raising_ctrl_c():
            signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) is quiet
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # as a shell does for what it starts apart
        quit_on_ctrl_c()
        with raising_ctrl_c():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_polite_kill_raises(number):
    with pytest.raises(SystemExit) as caught, ending_cleanly():
        signal.raise_signal(number)
    assert caught.value.code == 128 + number
    assert signal.getsignal(number) is signal.SIG_DFL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_bench_leaves_no_child_measuring(model_path, tmp_path, number):
    note = tmp_path / "pid"
    before = f"import os, time; print(os.getpid(), file=open({str(note)!r}, 'w')); time.sleep(600)"
    peer, _ = make_fake_peer(tmp_path, before=before)
    words = ["-p", "8", "-n", "2", "--runs", "1", "--threads", "1", "--peer-python", str(peer)]
    process = subprocess.Popen(
        [*COMMAND, "bench", str(model_path), "--vs", "llama.cpp", *words],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            wait_for(lambda: process.poll() is not None or (note.exists() and note.read_text()))
            process.send_signal(number)
            _, complaints = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 128 + number
    assert "Traceback" not in complaints
    with pytest.raises(ProcessLookupError):
        os.kill(int(note.read_text()), 0)


# What killed conversions leave


def dead_process() -> int:
    return int(subprocess.check_output([sys.executable, "-c", "import os; print(os.getpid())"]))


def test_files_of_killed_conversions_are_removed_and_no_others(tmp_path):
    out = tmp_path / "model.gguf"
    dead = tmp_path / f".model.gguf.{dead_process()}.partial"
    others = [
        temporary_path(out),
        tmp_path / f".model.gguf.{os.getppid()}.partial",
        tmp_path / f".other.gguf.{dead_process()}.partial",
        tmp_path / ".model.gguf.partial",
        tmp_path / ".model.gguf.12x.partial",
    ]
    for path in (dead, *others):
        path.write_bytes(b"half")
    assert remove_leftovers(out) == [dead]
    assert sorted(tmp_path.iterdir()) == sorted(others)
    assert remove_leftovers(tmp_path / "nowhere" / "model.gguf") == []


def test_a_file_that_is_still_written_elsewhere_stays(tmp_path):
    """In another container a process may live whose number nobody has here."""
    path = tmp_path / f".model.gguf.{dead_process()}.partial"
    with path.open("wb") as file:
        held = hold(file)
    assert remove_leftovers(tmp_path / "model.gguf") == []
    os.close(held)
    assert remove_leftovers(tmp_path / "model.gguf") == [path]


@pytest.mark.parametrize("resume", [[], ["--resume"]])
def test_convert_says_what_it_removed(model_path, tmp_path, resume):
    left = tmp_path / f".out.gguf.{dead_process()}.partial"
    left.write_bytes(b"half")
    result = invoke("convert", model_path, tmp_path / "out.gguf", "--type", "q8_0", *resume)
    assert result.exit_code == 0, result.stderr
    assert f"a killed conversion had left was removed: {left.name}" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out.gguf"]


# What is wrong with what is given


@pytest.mark.parametrize("prompt", ["", " ", "\n\t \u3000"])
def test_a_prompt_that_says_nothing_is_refused(tmp_path, prompt):
    path = tmp_path / "prompt.txt"
    path.write_text(prompt)
    for words, given in ((["-p", prompt], None), (["-f", path], None), (["-p", "-"], prompt)):
        result = invoke("run", *words, stdin=given)
        assert result.exit_code == 1
        assert_one_error_line(result.stderr)
        assert "the prompt is empty: write something to answer" in result.stderr


def test_white_space_can_be_continued_as_it_stands(model_path):
    result = invoke("run", model_path, "-p", "\n", "--raw", "-n", 2, "--temp", 0)
    assert result.exit_code == 0


@pytest.mark.parametrize(
    "words",
    [
        ["run", "-p", "a"],
        ["chat"],
        ["inspect"],
        ["plan"],
        ["perplexity", "-f", "nothing.txt"],
        ["bench"],
        ["convert", "--type", "q8_0"],
    ],
)
def test_json_of_a_failure_is_one_object(tmp_path, words):
    result = invoke(words[0], tmp_path / "nothing.gguf", *words[1:], "--json", stdin="")
    assert result.exit_code == 1
    said = json.loads(result.stdout)
    assert list(said) == ["error"]
    assert result.stderr.splitlines()[-1] == f"error: {said['error']}"


# Advice


def test_convert_works_with_the_memory_that_it_advises(model_path, tmp_path):
    words = ["convert", model_path, tmp_path / "out.gguf", "--type", "q4_0", "--threads", "1"]
    refused = command(*words, "--max-ram", "1M")
    assert refused.returncode == 1
    advised = re.search(r"--max-ram (\d+M)", refused.stderr)
    done = command(*words, "--max-ram", advised[1])
    assert done.returncode == 0, done.stderr
