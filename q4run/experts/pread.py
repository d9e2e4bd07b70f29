"""Buffered reads at given offsets: what the page cache already has comes from there."""

import os
from collections.abc import Iterable
from pathlib import Path

from q4run.read_at import read_at


class Pread:
    alignment = 1

    def __init__(self, paths: Iterable[Path]) -> None:
        self._files = {path: self._open(path) for path in paths}
        self._sizes = {path: os.fstat(file).st_size for path, file in self._files.items()}

    def _open(self, path: Path) -> int:
        return os.open(path, os.O_RDONLY)

    def read(self, path: Path, offset: int, target: memoryview) -> None:
        while target and offset < self._sizes[path]:
            count = read_at(self._files[path], target, offset)
            if count == 0:
                raise EOFError(f"{path}: the file became shorter while it was in use")
            target = target[count:]
            offset += count

    def close(self) -> None:
        for file in self._files.values():
            os.close(file)
        self._files.clear()
