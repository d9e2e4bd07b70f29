"""A made-up kind of keys and values: bytes with one float32 scale a row, beside q8_0's bytes."""

import numpy as np

from q4run.kernels.attention.kinds.base import KVKind
from q4run.kernels.simd.casts import to_float, to_nearest
from q4run.kernels.simd.memory import (
    f32_pointer,
    i8_pointer,
    load_wide_i8,
    store,
    store_low_bytes,
)
from q4run.kernels.simd.ops import absolute, maximum, mul, reduce_max, splat
from q4run.kernels.simd.tails import load_some
from q4run.kernels.simd.vector import f32x8


class Int8Rows(KVKind):
    """Rows of a scale in 8 bytes, then whole vectors of int8."""

    dtype = np.dtype(np.uint8)

    def row_length(self, head_dim: int) -> int:
        return 8 + (head_dim + 7) // 8 * 8

    @staticmethod
    def padded_dim(kind, array):
        return array.shape[2] - 8

    @staticmethod
    def save_row(kind, values, source, n_values, array, row):
        begin = array.ctypes.data + row * array.shape[2]
        largest = splat(f32x8, 0.0)
        for i in range(0, n_values, 8):
            largest = maximum(largest, absolute(load_some(values, source + i, n_values - i)))
        scale = reduce_max(largest) / np.float32(127)
        f32_pointer(begin)[0] = scale
        inverse = splat(f32x8, np.float32(1) / scale if scale > 0 else np.float32(0))
        for i in range(0, n_values, 8):
            scaled = mul(load_some(values, source + i, n_values - i), inverse)
            store_low_bytes(i8_pointer(begin + 8), i, to_nearest(scaled))

    @staticmethod
    def rows_as_floats(kind, array, row, n_rows, scratch):
        length = array.shape[2]
        for i in range(n_rows):
            begin = (row + i) * length
            scale = splat(f32x8, f32_pointer(array.ctypes.data + begin)[0])
            for j in range(0, length - 8, 8):
                codes = to_float(load_wide_i8(array, begin + 8 + j))
                store(scratch, i * (length - 8) + j, mul(codes, scale))
        return scratch


KIND = Int8Rows()
