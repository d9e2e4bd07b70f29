"""Kernels made ready; what is not on disk yet is compiled by processes of their own.

The compiler takes as much memory as all else that is not a model, and numba gives none of it back.

    python -m q4run.kernels.prepare KV_KIND FORMAT ...

takes from standard input which steps to do, a byte each, and prints a line for each that is done.
"""

import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

import numba
from llvmlite.binding import get_host_cpu_name

from q4run.kernels.attention.kinds import find_kind
from q4run.kernels.attention.kinds.base import KVKind
from q4run.kernels.compiling.compile import CACHE_FOLDER, can_cache
from q4run.kernels.compiling.target import host_features
from q4run.kernels.formats import Format, find_format_named
from q4run.kernels.warmup import warm_up, warm_up_steps

Progress = Callable[[int, int], None]


def prepare(
    formats: Sequence[Format],
    kind: KVKind,
    progress: Progress | None = None,
    n_compilers: int = 1,
) -> None:
    """``warm_up``, after which kernels are there to be called.

    ``n_compilers`` processes share the work the first time. Where nothing can be kept for other
    processes, or they fail, kernels are compiled here. ``progress`` hears of (steps done, steps in
    all).
    """
    words = [kind.name, *sorted(fmt.name for fmt in formats)]
    note = CACHE_FOLDER / f"compiled-{_digest(words)}"
    is_new = can_cache() and not note.exists()
    # A program that Python is embedded in has no executable to start.
    if is_new and sys.executable:
        _compile_apart(words, len(warm_up_steps(formats, kind)), n_compilers, progress)
    warm_up(formats, kind, progress)
    if is_new:
        with suppress(OSError):
            note.touch()


def _digest(words: list[str]) -> str:
    """Of what is compiled, and of what numba tells its files apart by."""
    features = sorted(name for name, is_there in host_features().items() if is_there)
    facts = [*words, get_host_cpu_name(), *features, sys.version, numba.__version__]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def _compile_apart(
    words: list[str], n_steps: int, n_compilers: int, progress: Progress | None
) -> None:
    """Ends when all processes have; every one takes its next step from the same pipe."""
    command = [sys.executable, "-P", "-m", "q4run.kernels.prepare", *words]
    processes: list[subprocess.Popen[bytes]] = []
    steps_end, steps_begin = os.pipe()
    said_end, said_begin = os.pipe()
    with os.fdopen(steps_end, "rb") as steps, os.fdopen(said_end, "rb") as said:
        try:
            with os.fdopen(steps_begin, "wb") as all_steps:
                all_steps.write(bytes(range(n_steps)))
            with os.fdopen(said_begin, "wb") as say, suppress(OSError):
                for _ in range(n_compilers):
                    processes.append(
                        subprocess.Popen(
                            command, stdin=steps, stdout=say, stderr=subprocess.DEVNULL
                        )
                    )
            for done, _ in enumerate(said, 1):
                if progress:
                    progress(done, n_steps)
        except BaseException:
            for process in processes:
                process.kill()
            raise
        finally:
            for process in processes:
                process.wait()


def main() -> None:
    kind, *names = sys.argv[1:]
    formats = [fmt for name in names if (fmt := find_format_named(name))]
    steps = warm_up_steps(formats, find_kind(kind))
    while step := os.read(sys.stdin.fileno(), 1):
        steps[step[0]]()
        print("done", flush=True)


if __name__ == "__main__":
    main()
