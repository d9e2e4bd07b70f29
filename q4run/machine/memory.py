"""How much memory there is, and how much this process holds."""

import resource
import sys
from collections.abc import Sequence
from pathlib import Path

import psutil

from q4run.machine.cgroups import cgroups


def available_memory() -> int:
    """Bytes this process could still take: what is free, cut to the container's limit."""
    return max(0, min(_free_memory(), *_container_headroom(Path("/"))))


def reclaimable_headroom() -> int:
    """Bytes this process could still take if all of the page cache were given back for it.

    What a running model goes by: inside a container's limit, its own reads keep the cache full.
    """
    files = ("inactive_file", "active_file")
    return max(0, min(_free_memory(), *_container_headroom(Path("/"), files)))


def total_memory() -> int:
    """Bytes of RAM this process may ever use: the machine's, cut to the container's limit."""
    limits = [_read_number(folder / limit) for folder, limit, _ in _cgroup_folders(Path("/"))]
    return min(
        [int(psutil.virtual_memory().total), *(limit for limit in limits if limit is not None)]
    )


def _free_memory() -> int:
    return int(psutil.virtual_memory().available)


def _container_headroom(root: Path, reclaimable: Sequence[str] = ("inactive_file",)) -> list[int]:
    """What is left below each memory limit of the cgroups (v1 and v2) this process is in.

    A group's page cache counts as left: the kernel gives it back before it refuses memory.
    reclaimable: which figures of its ``memory.stat`` that is.
    """
    headroom = [sys.maxsize]
    for folder, limit_file, usage_file in _cgroup_folders(root):
        limit = _read_number(folder / limit_file)
        if limit is None:
            continue
        usage = _read_number(folder / usage_file) or 0
        headroom.append(limit - usage + _reclaimable(folder, reclaimable))
    return headroom


def _cgroup_folders(root: Path) -> list[tuple[Path, str, str]]:
    """The (folder, limit file, usage file) of every memory cgroup above this process."""
    files = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        2: ("memory.max", "memory.current"),
    }
    return [(folder, *files[version]) for folder, version in cgroups(root, "memory")]


def _read_number(path: Path) -> int | None:
    """The number in a control file; None where the file is absent or says ``max``."""
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _reclaimable(folder: Path, names: Sequence[str]) -> int:
    """Bytes of file pages charged to a cgroup, by the names of its figures."""
    try:
        pairs = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
        stat = {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2}
    except (OSError, ValueError):
        return 0
    return sum(stat.get(f"total_{name}", stat.get(name, 0)) for name in names)


def peak_rss() -> int:
    """The most resident memory this process has ever held, in bytes."""
    # Linux's getrusage would also count what the parent held before the exec.
    if (peak := peak_rss_of("self")) is not None:
        return peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def peak_rss_of(process: int | str) -> int | None:
    """Returns the most resident memory that a process has held since its exec, in bytes.

    process: its number, or ``"self"``. None where the system does not say, or it has ended.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        return None
