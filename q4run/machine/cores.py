"""How many threads compute: what the machine has and what was asked for."""

import math
import os
from pathlib import Path

import psutil

from q4run.errors import Error
from q4run.machine.cgroups import cgroups


def usable_cores() -> int:
    """The logical cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def choose_threads(threads: int | None, root: Path = Path("/")) -> int:
    """How many threads compute: what was asked for, or one per physical core of this process.

    Without being asked not more than ``cpu_quota`` keeps busy, rounded up. Raises Error for less
    than one, and for more than there are logical cores.
    """
    most = usable_cores()
    if threads is None:
        cores = min(psutil.cpu_count(logical=False) or most, most)
        quota = cpu_quota(root)
        return cores if quota is None else max(1, min(cores, math.ceil(quota)))
    if not 1 <= threads <= most:
        raise Error(f"{threads} threads cannot be had: this machine gives 1 to {most}")
    return threads


def cpu_quota(root: Path = Path("/")) -> float | None:
    """How many cores' time a container may use (docker --cpus); None where that is not limited.

    Unlike what ``usable_cores`` counts, it is a share of time: with more threads than that, all of
    them stand still for a part of each tenth of a second.
    """
    quotas = [_quota(folder, version) for folder, version in cgroups(root, "cpu")]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota(folder: Path, version: int) -> float | None:
    names = ["cpu.max"] if version == 2 else ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
    try:
        words = " ".join((folder / name).read_text() for name in names).split()
        quota, period = int(words[0]), int(words[1])
    except (OSError, ValueError, IndexError):  # no such file, or "max"
        return None
    return quota / period if quota > 0 and period > 0 else None
