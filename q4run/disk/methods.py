"""The ways to bring bytes from disk into RAM, by the names of ``--io``."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from q4run.disk.direct import Direct
from q4run.disk.mmap import Mapped
from q4run.disk.pread import Pread


class ReadMethod(Protocol):
    """Reads ranges of the model's files; called from several threads at once."""

    alignment: int  # offsets, lengths and memory of every read must be multiples of it

    def read(self, path: Path, offset: int, target: memoryview) -> None:
        """Fills ``target`` from ``offset`` on, or up to the file's end where that comes first.

        Raises OSError, and EOFError where the file has become shorter since it was opened.
        """

    def close(self) -> None:
        """Lets go of the files."""


class _Open(Protocol):
    def __call__(self, paths: Iterable[Path], *, keep_cached: bool = True) -> ReadMethod: ...


METHODS: dict[str, _Open] = {
    "pread": Pread,
    "direct": Direct,
    "mmap": Mapped,
}
"""By name: opens files. Without ``keep_cached``, what was read leaves the page cache at once."""
