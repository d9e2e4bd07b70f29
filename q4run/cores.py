"""How many threads compute: what the machine has and what was asked for."""

import os

import psutil

from q4run.errors import Error


def usable_cores() -> int:
    """The logical cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def choose_threads(threads: int | None) -> int:
    """How many threads compute: what was asked for, or one per physical core of this process.

    Raises Error for less than one, and for more than there are logical cores.
    """
    most = usable_cores()
    if threads is None:
        return min(psutil.cpu_count(logical=False) or most, most)
    if not 1 <= threads <= most:
        raise Error(f"{threads} threads cannot be had: this machine gives 1 to {most}")
    return threads
