"""What other programs do to this machine while something is measured on it."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

# Below these a measurement counts: every system does a little all the time.
_MOST_CPU = 0.1
_MOST_DISK = 0.1
_SECTOR = 512  # bytes; of the kernel's statistics, whatever the disk has


@dataclass(frozen=True)
class Load:
    """What others took. cpu: of this machine's processors, as a share; disk: of the bytes that the
    disk moved, as a share, 0 where the system does not tell."""

    cpu: float = 0.0
    disk: float = 0.0

    @property
    def is_high(self) -> bool:
        """Tells whether what was measured meanwhile says little of the machine itself."""
        return self.cpu > _MOST_CPU or self.disk > _MOST_DISK

    def __or__(self, other: "Load") -> "Load":
        """Returns the higher of each of two loads."""
        return Load(max(self.cpu, other.cpu), max(self.disk, other.disk))


class Watch:
    """Looks at the load from its birth on."""

    def __init__(self, path: Path | None = None) -> None:
        """path: a file on the disk to watch; None watches none."""
        self._device = None if path is None else os.stat(path).st_dev
        self._began = self._now()

    def load(self) -> Load:
        """Returns what others did since the watch began."""
        clock, busy, own, moved, own_moved = (
            now - began for now, began in zip(self._now(), self._began, strict=True)
        )
        n_cpu = psutil.cpu_count() or 1
        cpu = (busy - own) / max(clock * n_cpu, 1e-9)
        disk = (moved - own_moved) / moved if moved > 0 else 0.0
        return Load(min(1.0, max(0.0, cpu)), min(1.0, max(0.0, disk)))

    def _now(self) -> tuple[float, float, float, float, float]:
        """Returns seconds by the clock, seconds of all processors' work, those of this process and
        its children, bytes that the disk moved, and those of this process."""
        times = psutil.cpu_times()
        idle = times.idle + getattr(times, "iowait", 0.0)
        # Guests' time is in that of the users already.
        guests = getattr(times, "guest", 0.0) + getattr(times, "guest_nice", 0.0)
        moved, own_moved = self._moved()
        return (
            time.perf_counter(),
            sum(times) - idle - guests,
            sum(os.times()[:4]),
            moved,
            own_moved,
        )

    def _moved(self) -> tuple[float, float]:
        if self._device is None or (moved := _disk_bytes(self._device)) is None:
            return 0.0, 0.0
        own = psutil.Process().io_counters()
        return moved, own.read_bytes + own.write_bytes


def _disk_bytes(device: int) -> int | None:
    """Bytes that a disk has read and written; None where the system has no such statistics."""
    numbers = [str(os.major(device)), str(os.minor(device))]
    try:
        lines = Path("/proc/diskstats").read_text().splitlines()
    except OSError:
        return None
    for fields in (line.split() for line in lines):
        if fields[:2] == numbers:
            return _SECTOR * (int(fields[5]) + int(fields[9]))
    return None
