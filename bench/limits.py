"""Memory limits that the kernel enforces, and a page cache that does not help: Linux, as root."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from q4run.errors import Error

# cgroup v1 and v2: the folder, the limit, and the limit with which swap counts as well.
_CONTROLLERS = (
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
    ("/sys/fs/cgroup", "memory.max", "memory.swap.max"),
)


@contextmanager
def memory_cgroup(limit: int) -> Iterator[Path]:
    """A cgroup whose processes together get ``limit`` bytes, page cache included, and no swap.

    Everything in it must have ended when the context does. Raises Error where none can be made.
    """
    for parent, limit_file, swap_file in _CONTROLLERS:
        group = Path(parent) / f"q4run-bench-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if _limit(group, limit_file, swap_file, limit):
                yield group
                return
        finally:
            group.rmdir()
    raise Error("no memory limit can be enforced here: run as root on Linux, or without --limit")


def _limit(group: Path, limit_file: str, swap_file: str, limit: int) -> bool:
    try:
        (group / limit_file).write_text(str(limit))
    except OSError:
        return False
    if (group / swap_file).exists():
        (group / swap_file).write_text(str(limit) if "memsw" in swap_file else "0")
    return True


def inside(group: Path, command: list[str]) -> list[str]:
    """``command`` as one that enters the cgroup before it begins."""
    return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs"), *command]


def drop_from_page_cache(path: Path) -> None:
    """Pages that are cached already count for whoever read them first, not inside a limit."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
