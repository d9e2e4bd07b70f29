"""Reads that go past the page cache: for models far larger than RAM, which would only churn it.

Linux: O_DIRECT, on 4096-byte borders; macOS: F_NOCACHE. Where a file system refuses (tmpfs, some
network mounts), the reads are buffered ones.
"""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from q4run.disk.methods.pread import Pread

_F_NOCACHE = 48  # macOS's <sys/fcntl.h>; Python's fcntl has no name for it everywhere


class Direct(Pread):
    def __init__(self, paths: Iterable[Path], *, keep_cached: bool = True) -> None:
        self.alignment = 1
        super().__init__(paths, keep_cached=keep_cached)
        # What went past the cache is not in it, unless somebody else wants it there.
        self._drops_cached &= self.alignment == 1

    def _open(self, path: Path) -> int:
        if hasattr(os, "O_DIRECT"):
            try:
                file = os.open(path, os.O_RDONLY | os.O_DIRECT)
            except OSError:
                return super()._open(path)
            self.alignment = 4096
            return file
        file = super()._open(path)
        if sys.platform == "darwin":
            import fcntl

            fcntl.fcntl(file, _F_NOCACHE, 1)
        return file


METHOD = Direct
