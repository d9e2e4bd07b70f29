"""Buffered reads at given offsets: what the page cache already has comes from there."""

import os
from collections.abc import Iterable
from pathlib import Path

from q4run.disk.read_at import read_at


class Pread:
    alignment = 1

    def __init__(self, paths: Iterable[Path], *, keep_cached: bool = True) -> None:
        # A copy in the page cache of what RAM holds already would only push out what others need.
        self._drops_cached = not keep_cached and hasattr(os, "posix_fadvise")
        self._files = {path: self._open(path) for path in paths}
        self._sizes = {path: os.fstat(file).st_size for path, file in self._files.items()}

    def _open(self, path: Path) -> int:
        file = os.open(path, os.O_RDONLY)
        if hasattr(os, "posix_fadvise"):
            # Reads are as long as is useful: what the kernel would read beyond them is lost.
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
        return file

    def read(self, path: Path, offset: int, target: memoryview) -> None:
        file, begin = self._files[path], offset
        while target and offset < self._sizes[path]:
            count = read_at(file, target, offset)
            if count == 0:
                raise EOFError(f"{path}: the file became shorter while it was in use")
            target = target[count:]
            offset += count
        if self._drops_cached:
            os.posix_fadvise(file, begin, offset - begin, os.POSIX_FADV_DONTNEED)

    def close(self) -> None:
        for file in self._files.values():
            os.close(file)
        self._files.clear()


METHOD = Pread
