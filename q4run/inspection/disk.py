"""The disk that models lie on: its speed, measured shortly, and its file system."""

import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from q4run.disk.file_systems import IN_MEMORY, file_system_of, takes_direct_reads
from q4run.disk.speed import FEWEST_BYTES, measure
from q4run.errors import Error
from q4run.gguf_file import open_gguf

_BLOCK_BYTES = 512  # the unit of st_blocks


def describe_disk(path: Path, seconds: float = 1.0) -> dict[str, Any]:
    """{"path", "file", "file_system", "traits", "direct_io", "read_bytes_s", "why_not_measured"}.

    path: a GGUF model, or a folder, of which the largest file is read for so many ``seconds``.
    file: what was read, or null; direct_io: whether it can be read past the page cache, null where
    that was not tried; read_bytes_s: bytes per second by way of reading, null with the reason under
    ``why_not_measured``. What the page cache holds of the file is let go. Raises Error where there
    is nothing at ``path`` or it is no model, as ``open_gguf`` does.
    """
    files = _files(path)
    on = file_system_of(path)
    largest = max(files, key=_size, default=None)
    speeds, reason = _speeds(largest, seconds, in_memory=IN_MEMORY in on.traits)
    return {
        "path": os.path.abspath(path),
        "file": None if largest is None else os.path.abspath(largest),
        "file_system": on.kind or None,
        "traits": list(on.traits),
        "direct_io": None if largest is None else takes_direct_reads(largest),
        "read_bytes_s": speeds,
        "why_not_measured": reason,
    }


def _files(path: Path) -> Sequence[Path]:
    """The parts of a model, or the files of a folder that might be one, by size."""
    try:
        if not path.is_dir():
            return open_gguf(path).parts
        with os.scandir(path) as entries:
            return [Path(entry.path) for entry in entries if entry.is_file()]
    except OSError as error:
        raise Error(f"{path}: cannot be read: {error.strerror or error}") from error


def _size(path: Path) -> int:
    """Bytes of a file that are its own: none of one that cannot be read or is mostly holes."""
    try:
        status = path.stat()
    except OSError:
        return -1
    is_sparse = status.st_blocks * _BLOCK_BYTES < status.st_size // 4
    if is_sparse or not stat.S_ISREG(status.st_mode) or not os.access(path, os.R_OK):
        return -1
    return status.st_size


def _speeds(
    path: Path | None, seconds: float, in_memory: bool
) -> tuple[dict[str, int] | None, str | None]:
    """Bytes per second by way of reading, or why there are none."""
    if path is None or _size(path) < FEWEST_BYTES:
        return None, "there is no file of 64 MB or more here to read"
    if in_memory:
        return None, "these files are in memory"
    try:
        speeds = measure([path], seconds)
    except (OSError, EOFError) as error:
        return None, f"reading failed: {error}"
    if not all(speeds.values()):
        return None, "the system keeps the file in its page cache"
    return {name: round(speed) for name, speed in speeds.items()}, None
