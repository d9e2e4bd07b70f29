"""A memory map: the kernel is told what is wanted, then the bytes are copied out.

The copied pages are let go at once: a map's pages count as the process's own memory.
"""

import mmap
from collections.abc import Iterable
from pathlib import Path

import numpy as np


class Mapped:
    alignment = 1

    def __init__(self, paths: Iterable[Path]) -> None:
        self._maps = {}
        for path in paths:
            with path.open("rb") as file:
                self._maps[path] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def read(self, path: Path, offset: int, target: memoryview) -> None:
        mapped = self._maps[path]
        # Pages past the end of a file would kill the process when touched.
        if mapped.size() < len(mapped):
            raise EOFError(f"{path}: the file became shorter while it was in use")
        first = offset // mmap.PAGESIZE * mmap.PAGESIZE
        pages = (first, min(offset + len(target), len(mapped)) - first)
        mapped.madvise(mmap.MADV_WILLNEED, *pages)
        # numpy copies without the interpreter lock, so that other threads fault in theirs.
        source = np.frombuffer(mapped, np.uint8, count=len(target), offset=offset)
        np.copyto(np.frombuffer(target, np.uint8), source)
        mapped.madvise(mmap.MADV_DONTNEED, *pages)

    def close(self) -> None:
        self._maps.clear()
