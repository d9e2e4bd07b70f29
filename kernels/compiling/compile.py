"""Compiling kernels with numba: once per machine, version and SIMD target, then from disk."""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
from numba.core import config

from q4run.kernels.compiling.target import TARGET


def _source_fingerprint() -> str:
    """A hash of all kernel sources: numba itself only notices a change in the caller's own file."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
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


_CAN_CACHE = _can_write(CACHE_FOLDER)


def can_cache() -> bool:
    """Whether compiled kernels are kept for the next start."""
    return _CAN_CACHE


def kernel(**options: Any) -> Callable[[Callable], Callable]:
    """``numba.njit`` with q4run's cache folder: for the functions that Python calls.

    Where the folder cannot be written to, every process compiles for itself.
    """
    return _in_cache_folder(numba.njit(cache=_CAN_CACHE, nogil=True, **options))


def _in_cache_folder(decorate: Callable[[Callable], Any]) -> Callable[[Callable], Any]:
    def decorate_in_folder(function: Callable) -> Any:
        saved = config.CACHE_DIR
        config.CACHE_DIR = str(CACHE_FOLDER)
        try:
            return decorate(function)
        finally:
            config.CACHE_DIR = saved

    return decorate_in_folder


def c_function(signature: Any) -> Callable[[Callable], Any]:
    """``numba.cfunc`` with q4run's cache folder: compiled functions that are called by address."""
    return _in_cache_folder(lambda function: numba.cfunc(signature, cache=_CAN_CACHE)(function))


def inline(function: Callable) -> Callable:
    """``numba.njit`` for the pieces kernels are made of: inlined, not cached, not for Python."""
    options = {"forceinline": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return numba.njit(**options)(function)
