"""What is kept of compiled kernels: how much, and whether this process could use it."""

import pickle
import sys
from pathlib import Path
from typing import Any

import numba
from numba.core.registry import cpu_target

from q4run.kernels.compiling.compile import CACHE_FOLDER, can_cache

_INDEX, _CODE = ".nbi", ".nbc"


def describe_kernel_cache(folder: Path = CACHE_FOLDER) -> dict[str, Any]:
    """{"folder", "writable", "kernels", "usable", "bytes", "others", "other_bytes"}.

    kernels: how many are compiled for this q4run and SIMD target, ``bytes`` in size; usable: those
    of them that this Python, numba and processor can load. others: folders of other versions and
    targets beside it, ``other_bytes`` in size.
    """
    others = [path for path in _entries(folder.parent) if path != folder and path.is_dir()]
    # Counted first: another process may be compiling.
    n_usable = sum(map(_usable, folder.rglob(f"*{_INDEX}")))
    return {
        "folder": str(folder),
        "writable": can_cache(),
        "kernels": sum(1 for _ in folder.rglob(f"*{_CODE}")),
        "usable": n_usable,
        "bytes": _size(folder),
        "others": len(others),
        "other_bytes": sum(map(_size, others)),
    }


def _usable(index: Path) -> int:
    """How many kernels numba would load by one of its index files.

    The index is two pickles: numba's version, then (stamp of the source, file of the code by
    (signature, what the code was generated for, hashes)). Numba unpickles the same file itself
    as it loads a kernel.
    """
    if f".py{sys.version_info.major}{sys.version_info.minor}" not in index.suffixes:
        return 0
    target = cpu_target.target_context.codegen().magic_tuple()
    try:
        with index.open("rb") as file:
            if pickle.load(file) != numba.__version__:
                return 0
            _, names = pickle.load(file)
        return sum(
            key[1] == target and (index.parent / name).is_file() for key, name in names.items()
        )
    except Exception:  # a file cut short, or written by a version that keeps other things
        return 0


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _size(folder: Path) -> int:
    n_bytes = 0
    for path in folder.rglob("*"):
        try:
            n_bytes += path.lstat().st_size if path.is_file() else 0
        except OSError:
            continue
    return n_bytes
