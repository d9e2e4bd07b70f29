"""Arrays that end, or begin, at a page that nobody may touch."""

import ctypes
import mmap

import numpy as np


def guarded(array: np.ndarray, place: str) -> np.ndarray:
    """A copy whose first or last byte lies right beside a page that nobody may touch."""
    page = mmap.PAGESIZE
    inner = -(-max(array.nbytes, 1) // page) * page
    memory = mmap.mmap(-1, inner + 2 * page)
    first = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    libc = ctypes.CDLL(None, use_errno=True)
    for guard in (first, first + page + inner):
        if libc.mprotect(ctypes.c_void_p(guard), ctypes.c_size_t(page), 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect")
    offset = page if place == "begin" else page + inner - array.nbytes
    copy = np.frombuffer(memory, array.dtype, array.size, offset).reshape(array.shape)
    copy[...] = array
    return copy
