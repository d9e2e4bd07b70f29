"""Stored floats as float32 and the largest of them, in compiled code that other threads run beside.

numpy converts bfloat16 (of ml_dtypes) only while it holds Python's lock, so that no second thread
could convert or quantise meanwhile.
"""

import ml_dtypes
import numpy as np
from numba.core import types
from numba.extending import overload

from q4run.convert.blocks import Blocks
from q4run.kernels.compiling.compile import kernel
from q4run.kernels.simd.casts import halves_to_float
from q4run.kernels.simd.memory import copy_bytes, load_u16x8, store, u8_pointer

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def widen(rows: np.ndarray) -> tuple[np.ndarray, float]:
    """bfloat16, float16 or float32 (n, columns) -> the same values as float32, C-contiguous, and
    the largest magnitude among them: infinite or NaN where one of them is."""
    if rows.dtype == BFLOAT16:
        bits = np.ascontiguousarray(rows).view(np.uint16)
        wide = np.empty(rows.shape, np.uint32)
        largest = _widen_bfloats(bits.reshape(-1), wide.reshape(-1))
        return wide.view(np.float32), _as_float(largest)
    if rows.dtype == np.float16:
        bits = np.ascontiguousarray(rows).view(np.uint16)
        values = np.empty(rows.shape, np.float32)
        _widen_halves(bits.reshape(-1), values.reshape(-1))
    else:
        values = np.ascontiguousarray(rows, np.float32)
    return values, _as_float(_largest_magnitude(values.view(np.uint32).reshape(-1)))


def largest_bfloat(rows: np.ndarray) -> float:
    """The largest magnitude among bfloat16 values: infinite or NaN where one of them is."""
    bits = np.ascontiguousarray(rows).view(np.uint16).reshape(-1)
    return _as_float(_largest_bfloat(bits) << 16)


def transpose_columns(band: np.ndarray, first: int, rows: np.ndarray, at: int) -> None:
    """rows[:, at : at + len(band)] = band[:, first : first + len(rows)].T

    Both C-contiguous and of one type: uint8, uint16 or uint32.
    """
    tile = np.zeros((_TILE, _TILE), band.dtype)
    _transpose(
        band.view(np.uint8).reshape(-1),
        band.shape[1],
        first,
        rows.view(np.uint8).reshape(-1),
        rows.shape[1],
        at,
        tile,
        np.zeros_like(tile),
    )


def _as_float(bits: int) -> float:
    return float(np.uint32(bits).view(np.float32))


def float_values(rows: np.ndarray | Blocks) -> np.ndarray:
    """float32 (n, columns), whatever the rows are stored as."""
    return rows.dequantize() if isinstance(rows, Blocks) else widen(rows)[0]


@kernel()
def _widen_bfloats(bits, wide):
    """Fills ``wide`` with the bits of the same values as float32; returns the largest magnitude."""
    largest = np.uint32(0)
    for i in range(len(bits)):
        value = np.uint32(np.uint32(bits[i]) << np.uint32(16))
        wide[i] = value
        largest = max(largest, np.uint32(value & np.uint32(0x7FFFFFFF)))
    return largest


@kernel()
def _largest_bfloat(bits):
    largest = np.uint16(0)
    for i in range(len(bits)):
        largest = max(largest, np.uint16(bits[i] & np.uint16(0x7FFF)))
    return np.uint32(largest)


@kernel()
def _widen_halves(bits, values):
    whole = len(bits) // 8 * 8
    for i in range(0, whole, 8):
        store(values, i, halves_to_float(load_u16x8(bits, i)))
    if whole < len(bits):
        last, last_values = np.zeros(8, np.uint16), np.empty(8, np.float32)
        last[: len(bits) - whole] = bits[whole:]
        store(last_values, 0, halves_to_float(load_u16x8(last, 0)))
        values[whole:] = last_values[: len(bits) - whole]


@kernel()
def _largest_magnitude(bits):
    """Of float32 as their bits: without the sign, larger bits are larger values, NaN above all."""
    largest = np.uint32(0)
    for i in range(len(bits)):
        largest = max(largest, np.uint32(bits[i] & np.uint32(0x7FFFFFFF)))
    return largest


_TILE = 64
_LOW_HALVES = np.uint64(0x0000FFFF0000FFFF)
_LOW_WORD = np.uint64(0x00000000FFFFFFFF)


@kernel()
def _transpose(band, band_columns, first, rows, row_columns, at, tile, turned):
    """``transpose_columns`` of matrices as their bytes. tile, turned: room for a tile each.

    Tile by tile through a small copy, so that each line of memory is read or written once: rows of
    a power of two would otherwise throw one another out of the cache.
    """
    size = tile.itemsize
    n_rows = band.size // (band_columns * size)
    n_columns = rows.size // (row_columns * size)
    band_at, rows_at = u8_pointer(band.ctypes.data), u8_pointer(rows.ctypes.data)
    tile_at, turned_at = u8_pointer(tile.ctypes.data), u8_pointer(turned.ctypes.data)
    for left in range(0, n_columns, _TILE):
        width = min(_TILE, n_columns - left)
        for top in range(0, n_rows, _TILE):
            height = min(_TILE, n_rows - top)
            for row in range(height):
                start = ((top + row) * band_columns + first + left) * size
                copy_bytes(band_at, start, tile_at, row * _TILE * size, width * size)
            _turn(tile, turned)
            for column in range(width):
                start = ((left + column) * row_columns + at + top) * size
                copy_bytes(turned_at, column * _TILE * size, rows_at, start, height * size)


def _turn(tile, turned):
    """turned[:, :] = tile.T, of uint16 or uint32; no Python body."""
    raise NotImplementedError


@overload(_turn)
def _turn_overload(tile, turned):
    if tile.dtype != types.uint16:

        def turn(tile, turned):
            for column in range(_TILE):
                for row in range(_TILE):
                    turned[column, row] = tile[row, column]

        return turn

    def turn_by_fours(tile, turned):
        """Four rows at a time, as words of four values: swapped in pairs, then pairs of pairs."""
        words = tile.view(np.uint64)
        turned_words = turned.view(np.uint64)
        for top in range(0, _TILE, 4):
            for word in range(_TILE // 4):
                a, b = words[top, word], words[top + 1, word]
                c, d = words[top + 2, word], words[top + 3, word]
                ab_even = (a & _LOW_HALVES) | ((b & _LOW_HALVES) << np.uint64(16))
                ab_odd = ((a >> np.uint64(16)) & _LOW_HALVES) | (b & ~_LOW_HALVES)
                cd_even = (c & _LOW_HALVES) | ((d & _LOW_HALVES) << np.uint64(16))
                cd_odd = ((c >> np.uint64(16)) & _LOW_HALVES) | (d & ~_LOW_HALVES)
                to, column = top // 4, 4 * word
                turned_words[column, to] = (ab_even & _LOW_WORD) | (cd_even << np.uint64(32))
                turned_words[column + 1, to] = (ab_odd & _LOW_WORD) | (cd_odd << np.uint64(32))
                turned_words[column + 2, to] = (ab_even >> np.uint64(32)) | (cd_even & ~_LOW_WORD)
                turned_words[column + 3, to] = (ab_odd >> np.uint64(32)) | (cd_odd & ~_LOW_WORD)

    return turn_by_fours
