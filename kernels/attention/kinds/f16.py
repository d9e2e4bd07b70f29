"""Float16 as bit patterns, rounded to nearest even."""

import numpy as np

from q4run.kernels.attention.kinds.base import KVKind
from q4run.kernels.simd.casts import floats_to_half, halves_to_float
from q4run.kernels.simd.memory import load_u16x8, store
from q4run.kernels.simd.tails import load_some

_INFINITY = 0x7C00  # without its sign


class F16(KVKind):
    """Rows of whole vectors."""

    dtype = np.dtype(np.uint16)

    def row_length(self, head_dim: int) -> int:
        return (head_dim + 7) // 8 * 8

    def has_overflowed(self, rows: np.ndarray) -> bool:
        return bool((rows & 0x7FFF == _INFINITY).any())

    @staticmethod
    def padded_dim(kind, array):
        return array.shape[2]

    @staticmethod
    def save_row(kind, values, source, n_values, array, row):
        for i in range(0, n_values, 8):
            eight = load_some(values, source + i, n_values - i)
            store(array, row * array.shape[2] + i, floats_to_half(eight))

    @staticmethod
    def rows_as_floats(kind, array, row, n_rows, scratch):
        first = row * array.shape[2]
        for i in range(0, n_rows * array.shape[2], 8):
            store(scratch, i, halves_to_float(load_u16x8(array, first + i)))
        return scratch


KIND = F16()
