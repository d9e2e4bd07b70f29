"""Compiling kernels with numba: once per machine, version and SIMD target, then from disk."""

import fcntl
import hashlib
import os
import pickle
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numba
from numba.core import config
from numba.core.caching import FunctionCache, IndexDataCacheFile
from numba.core.ccallback import CFunc
from numba.core.sigutils import normalize_signature

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


_CHECKSUM_BYTES = 4


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


_remarks: dict[str, None] = {}


def take_remarks() -> list[str]:
    """Return what a person should know about the cache; nothing the next time."""
    remarks = list(_remarks)
    _remarks.clear()
    return remarks


class _CheckedFiles(IndexDataCacheFile):
    """Numba's files, where a damaged one counts as absent: a checksum stands before the code."""

    def _load_index(self) -> dict[Any, str]:
        try:
            return dict(super()._load_index())
        except OSError:
            return {}
        except Exception:  # whatever unpickling makes of it
            return self._damaged({})

    def _load_data(self, name: str) -> Any:
        with open(self._data_path(name), "rb") as file:
            checksum, data = file.read(_CHECKSUM_BYTES), file.read()
        if checksum != _checksum(data):
            return self._damaged(None)
        return pickle.loads(data)

    def _save_data(self, name: str, data: Any) -> None:
        dumped = self._dump(data)
        with self._open_for_write(self._data_path(name)) as file:
            file.write(_checksum(dumped))
            file.write(dumped)

    def _damaged(self, instead: Any) -> Any:
        _remarks[f"a file in {CACHE_FOLDER} was damaged: its kernels were compiled anew"] = None
        return instead


def _checksum(data: bytes) -> bytes:
    return zlib.crc32(data).to_bytes(_CHECKSUM_BYTES, "little")


class _KernelCache(FunctionCache):
    """Numba's, in q4run's folder, and safe where several processes compile.

    Numba numbers the files of a function's variants. Two processes that save at the same moment
    would take the same number, and one variant's code would be run as another's.
    """

    def __init__(self, function: Callable) -> None:
        saved = config.CACHE_DIR
        config.CACHE_DIR = str(CACHE_FOLDER)
        try:
            super().__init__(function)
        finally:
            config.CACHE_DIR = saved
        self._cache_file = _CheckedFiles(
            self._cache_path, self._impl.filename_base, self._impl.locator.get_source_stamp()
        )

    def save_overload(self, sig: Any, data: Any) -> None:
        """Keeps a kernel for the next start; where that is impossible, this one has it all the
        same."""
        try:
            with (CACHE_FOLDER / "lock").open("ab") as file:
                with suppress(OSError):  # some network file systems have no locks
                    fcntl.flock(file, fcntl.LOCK_EX)
                super().save_overload(sig, data)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            _remarks[
                f"compiled kernels cannot be kept in {CACHE_FOLDER} ({reason}): every start"
                " compiles them; make room on that disk, or set Q4RUN_CACHE to another folder"
            ] = None


def kernel(**options: Any) -> Callable[[Callable], Callable]:
    """``numba.njit`` with q4run's cache folder: for the functions that Python calls.

    Where the folder cannot be written to, every process compiles for itself.
    """

    def decorate(function: Callable) -> Callable:
        compiled = numba.njit(nogil=True, **options)(function)
        if _CAN_CACHE:
            compiled._cache = _KernelCache(function)
        return compiled

    return decorate


def c_function(signature: Any) -> Callable[[Callable], CFunc]:
    """``numba.cfunc`` with q4run's cache folder: compiled functions that are called by address."""

    def decorate(function: Callable) -> CFunc:
        compiled: Any = CFunc(function, normalize_signature(signature), locals={}, options={})
        if _CAN_CACHE:
            compiled._cache = _KernelCache(function)
        compiled.compile()
        return compiled

    return decorate


def inline(function: Callable) -> Callable:
    """``numba.njit`` for the pieces kernels are made of: inlined, not cached, not for Python."""
    options = {"forceinline": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return numba.njit(**options)(function)


def apart(function: Callable) -> Callable:
    """``inline``, but a function of its own."""
    options = {"forceinline": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
    return numba.njit(**options)(function)
