"""Whether the disk works while the computation waits for it, by the kernel's own count (Linux)."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

# Two hundred looks a second take less than one per cent of a core.
_INTERVAL_S = 0.005


class Looks(NamedTuple):
    """How often something was being waited for, and how often a read was then in flight."""

    waiting: int = 0
    busy: int = 0

    def share_since(self, earlier: Looks) -> float | None:
        """The share of the waiting since ``earlier`` in which the disk worked; None without any."""
        waiting = self.waiting - earlier.waiting
        return (self.busy - earlier.busy) / waiting if waiting else None


class DiskWatch:
    """A thread that looks every few milliseconds, as long as the context lasts.

    It looks at how many reads the block devices of some files have in flight, whoever asked for
    them. Where the kernel does not count them (network and layered file systems, other systems
    than Linux) there are no looks.
    """

    def __init__(self, paths: Iterable[Path], is_waiting: Callable[[], bool]) -> None:
        self.looks = Looks()
        self._is_waiting = is_waiting
        self._counters = _open_counters(paths)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, name="q4run-disk-watch", daemon=True)

    def __enter__(self) -> DiskWatch:
        if self._counters:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over.set()
        if self._counters:
            self._thread.join()
        for counter in self._counters:
            os.close(counter)
        self._counters = []

    def _work(self) -> None:
        while not self._over.wait(_INTERVAL_S):
            if not self._is_waiting():
                continue
            is_busy = any(_reads_in_flight(counter) for counter in self._counters)
            if self._is_waiting():
                self.looks = Looks(self.looks.waiting + 1, self.looks.busy + is_busy)


def _reads_in_flight(counter: int) -> int:
    return int(os.pread(counter, 64, 0).split()[0])


def _open_counters(paths: Iterable[Path]) -> list[int]:
    """A file for each block device that holds some of ``paths``; none where one has no counters."""
    counters: list[int] = []
    try:
        for device in sorted({os.stat(path).st_dev for path in paths}):
            numbers = f"{os.major(device)}:{os.minor(device)}"
            counters.append(os.open(f"/sys/dev/block/{numbers}/inflight", os.O_RDONLY))
            _reads_in_flight(counters[-1])
    except (OSError, ValueError, IndexError):
        for counter in counters:
            os.close(counter)
        return []
    return counters
