"""The folder of compiled kernels: damaged, full, and without a place to be."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import errno, os, sys
from numba.core.caching import IndexDataCacheFile
from q4run.kernels.compiling.compile import kernel, c_function, take_remarks

if "full" in sys.argv:
    def fail(self, path):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    IndexDataCacheFile._open_for_write = fail

@kernel()
def add(x):
    return x + 1

@c_function("int64(int64)")
def double(x):
    return 2 * x

assert (add(1), double.ctypes(4)) == (2, 8)
hits = sum(add.stats.cache_hits.values()) + double.cache_hits
print(hits, *take_remarks(), sep="|")
assert not take_remarks()
"""


def run(folder: Path, *words: str) -> list[str]:
    """The kernels that came from the cache, and what is to be told."""
    program = folder / "program.py"
    program.write_text(PROGRAM)
    os.utime(program, (0, 0))  # numba takes a newer file for a changed one
    done = subprocess.run(
        [sys.executable, program, *words],
        env=os.environ | {"Q4RUN_CACHE": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().split("|")


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 255]) + data[middle + 1 :]


@pytest.mark.parametrize("kind", [".nbi", ".nbc"])
def test_damaged_files_are_made_anew_with_a_line(kind, tmp_path):
    assert run(tmp_path) == ["0"]
    assert run(tmp_path) == ["2"]
    for damage in (lambda data: b"", cut, lambda data: b"garbage" * 99, flip):
        found = [path for path in (tmp_path / "cache").rglob(f"*{kind}") if "program" in path.name]
        assert len(found) == 2
        for path in found:
            path.write_bytes(damage(path.read_bytes()))
        hits, *told = run(tmp_path)
        assert hits == "0"
        if kind == ".nbc" or damage is not flip:  # an index may be whole and not fit
            assert len(told) == 1
            assert "was damaged: its kernels were compiled anew" in told[0]
        assert run(tmp_path) == ["2"]


def test_without_room_kernels_are_compiled_and_it_is_said_where(tmp_path):
    for _ in range(2):
        hits, told = run(tmp_path, "full")
        assert hits == "0"
        assert str(tmp_path / "cache") in told
        assert os.strerror(errno.ENOSPC).lower() in told
        assert "Q4RUN_CACHE" in told
    assert not list((tmp_path / "cache").rglob("*.nbc"))
