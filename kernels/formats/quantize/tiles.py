"""A tile in compiled code: 256 values as 32 vectors, whose lane g is of group g of 32."""

import numpy as np

from q4run.kernels.compiling.compile import inline
from q4run.kernels.formats.quantize.column_weights import TILE
from q4run.kernels.simd.casts import floats_to_half, halves_to_float, to_int
from q4run.kernels.simd.compare import where_greater
from q4run.kernels.simd.memory import load_f32x8, load_i32x8, store
from q4run.kernels.simd.ops import absolute, bit_or, divide, mul, shift_left, splat
from q4run.kernels.simd.transpose import transpose
from q4run.kernels.simd.vector import f32x8


@inline
def load_tile(values, first, x):
    """Fills ``x``, float32 (256,), with the values from ``values[first]`` on, zeros behind the end.

    Vector j of ``x`` is value j of each of the eight groups.
    """
    if first + TILE > len(values):
        for i in range(TILE):
            place = 8 * (i % 32) + i // 32
            x[place] = values[first + i] if first + i < len(values) else np.float32(0)
        return
    for quarter in range(4):
        i = first + 8 * quarter
        columns = transpose(
            load_f32x8(values, i),
            load_f32x8(values, i + 32),
            load_f32x8(values, i + 64),
            load_f32x8(values, i + 96),
            load_f32x8(values, i + 128),
            load_f32x8(values, i + 160),
            load_f32x8(values, i + 192),
            load_f32x8(values, i + 224),
        )
        for k in range(8):
            store(x, 64 * quarter + 8 * k, columns[k])


@inline
def weigh(x, weights, at, weighted):
    """Fills ``weighted`` with the products of a tile and its weights, those from ``at`` on."""
    for j in range(0, TILE, 8):
        store(weighted, j, mul(load_f32x8(x, j), load_f32x8(weights, at + j)))


@inline
def four_codes(c0, c1, c2, c3):
    """Four vectors of codes (f32x8 of 0 to 255) as the bytes of i32x8."""
    low = bit_or(to_int(c0), shift_left(to_int(c1), 8))
    return bit_or(low, bit_or(shift_left(to_int(c2), 16), shift_left(to_int(c3), 24)))


@inline
def store_codes(words, codes):
    """From vectors of four codes, int32 (64,), to codes in the stream's order, uint8 (256,)."""
    rows = transpose(
        load_i32x8(words, 0),
        load_i32x8(words, 8),
        load_i32x8(words, 16),
        load_i32x8(words, 24),
        load_i32x8(words, 32),
        load_i32x8(words, 40),
        load_i32x8(words, 48),
        load_i32x8(words, 56),
    )
    for group in range(8):
        store(codes, 32 * group, rows[group])


@inline
def as_half(a):
    """f32x8 rounded to what f16 holds; beyond its range infinite."""
    return halves_to_float(floats_to_half(a))


@inline
def inverse(a):
    """1 / a, lane by lane, and 0 for 0."""
    zero = splat(f32x8, 0.0)
    return where_greater(absolute(a), zero, divide(splat(f32x8, 1.0), a), zero)


@inline
def store_halves(factors, halves, at):
    """Eight floats as f16 bit patterns, to a uint16 array from ``at`` on."""
    store(halves, at, floats_to_half(factors))


@inline
def put_half(half, raw, at):
    """An f16 bit pattern as two bytes of ``raw``."""
    raw[at], raw[at + 1] = np.uint8(half & 255), np.uint8(half >> 8)
