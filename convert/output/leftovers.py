"""Files of conversions that were killed: half made, and nobody's any more.

A conversion holds a lock on each of its files as long as it lives, so that another tells them from
those of a dead one, also where its process runs in another container.
"""

import fcntl
import os
import re
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import psutil


def temporary_path(path: Path) -> Path:
    """Return where the file grows that this process is to put at ``path``."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


def hold(file: BinaryIO) -> int:
    """Lock an open file as this process's own; return the descriptor that holds the lock."""
    with suppress(OSError):  # some file systems have no locks
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    return os.dup(file.fileno())


def remove_leftovers(path: Path) -> list[Path]:
    """Remove what killed processes left of a file that was to be at ``path``; return what it was.

    What cannot be removed stays, and files whose process may be alive.
    """
    pattern = re.compile(rf"\.{re.escape(path.name)}\.(\d+)\.partial")
    removed = []
    with suppress(OSError):
        for other in sorted(path.parent.iterdir()):
            match = pattern.fullmatch(other.name)
            if match and not psutil.pid_exists(int(match[1])) and _is_free(other):
                with suppress(OSError):
                    other.unlink()
                    removed.append(other)
    return removed


def _is_free(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
