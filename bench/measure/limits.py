"""Memory limits that the kernel enforces, and a page cache that does not help: Linux."""

import errno
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from q4run.errors import Error

# cgroup v1 and v2: the folder, the limit, and the limit with which swap counts as well.
_V1 = (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.memsw.limit_in_bytes")
_V2 = (Path("/sys/fs/cgroup"), "memory.max", "memory.swap.max")
_PATIENCE_S = 10.0

# Whether this system lets a program drop a file from the page cache (macOS does not).
CAN_DROP = hasattr(os, "posix_fadvise")


@contextmanager
def memory_cgroup(limit: int) -> Iterator[Path]:
    """A cgroup whose processes together get ``limit`` bytes, page cache included, and no swap.

    Everything in it must have ended when the context does. Raises Error where none can be made:
    it takes root, or with cgroup v2 a part of the hierarchy that is the user's.
    """
    for parent, limit_file, swap_file in _places():
        group = parent / f"q4run-bench-{os.getpid()}"
        try:
            group.mkdir()
        except OSError:
            continue
        try:
            if _limit(group, limit_file, swap_file, limit) and _can_be_entered(group):
                yield group
                return
        finally:
            _remove(group)
    raise Error("no memory limit can be enforced here: run as root on Linux, or without --limit")


def _places() -> list[tuple[Path, str, str]]:
    """Where a group may be made: at the top or, of cgroup v2, around this process's own."""
    places = [_V1, _V2]
    top, limit_file, swap_file = _V2
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            if line.startswith("0::/"):
                own = Path(line.removeprefix("0::/"))
                places += [(top / above, limit_file, swap_file) for above in own.parents[:-1]]
    return places


def _limit(group: Path, limit_file: str, swap_file: str, limit: int) -> bool:
    # Without the controller, the folder would take a file of any name.
    if not (group / limit_file).exists():
        return False
    try:
        (group / limit_file).write_text(str(limit))
    except OSError:
        return False
    if (group / swap_file).exists():
        (group / swap_file).write_text(str(limit) if "memsw" in swap_file else "0")
    return True


def _can_be_entered(group: Path) -> bool:
    done = subprocess.run(inside(group, ["true"]), stderr=subprocess.DEVNULL, check=False)
    return not done.returncode


def _remove(group: Path) -> None:
    """What was in the group may take a moment to be gone."""
    give_up = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return group.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > give_up:
                raise
        time.sleep(0.05)


def inside(group: Path, command: list[str]) -> list[str]:
    """``command`` as one that enters the cgroup before it begins."""
    return ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs"), *command]


def drop_from_page_cache(path: Path) -> None:
    """Pages that are cached already count for whoever read them first, not inside a limit.

    Does nothing without ``CAN_DROP``.
    """
    if CAN_DROP:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
