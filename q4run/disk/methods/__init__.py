"""The ways to bring bytes from disk into RAM: a file each, under its ``--io`` name.

A file holds a ``METHOD``: what opens files for reading, most simply a class.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Protocol

from q4run.registry import Registry


class ReadMethod(Protocol):
    """Reads ranges of the model's files; called from several threads at once."""

    alignment: int  # offsets, lengths and memory of every read must be multiples of it

    def read(self, path: Path, offset: int, target: memoryview) -> None:
        """Fills ``target`` from ``offset`` on, or up to the file's end where that comes first.

        Raises OSError, and EOFError where the file has become shorter since it was opened.
        """

    def close(self) -> None:
        """Lets go of the files."""


class OpenFiles(Protocol):
    """Opens files. Without ``keep_cached``, what was read leaves the page cache at once."""

    def __call__(self, paths: Iterable[Path], *, keep_cached: bool = True) -> ReadMethod: ...


METHODS: Mapping[str, OpenFiles] = Registry(__name__, "METHOD")
AUTO = "auto"  # stands for the method that suits the disk, see ``disk.auto``
