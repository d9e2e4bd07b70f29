"""Kernels are compiled by another process, once; where that fails, by this one."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PROGRAM = """
    import sys
    from pathlib import Path
    from q4run.kernels.attention.kinds import find_kind
    from q4run.kernels import prepare as module
    from q4run.kernels.compiling.compile import CACHE_FOLDER
    from q4run.kernels.formats import find_format_named

    compiled_here = []
    if "broken" in sys.argv:
        sys.executable = sys.argv[-1]
        module.warm_up = lambda formats, kv, progress: compiled_here.append(progress(1, 1))
    kv, names = find_kind("f16"), ["q4_0"]
    steps = []
    before = sorted(CACHE_FOLDER.glob("**/*.nbc"))
    began = module.subprocess.Popen
    started = []
    module.subprocess.Popen = lambda *a, **k: started.append(a) or began(*a, **k)
    formats = [find_format_named(n) for n in names]
    n_compilers = 3 if "three" in sys.argv else 1
    module.prepare(formats, kv, lambda *step: steps.append(step), n_compilers)
    peak = int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
    assert steps[-1][0] == steps[-1][1], steps
    after = len(list(CACHE_FOLDER.glob("**/*.nbc")))
    print(len(started), len(compiled_here), len(before), after, peak * 1024)
"""


def run(folder: Path, *words: str) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM), *words],
        env=os.environ | {"Q4RUN_CACHE": str(folder), "Q4RUN_SIMD": "generic"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
def test_several_processes_share_the_work(tmp_path):
    """Kernels are compiled elsewhere: this process never holds the compiler's memory."""
    n_started, _, n_before, n_after, peak = run(tmp_path, "three")
    assert (n_started, n_before) == (3, 0)
    assert n_after > 5
    n_started, _, _, n_again, next_peak = run(tmp_path)
    assert (n_started, n_again) == (0, n_after)
    assert peak < next_peak + 20_000_000


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize("python", ["/nowhere/python", "false", ""])
def test_without_that_process_kernels_are_compiled_here(tmp_path, python):
    assert run(tmp_path, "broken", python)[:4] == [int(bool(python)), 1, 0, 0]


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_ctrl_c_while_compiling_ends_both(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)],
        env=os.environ | {"Q4RUN_CACHE": str(tmp_path), "Q4RUN_SIMD": "generic"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        while not list(tmp_path.glob("**/*.nbc")):
            assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        _, complaints = process.communicate(timeout=60)
        assert "KeyboardInterrupt" in complaints
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)  # nobody of the group is left


# Two variants of one function: numba keeps them in numbered files behind one index.
VARIANTS = """
import sys, time
from numba import int64
from numba.core.caching import IndexDataCacheFile
from q4run.kernels.compiling.compile import c_function

def variant_of(number):
    @c_function(int64(int64))
    def variant(x):
        return x + number
    return variant

if __name__ == "__main__":
    print("ready", flush=True)
    if number := int(sys.stdin.readline()):
        load_index = IndexDataCacheFile._load_index
        IndexDataCacheFile._load_index = lambda file: (load_index(file), time.sleep(0.5))[0]
        variant_of(number)
    else:
        variants = [variant_of(1000), variant_of(2000)]
        print([v.ctypes(7) for v in variants], [v.cache_hits for v in variants])
"""


def test_processes_that_save_at_the_same_time_keep_all_variants(tmp_path):
    program = tmp_path / "variants.py"
    program.write_text(VARIANTS)

    def start() -> subprocess.Popen:
        process = subprocess.Popen(
            [sys.executable, str(program)],
            env=os.environ | {"Q4RUN_CACHE": str(tmp_path / "cache")},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout.readline() == "ready\n"
        return process

    writers = [start(), start()]
    for writer, number in zip(writers, (1000, 2000), strict=True):
        writer.stdin.write(f"{number}\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=300)
        assert writer.returncode == 0
    printed, _ = start().communicate("0\n", timeout=300)
    assert printed == "[1007, 2007] [1, 1]\n"
