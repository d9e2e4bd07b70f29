"""The ways to bring bytes from disk into RAM, by the names of ``--io``."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Protocol

from q4run.errors import Error
from q4run.experts.direct import Direct
from q4run.experts.mapped import Mapped
from q4run.experts.pread import Pread
from q4run.memory import available_memory


class ReadMethod(Protocol):
    """Reads ranges of the model's files; called from several threads at once."""

    alignment: int  # offsets, lengths and memory of every read must be multiples of it

    def read(self, path: Path, offset: int, target: memoryview) -> None:
        """Fills ``target`` from ``offset`` on, or up to the file's end where that comes first.

        Raises OSError, and EOFError where the file has become shorter since it was opened.
        """

    def close(self) -> None:
        """Lets go of the files."""


METHODS: dict[str, Callable[[Iterable[Path]], ReadMethod]] = {
    "pread": Pread,
    "direct": Direct,
    "mmap": Mapped,
}


def choose_method(name: str, file_bytes: int) -> str:
    """The method's name; for ``auto``, the one that suits a model of ``file_bytes`` here.

    A model that fits into free memory is read through the page cache, which then keeps it. A
    larger one would only churn the cache: it is read directly. Raises Error for unknown names.
    """
    if name == "auto":
        return "pread" if file_bytes <= available_memory() else "direct"
    if name not in METHODS:
        raise Error(f"there is no I/O method '{name}'; choose auto, {', '.join(METHODS)}")
    return name
