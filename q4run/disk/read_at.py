"""Reading a file at an offset, from any thread, straight into memory where the system can."""

import os


def read_fully_at(file: int, target: memoryview, offset: int, least: int | None = None) -> int:
    """Fills ``target``, bytes, from ``offset`` on; returns how many came, fewer only at the end.

    least: stops at this many bytes, where the file is known to end within ``target`` (a direct read
    at such an end would be refused). Raises ``OSError``.
    """
    needed = len(target) if least is None else least
    done = 0
    while done < needed:
        count = _read_at(file, target[done:], offset + done)
        if count == 0:
            break
        done += count
    return done


def _read_at(file: int, target: memoryview, offset: int) -> int:
    """Reads up to ``len(target)`` bytes; returns how many came, 0 at the end.

    macOS before 11 has no ``preadv``: there the bytes take a detour through a copy.
    """
    if hasattr(os, "preadv"):
        return os.preadv(file, [target], offset)
    data = os.pread(file, len(target), offset)
    target[: len(data)] = data
    return len(data)
