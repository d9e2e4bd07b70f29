"""Compiling kernels with numba: once per machine, version and SIMD target, then from disk."""

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import update_wrapper
from pathlib import Path
from typing import Any

import numba
from numba.core import config

from q4run.kernels.simd.target import TARGET


def _source_fingerprint() -> str:
    """A hash of all kernel sources: numba itself only notices a change in the caller's own file."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _cache_root() -> Path:
    override = os.environ.get("Q4RUN_CACHE")
    if override:
        return Path(override)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "q4run"


# Numba keys its files by processor and signature; target and sources are ours to tell apart.
CACHE_FOLDER = _cache_root() / "kernels" / f"{_source_fingerprint()}-{TARGET}"


def _can_write(folder: Path) -> bool:
    """Whether compiled kernels can be kept; numba's own fallback would mix targets and sources."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


# About 40 microseconds of one core's int8 products.
_SMALL_WORK = 1 << 20
_CAN_CACHE = _can_write(CACHE_FOLDER)


def kernel(**options: Any) -> Callable[[Callable], Callable]:
    """``numba.njit`` with q4run's cache folder: for the functions that Python calls.

    Where the folder cannot be written to, every process compiles for itself.
    """

    # Numba would take the two forms of a ``Threaded`` function for one.
    form = "parallel" if options.get("parallel") else "serial"

    def decorate(function: Callable) -> Callable:
        saved = config.CACHE_DIR
        config.CACHE_DIR = str(CACHE_FOLDER / form)
        try:
            return numba.njit(cache=_CAN_CACHE, nogil=True, **options)(function)
        finally:
            config.CACHE_DIR = saved

    return decorate


class Threaded:
    """A function with ``prange``, compiled twice: to run on one thread and on all of them.

    A region on several threads ends when the last of them has had its turn. Where another program
    keeps a core busy that takes milliseconds, so small work stays on one thread.
    """

    _every_form = False

    def __init__(self, function: Callable, n_operations: Callable[..., int]) -> None:
        update_wrapper(self, function)
        self._serial = kernel()(function)
        self._parallel = kernel(parallel=True)(function)
        self._n_operations = n_operations

    def __call__(self, *args: Any) -> None:
        if Threaded._every_form:
            self._serial(*args)
            self._parallel(*args)
        elif self._n_operations(*args) > _SMALL_WORK:
            self._parallel(*args)
        else:
            self._serial(*args)

    @staticmethod
    @contextmanager
    def every_form() -> Iterator[None]:
        """Inside, each call runs both forms: to have them compiled."""
        Threaded._every_form = True
        try:
            yield
        finally:
            Threaded._every_form = False


def threaded(n_operations: Callable[..., int]) -> Callable[[Callable], Threaded]:
    """Makes a ``Threaded``; ``n_operations`` tells a call's multiplications from its arguments."""
    return lambda function: Threaded(function, n_operations)


def inline(function: Callable) -> Callable:
    """``numba.njit`` for the pieces kernels are made of: always inlined, never cached alone."""
    return numba.njit(forceinline=True)(function)
