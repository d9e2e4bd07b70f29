"""What ``--io auto`` takes: decided by what fits into memory, else by what the disk gives.

A model whose experts all stay in RAM is read through the page cache, and so is one that the cache
can hold beside the budget: the next reads, or the next start, find it there. A larger one would
only churn the cache; then the disk's speed decides (`disk.speed`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from q4run.disk.methods import AUTO
from q4run.disk.speed import (
    CANDIDATES,
    FEWEST_BYTES,
    N_READERS,
    best_candidate,
    best_direct,
    known_speeds,
)


@dataclass(frozen=True)
class Choice:
    """An I/O method, and why; ``reason`` is empty where it was asked for.

    n_readers: how many threads read; keep_cached: whether what is read buffered may stay in the
    page cache, which is only where there is room for the whole file.
    """

    method: str
    reason: str
    n_readers: int = N_READERS
    keep_cached: bool = True


def choose_method(name: str, paths: Sequence[Path], all_in_ram: bool, free_bytes: int) -> Choice:
    """The I/O method for a model's files.

    name: ``AUTO``, or the method that was asked for; all_in_ram: whether every expert gets a slot;
    free_bytes: of memory beside the budget.
    """
    n_bytes = sum(path.stat().st_size for path in paths)
    fits = n_bytes <= free_bytes
    if name != AUTO:
        return Choice(name, "", keep_cached=fits)
    if all_in_ram:
        return Choice("pread", "every expert stays in RAM and is read once", keep_cached=fits)
    if fits:
        return Choice("pread", "the page cache can hold the whole file")
    if n_bytes < FEWEST_BYTES:
        return Choice("direct", "the page cache cannot hold the file", keep_cached=False)
    known = known_speeds(paths)
    if known is None:
        return Choice("direct", "the disk could not be measured", keep_cached=False)
    speeds = known.speeds
    name = best_candidate(speeds)
    direct = best_direct(speeds)
    figures = f"direct {direct / 1e9:.1f} GB/s, pread {speeds['pread'] / 1e9:.1f} GB/s"
    method, n_readers = CANDIDATES[name]
    return Choice(method, f"{figures} from this disk, {known.when}", n_readers, keep_cached=False)
