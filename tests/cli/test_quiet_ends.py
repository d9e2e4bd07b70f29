"""What the shell brings about: a reader that has seen enough, arguments that are no text."""

import os
import shutil
import subprocess
import sys

import pytest

from q4run.box import MODEL

COMMAND = [sys.executable, "-m", "q4run"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["inspect", MODEL],
        ["inspect", "--tensors", MODEL],
        ["inspect", "--tensors", "--json", MODEL],
        ["plan", MODEL],
        ["doctor"],
        ["--help"],
        ["inspect", "--help"],
        ["run", MODEL, "-p", "Hello", "-n", "3"],
    ],
    ids=lambda arguments: " ".join(map(os.path.basename, map(str, arguments))),
)
def test_a_reader_that_closed_the_output(arguments):
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(
            [*COMMAND, *arguments], stdout=writing, stderr=subprocess.PIPE, timeout=300
        )
    finally:
        os.close(writing)
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert b"rror" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", MODEL, "-p", b"caf\xe9"],
        ["run", MODEL, b"--prompt=caf\xe9"],
        ["chat", "--system", b"caf\xe9", MODEL],
        ["inspect", b"caf\xe9.gguf"],
        [b"caf\xe9"],
    ],
    ids=str,
)
def test_an_argument_that_is_not_utf_8(arguments):
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, timeout=300)
    assert done.returncode == 1
    assert done.stdout == b""
    assert done.stderr.startswith(b"error: the argument '")
    assert b"not text in UTF-8" in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_a_file_of_such_a_name_is_found(tmp_path):
    path = os.fsencode(tmp_path / "caf") + b"\xe9.gguf"
    shutil.copy(MODEL, path)
    done = subprocess.run([*COMMAND, "inspect", path], capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert b"llama4" in done.stdout
