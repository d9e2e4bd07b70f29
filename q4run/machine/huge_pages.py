"""Memory for weights, in huge pages where the system has them.

Decoding reads all of it for every token, and with small pages the processor spends a quarter of the
time on finding them.
"""

import mmap
import sys
from contextlib import suppress

import numpy as np

_BLOCK_BYTES = 32 << 20
_ALIGNMENT = 64  # whole cache lines


def empty_bytes(n_bytes: int, *, huge: bool = True) -> np.ndarray:
    """uint8 (n_bytes,), zeros that take no memory until they are written to, then a page each;
    a huge one unless ``huge`` is False."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # a shared map gets no huge pages
    memory = mmap.mmap(-1, max(1, n_bytes), flags=flags)
    if huge and hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # from a kernel built without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(memory, np.uint8, n_bytes)


def give_back(array: np.ndarray, begin: int, end: int) -> None:
    """Lets the system have the whole pages between two bytes of an ``empty_bytes`` array: they
    read as anything afterwards, and take memory again when written to."""
    view = array.base
    memory = view.obj if isinstance(view, memoryview) else None
    if not (isinstance(memory, mmap.mmap) and hasattr(memory, "madvise")):
        return
    page = mmap.PAGESIZE
    first, last = -(-begin // page) * page, end // page * page
    if first < last:
        # macOS keeps pages that are merely not needed.
        advice = mmap.MADV_FREE if sys.platform == "darwin" else mmap.MADV_DONTNEED
        memory.madvise(advice, first, last - first)


class Blocks:
    """Hands out pieces of large blocks: a matrix alone may be too small for a huge page."""

    def __init__(self) -> None:
        self._block = np.empty(0, np.uint8)

    def take(self, n_rows: int, row_bytes: int) -> np.ndarray:
        """uint8 (n_rows, row_bytes), which lives as long as it is used."""
        n_bytes = -(-n_rows * row_bytes // _ALIGNMENT) * _ALIGNMENT
        if n_bytes > len(self._block):
            self._block = empty_bytes(max(_BLOCK_BYTES, n_bytes))
        piece, self._block = self._block[:n_bytes], self._block[n_bytes:]
        return piece[: n_rows * row_bytes].reshape(n_rows, row_bytes)
