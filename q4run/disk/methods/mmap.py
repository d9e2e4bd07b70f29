"""Buffered reads whose pages the kernel is told of first, all at once, through a memory map.

No byte is taken from the map itself: a file that shrinks at that moment would kill the process.
"""

import mmap
from collections.abc import Iterable
from pathlib import Path

from q4run.disk.methods.pread import Pread


class Mapped(Pread):
    def __init__(self, paths: Iterable[Path], *, keep_cached: bool = True) -> None:
        super().__init__(paths, keep_cached=keep_cached)
        self._maps = {
            path: mmap.mmap(file, 0, access=mmap.ACCESS_READ) for path, file in self._files.items()
        }

    def read(self, path: Path, offset: int, target: memoryview) -> None:
        mapped = self._maps[path]
        first = offset // mmap.PAGESIZE * mmap.PAGESIZE
        mapped.madvise(mmap.MADV_WILLNEED, first, min(offset + len(target), len(mapped)) - first)
        super().read(path, offset, target)

    def close(self) -> None:
        self._maps.clear()
        super().close()


METHOD = Mapped
