"""Q8_0: GGUF's blocks of 32 signed bytes and an f16 scale, quantised as ggml's reference does.

scale = largest magnitude / 127; codes are rounded to nearest, halves away from zero, before the
scale itself is rounded to f16.
"""

import numpy as np
from numba.core import types
from numba.extending import intrinsic

from q4run.kernels.attention.kinds.base import KVKind
from q4run.kernels.attention.tiles import after
from q4run.kernels.compiling.compile import inline
from q4run.kernels.simd import lowering
from q4run.kernels.simd.casts import halves_to_float, to_float, to_nearest
from q4run.kernels.simd.memory import (
    i8_pointer,
    load_u16x8_bytes,
    load_wide_i8,
    store,
    store_low_bytes,
)
from q4run.kernels.simd.ops import (
    absolute,
    fma,
    lane,
    maximum,
    minimum,
    mul,
    reduce_add,
    reduce_max,
    splat,
)
from q4run.kernels.simd.tails import load_some
from q4run.kernels.simd.vector import f32x8

_VALUES = 32  # of a block
_BYTES = 34  # an f16 scale, then the int8 codes; value = scale * code


class Q8_0(KVKind):
    """Rows of whole blocks."""

    dtype = np.dtype(np.uint8)

    def row_length(self, head_dim: int) -> int:
        return (head_dim + _VALUES - 1) // _VALUES * _BYTES

    def has_overflowed(self, rows: np.ndarray) -> bool:
        scales = rows.reshape(-1, _BYTES)[:, :2].copy().view(np.float16)
        return bool(np.isinf(scales).any())

    @staticmethod
    def padded_dim(kind, array):
        return array.shape[2] // _BYTES * _VALUES

    @staticmethod
    def save_row(kind, values, source, n_values, array, row):
        at = row * array.shape[2]
        for i in range(0, n_values, _VALUES):
            _save_block(values, source + i, n_values - i, array, at)
            at += _BYTES

    @staticmethod
    def rows_as_floats(kind, array, row, n_rows, scratch):
        source, target = row * array.shape[2], 0
        end = source + n_rows * array.shape[2]
        while source < end:
            # Eight halves at once, of which the first counts: a single one depends on the block
            # before.
            scale = splat(f32x8, lane(halves_to_float(load_u16x8_bytes(array, source)), 0))
            store(scratch, target, mul(_codes(array, source + 2), scale))
            store(scratch, target + 8, mul(_codes(array, source + 10), scale))
            store(scratch, target + 16, mul(_codes(array, source + 18), scale))
            store(scratch, target + 24, mul(_codes(array, source + 26), scale))
            source, target = after(source, _BYTES), target + _VALUES
        return scratch


@inline
def _codes(array, index):
    """The 8 signed bytes from ``array[index]`` on, as f32x8."""
    return to_float(load_wide_i8(array, index))


@inline
def _save_block(rows, source, n_values, cache, at):
    largest = nothing = splat(f32x8, 0.0)
    for i in range(0, _VALUES, 8):
        values = load_some(rows, source + i, n_values - i)
        largest = maximum(largest, absolute(values))
        # The maximum overlooks what is not a number; this zero does not stay zero then.
        nothing = fma(values, splat(f32x8, 0.0), nothing)
    scale = reduce_max(largest) / np.float32(127) + reduce_add(nothing)
    inverse = splat(f32x8, np.float32(1) / scale if scale > 0 else np.float32(0))
    _store_half(cache, at, scale)
    codes = i8_pointer(cache.ctypes.data + at + 2)
    for i in range(0, _VALUES, 8):
        scaled = mul(load_some(rows, source + i, n_values - i), inverse)
        # Without a scale codes do not matter, but a conversion must not be left undefined.
        scaled = maximum(minimum(scaled, splat(f32x8, 127.0)), splat(f32x8, -127.0))
        store_low_bytes(codes, i, to_nearest(scaled))


@intrinsic
def _store_half(typing_context, array, index, value):
    """Writes a float32 as f16 to byte ``index`` of a uint8 array."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        half = lowering.float_to_half(builder, args[2])
        pointer = builder.bitcast(builder.gep(data, [args[1]]), half.type.as_pointer())
        builder.store(half, pointer, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, types.float32), codegen


KIND = Q8_0()
