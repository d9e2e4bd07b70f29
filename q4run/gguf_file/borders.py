"""Where tensors lie in the files that q4run writes: the big ones on the borders of direct reads.

A file declares no alignment of its own, for tools that take GGUF's default for granted would write
files from it that nothing reads. Instead a key fills the header up to a border, and tensors that
take whole pages come first: each of them begins where the last ended, on a border again.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

from q4run.gguf_file.header import DEFAULT_ALIGNMENT

BORDER = 4096
#: A text of spaces, as long as it takes.
PADDING_KEY = "q4run.padding"

Tensor = TypeVar("Tensor")


def padded(n_bytes: int) -> int:
    """Returns what a tensor of ``n_bytes`` takes in the file."""
    return -(-n_bytes // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


def up_to_border(n_bytes: int) -> int:
    """Returns ``n_bytes`` rounded up to a border."""
    return -(-n_bytes // BORDER) * BORDER


def in_file_order(tensors: Iterable[Tensor], n_bytes: Callable[[Tensor], int]) -> list[Tensor]:
    """Returns the tensors whose ``n_bytes`` are whole pages, then the others."""
    return sorted(tensors, key=lambda tensor: n_bytes(tensor) % BORDER != 0)
