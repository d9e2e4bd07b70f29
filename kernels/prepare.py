"""Kernels made ready; what is not on disk yet is compiled by a process of its own.

The compiler takes as much memory as all else that is not a model, and numba gives none of it back.

    python -m q4run.kernels.prepare KV_DTYPE FORMAT ...
"""

import hashlib
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress

import numba
import numpy as np
from llvmlite.binding import get_host_cpu_name

from q4run.kernels.compile import CACHE_FOLDER, can_cache
from q4run.kernels.formats import Format, find_format_named
from q4run.kernels.simd.target import host_features
from q4run.kernels.warmup import warm_up

Progress = Callable[[int, int], None]


def prepare(formats: Sequence[Format], kv_dtype: type, progress: Progress | None = None) -> None:
    """``warm_up``, after which kernels are there to be called.

    Where nothing can be kept for other processes, or that process fails, they are compiled here.
    ``progress`` hears of (steps done, steps in all).
    """
    words = [np.dtype(kv_dtype).name, *sorted(fmt.name for fmt in formats)]
    note = CACHE_FOLDER / f"compiled-{_digest(words)}"
    is_new = can_cache() and not note.exists()
    # A program that Python is embedded in has no executable to start.
    if is_new and sys.executable:
        _compile_apart(words, progress)
    warm_up(formats, kv_dtype, progress)
    if is_new:
        with suppress(OSError):
            note.touch()


def _digest(words: list[str]) -> str:
    """Of what is compiled, and of what numba tells its files apart by."""
    features = sorted(name for name, is_there in host_features().items() if is_there)
    facts = [*words, get_host_cpu_name(), *features, sys.version, numba.__version__]
    return hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]


def _compile_apart(words: list[str], progress: Progress | None) -> None:
    command = [sys.executable, "-P", "-m", "q4run.kernels.prepare", *words]
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
    except OSError:
        return
    with process:
        try:
            for line in process.stdout or ():
                done, total = map(int, line.split())
                if progress:
                    progress(done, total)
        except BaseException:
            process.kill()
            raise


def main() -> None:
    kv_dtype, *names = sys.argv[1:]
    formats = [fmt for name in names if (fmt := find_format_named(name))]
    warm_up(formats, np.dtype(kv_dtype).type, lambda done, total: print(done, total, flush=True))


if __name__ == "__main__":
    main()
