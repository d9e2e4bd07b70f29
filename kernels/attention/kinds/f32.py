"""Float32: values as they are, read where they lie."""

import numpy as np

from q4run.kernels.attention.kinds.base import KVKind
from q4run.kernels.simd.memory import f32_pointer, store
from q4run.kernels.simd.tails import load_some


class F32(KVKind):
    """Rows of whole vectors."""

    dtype = np.dtype(np.float32)

    def row_length(self, head_dim: int) -> int:
        return (head_dim + 7) // 8 * 8

    @staticmethod
    def padded_dim(kind, array):
        return array.shape[2]

    @staticmethod
    def save_row(kind, values, source, n_values, array, row):
        for i in range(0, n_values, 8):
            store(array, row * array.shape[2] + i, load_some(values, source + i, n_values - i))

    @staticmethod
    def rows_as_floats(kind, array, row, n_rows, scratch):
        return f32_pointer(array.ctypes.data + 4 * row * array.shape[2])


KIND = F32()
