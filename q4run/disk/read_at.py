"""Reading a file at an offset, from any thread, straight into memory where the system can."""

import os


def read_at(file: int, target: memoryview, offset: int) -> int:
    """Reads up to ``len(target)`` bytes from ``offset`` on; returns how many came, 0 at the end.

    macOS before 11 has no ``preadv``: there the bytes take a detour through a copy.
    """
    if hasattr(os, "preadv"):
        return os.preadv(file, [target], offset)
    data = os.pread(file, len(target), offset)
    target[: len(data)] = data
    return len(data)
