"""The rows of a KV cache: float32, f16 bit patterns (uint16), or blocks of Q8_0 (uint8).

A cache is (n_head_kv, capacity, row), C-contiguous; a row is one head's key or value of one
position. Behind the head stand zeros: up to a whole vector of 8, or a whole block of Q8_0.
"""

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic, overload

from q4run.kernels.attention.tiles import after
from q4run.kernels.compiling.compile import inline, kernel
from q4run.kernels.simd import emit, lowering
from q4run.kernels.simd.casts import floats_to_half, halves_to_float
from q4run.kernels.simd.memory import (
    f32_pointer,
    i8_pointer,
    load_u16x8,
    load_u16x8_bytes,
    store,
    store_low_bytes,
    u8_pointer,
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
from q4run.kernels.simd.vector import f32x8, i32x8

Q8_0_VALUES = 32  # of a block
Q8_0_BYTES = 34  # an f16 scale, then the int8 codes; value = scale * code
_BELOW_HALF = 0.5 - 2.0**-25  # the largest float32 below it
_F32X8 = emit.vector(emit.F32, 8)


def row_length(head_dim: int, dtype: np.dtype) -> int:
    """How many elements of a cache's type a row of ``head_dim`` values takes."""
    if dtype == np.uint8:
        return (head_dim + Q8_0_VALUES - 1) // Q8_0_VALUES * Q8_0_BYTES
    return (head_dim + 7) // 8 * 8


def padded_dim(cache):
    """How many values a row of the cache holds, the zeros behind the head included."""
    raise NotImplementedError


@overload(padded_dim)
def _padded_dim(cache):
    if cache.dtype == types.uint8:
        return lambda cache: cache.shape[2] // Q8_0_BYTES * Q8_0_VALUES
    return lambda cache: cache.shape[2]


# Reading.


def rows_as_floats(cache, row, n_rows, scratch):
    """A pointer to ``n_rows`` rows from flat row index ``row`` on, padded_dim float32 each.

    scratch: a float32 pointer with room for them; a float32 cache is read where it is.
    """
    raise NotImplementedError


@overload(rows_as_floats)
def _rows_as_floats(cache, row, n_rows, scratch):
    if cache.layout != "C":
        return None
    if cache.dtype == types.float32:
        return _in_place
    return _widened_q8_0 if cache.dtype == types.uint8 else _widened_f16


def _in_place(cache, row, n_rows, scratch):
    return f32_pointer(cache.ctypes.data + 4 * row * cache.shape[2])


def _widened_f16(cache, row, n_rows, scratch):
    first = row * cache.shape[2]
    for i in range(0, n_rows * cache.shape[2], 8):
        store(scratch, i, halves_to_float(load_u16x8(cache, first + i)))
    return scratch


def _widened_q8_0(cache, row, n_rows, scratch):
    source, target = row * cache.shape[2], 0
    end = source + n_rows * cache.shape[2]
    while source < end:
        # Eight halves at once, of which the first counts: a single one depends on the block before.
        scale = splat(f32x8, lane(halves_to_float(load_u16x8_bytes(cache, source)), 0))
        store(scratch, target, mul(_load_codes(cache, source + 2), scale))
        store(scratch, target + 8, mul(_load_codes(cache, source + 10), scale))
        store(scratch, target + 16, mul(_load_codes(cache, source + 18), scale))
        store(scratch, target + 24, mul(_load_codes(cache, source + 26), scale))
        source, target = after(source, Q8_0_BYTES), target + Q8_0_VALUES
    return scratch


@intrinsic
def _load_codes(typing_context, array, index):
    """The 8 signed bytes from ``array[index]`` on, as f32x8; a uint8 array."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        narrow = emit.vector(emit.I8, 8).as_pointer()
        codes = builder.load(builder.bitcast(builder.gep(data, [args[1]]), narrow), align=1)
        return builder.sitofp(builder.sext(codes, emit.vector(emit.I32, 8)), _F32X8)

    return f32x8(array, types.intp), codegen


@inline
def rows_ahead(cache, row, first, end, n_rows):
    """The bytes of up to ``n_rows`` rows, from ``row + first`` on and before ``row + end``."""
    n_bytes = cache.itemsize * cache.shape[2]
    n_rows = max(0, min(n_rows, end - first))
    return u8_pointer(cache.ctypes.data + (row + first) * n_bytes), n_rows * n_bytes


# Writing.


@kernel()
def write_cache(rows, cache, first):
    """Puts the keys or values of new tokens at positions ``first``, ``first + 1``, ... of a cache.

    rows: float32 (n_tokens, n_head_kv, head_dim), C-contiguous; cache: as in this file's docstring.
    f16 is rounded to nearest even. Q8_0 is ggml's reference: scale = largest magnitude / 127, codes
    rounded to nearest, halves away from zero, before the scale itself is rounded to f16. Raises
    ValueError for tokens or heads that the cache has no room for.
    """
    n_tokens, n_head_kv, head_dim = rows.shape
    capacity = cache.shape[1]
    if n_head_kv > cache.shape[0] or first + n_tokens > capacity or head_dim > padded_dim(cache):
        raise ValueError("more tokens or larger heads than the cache has room for")
    flat = rows.ravel()
    for token in range(n_tokens):
        for head in range(n_head_kv):
            source = (token * n_head_kv + head) * head_dim
            _save_row(flat, source, head_dim, cache, head * capacity + first + token)


def _save_row(rows, source, head_dim, cache, row):
    raise NotImplementedError


@overload(_save_row)
def _save_row_overload(rows, source, head_dim, cache, row):
    if cache.layout != "C":
        return None
    if cache.dtype == types.float32:
        return _save_f32
    return _save_q8_0 if cache.dtype == types.uint8 else _save_f16


def _save_f32(rows, source, head_dim, cache, row):
    for i in range(0, head_dim, 8):
        store(cache, row * cache.shape[2] + i, load_some(rows, source + i, head_dim - i))


def _save_f16(rows, source, head_dim, cache, row):
    for i in range(0, head_dim, 8):
        values = load_some(rows, source + i, head_dim - i)
        store(cache, row * cache.shape[2] + i, floats_to_half(values))


def _save_q8_0(rows, source, head_dim, cache, row):
    at = row * cache.shape[2]
    for i in range(0, head_dim, Q8_0_VALUES):
        _save_block(rows, source + i, head_dim - i, cache, at)
        at += Q8_0_BYTES


@inline
def _save_block(rows, source, n_values, cache, at):
    largest = nothing = splat(f32x8, 0.0)
    for i in range(0, Q8_0_VALUES, 8):
        values = load_some(rows, source + i, n_values - i)
        largest = maximum(largest, absolute(values))
        # The maximum overlooks what is not a number; this zero does not stay zero then.
        nothing = fma(values, splat(f32x8, 0.0), nothing)
    scale = reduce_max(largest) / np.float32(127) + reduce_add(nothing)
    inverse = splat(f32x8, np.float32(1) / scale if scale > 0 else np.float32(0))
    _store_half(cache, at, scale)
    codes = i8_pointer(cache.ctypes.data + at + 2)
    for i in range(0, Q8_0_VALUES, 8):
        scaled = mul(load_some(rows, source + i, n_values - i), inverse)
        # Without a scale codes do not matter, but a conversion must not be left undefined.
        scaled = maximum(minimum(scaled, splat(f32x8, 127.0)), splat(f32x8, -127.0))
        store_low_bytes(codes, i, _round_away(scaled))


@intrinsic
def _round_away(typing_context, a):
    """f32x8 to the nearest i32x8, halves away from zero; for magnitudes below 2**22."""

    def codegen(context, builder, signature, args):
        below_half = ir.Constant(_F32X8, [_BELOW_HALF] * 8)
        half = emit.call(builder, "llvm.copysign.v8f32", _F32X8, [below_half, args[0]])
        return builder.fptosi(builder.fadd(args[0], half), emit.vector(emit.I32, 8))

    return i32x8(f32x8), codegen


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
