"""How fast a disk gives a model's bytes, by way of reading: measured shortly, and remembered.

Both ways to read, and a deeper queue of reads, are tried on the file for a second; what the disk
gave is remembered for a day: it may have had a bad minute.
"""

import mmap
import os
import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from q4run.disk.methods import METHODS
from q4run.errors import Error
from q4run.machine.cores import usable_cores
from q4run.machine.load import Load
from q4run.machine.notes import FOLDER, Notes

# More than one, for a disk has more than one read under way, and readers interleave besides. Few
# cores have the computation to do, and a slow disk gains nothing (docs/experiments.md).
N_READERS = 4 if usable_cores() <= 4 else 8
MOST_READERS = 2 * N_READERS  # where the disk was measured to gain by it
# One read is at most about this long: several threads share a large expert.
PIECE_BYTES = 1 << 20
# What each disk gave, by the number of its device and the candidates.
_NOTES = FOLDER / "disks.json"
# A map is no choice: page faults of many threads are slow everywhere, and on macOS have ended in
# kernel panics.
_DEEPER = "direct, deeper queue"
CANDIDATES = {
    "direct": ("direct", N_READERS),
    "pread": ("pread", N_READERS),
    _DEEPER: ("direct", MOST_READERS),
}
# Buffered reads copy every byte and push others out of the cache, which takes processor time from
# the computation: they must be this much faster.
_WORTH_A_COPY = 1.5
# More readers take time from the computation as well.
_WORTH_MORE_READERS = 1.1
# What a run reaches counts where it is so much more, or less, than what was measured.
_FAR = 1.25
SECONDS = 1.0
_ROUNDS = 4  # of all candidates in turn: a disk's speed drifts
# Of a file; that of a smaller one would be of the disk's own cache.
FEWEST_BYTES = 64 * PIECE_BYTES


@dataclass(frozen=True)
class DiskSpeeds:
    """speeds: bytes per second by candidate; when: these were measured, in words; load: what other
    programs took meanwhile."""

    speeds: Mapping[str, float]
    when: str
    load: Load = field(default_factory=Load)


def known_speeds(
    paths: Sequence[Path], *, anew: bool = False, seconds: float = SECONDS
) -> DiskSpeeds | None:
    """What the disk of a model's files gives: as measured within the last day, or (``anew``) just
    now, for so many seconds. None where nothing could be measured.
    """
    notes = Notes(_NOTES, paths[0], anew=anew)
    try:
        speeds, just_now = notes.figures(_device(paths[0]), lambda: measure(paths, seconds))
    except (OSError, EOFError) as error:
        raise Error(f"the model cannot be read: {error}") from error
    if not all(speeds.values()):
        return None
    when = "measured just now" if just_now else "as measured before"
    return DiskSpeeds(speeds, when + (", beside other programs" * notes.load.is_high), notes.load)


def correct_speed(path: Path, how: tuple[str, int], reached: float, load: Load) -> None:
    """Corrects what is noted of a disk where a run reached another speed, in bytes per second.

    path: on the disk; how: the run's I/O method and number of readers; load: what other programs
    took meanwhile, beside which a disk may look slower than it is, but not faster.
    """
    name = next((name for name, candidate in CANDIDATES.items() if candidate == how), None)
    notes = Notes(_NOTES)
    known = notes.known(_device(path))
    if name is None or CANDIDATES[name][0] != "direct" or known is None:
        return
    is_slower = reached * _FAR < known[name] and not load.is_high
    if is_slower or reached > _FAR * known[name]:
        notes.correct(_device(path), {name: round(reached)})


def best_candidate(speeds: Mapping[str, float]) -> str:
    """Which of the ways that were measured to take."""
    direct = best_direct(speeds)
    if speeds["pread"] > _WORTH_A_COPY * direct:
        return "pread"
    return "direct" if direct == speeds["direct"] else _DEEPER


def best_direct(speeds: Mapping[str, float]) -> float:
    """Bytes per second of direct reads, with the deeper queue where that pays."""
    deeper = speeds[_DEEPER] > _WORTH_MORE_READERS * speeds["direct"]
    return speeds[_DEEPER if deeper else "direct"]


def is_measurable(paths: Sequence[Path]) -> bool:
    """Whether there is a file long enough for ``measure``."""
    return max(path.stat().st_size for path in paths) >= FEWEST_BYTES


def measure(paths: Sequence[Path], seconds: float = SECONDS) -> dict[str, float]:
    """Bytes per second that each candidate reads from the largest file, past what is cached."""
    path = max(paths, key=lambda path: path.stat().st_size)
    offsets = list(range(0, path.stat().st_size - PIECE_BYTES + 1, PIECE_BYTES))
    random.Random(0).shuffle(offsets)
    _drop_cached(path)
    slices = len(CANDIDATES) * _ROUNDS
    done, taken = dict.fromkeys(CANDIDATES, 0), dict.fromkeys(CANDIDATES, 0.0)
    turns = list(CANDIDATES.items()) * _ROUNDS
    for turn, (name, (method, n_readers)) in enumerate(turns):
        started = time.perf_counter()
        some = offsets[turn::slices]
        done[name] += _read_for(seconds / slices, method, n_readers, path, some)
        taken[name] += time.perf_counter() - started
    return {name: done[name] / taken[name] for name in CANDIDATES}


def _read_for(seconds: float, name: str, n_readers: int, path: Path, offsets: Sequence[int]) -> int:
    """Reads pieces with so many threads; returns how many bytes came in time."""
    method = METHODS[name]([path], keep_cached=True)
    left = iter(offsets)
    end = time.perf_counter() + seconds

    def read() -> int:
        n_bytes = 0
        with (
            path.open("rb") as file,
            mmap.mmap(-1, PIECE_BYTES) as buffer,
            memoryview(buffer) as target,
        ):
            for offset in left:
                if not _is_cached(file.fileno(), offset):
                    method.read(path, offset, target)
                    n_bytes += PIECE_BYTES
                if time.perf_counter() >= end:
                    break
        return n_bytes

    try:
        with ThreadPoolExecutor(n_readers) as readers:
            return sum(readers.map(lambda _: read(), range(n_readers)))
    finally:
        method.close()


def _drop_cached(path: Path) -> None:
    """Lets go of a file's cached pages, where the system lets one: the disk is to be measured."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _is_cached(file: int, offset: int) -> bool:
    """Whether a page is in the page cache all the same: another program uses it, say."""
    if not hasattr(os, "RWF_NOWAIT"):
        return False
    try:
        return os.preadv(file, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except OSError:  # it would have to wait for the disk, or cannot tell
        return False


def _device(path: Path) -> str:
    return f"{path.stat().st_dev:x} {', '.join(CANDIDATES)}"


def remembered_speeds(path: Path) -> DiskSpeeds | None:
    """What was measured on the disk that ``path`` is on; None where nothing usable is known."""
    speeds = Notes(_NOTES).known(_device(path))
    return DiskSpeeds(speeds, "as measured before") if speeds else None
