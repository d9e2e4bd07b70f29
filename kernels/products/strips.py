"""How a matrix lies in RAM: strips of eight rows, interleaved so that SIMD lanes are rows.

A strip holds its eight rows' blocks one after the other; in each block every field's units come
row by row (``Format.fields``). It takes the bytes that the eight rows take in the file. The last
strip is filled up with zero rows.
"""

import numpy as np

from q4run.kernels.compiling.compile import inline, kernel
from q4run.kernels.formats.base import Field, Format
from q4run.kernels.simd.memory import copy_bytes, interleave_sixteen, u8_pointer

ROWS = 8
_CONVERSION_BYTES = 12  # per value that is dequantised and quantised again: measured


def padded_rows(n_rows: int) -> int:
    """``n_rows`` rounded up to whole strips."""
    return -(-n_rows // ROWS) * ROWS


def to_strips(fmt: Format, rows: np.ndarray, target: np.ndarray) -> None:
    """Brings rows of any type into the strips of the format it has in RAM.

    rows: uint8 (n_rows, fmt.row_bytes); target: uint8 (padded_rows(n_rows), fmt.in_ram.row_bytes),
    in other memory. Both C-contiguous.
    """
    if fmt.in_ram is fmt:
        interleave(fmt, rows, target)
        return
    for first in range(0, len(rows), ROWS):  # the values on the way take several times the memory
        part = fmt.in_ram.quantize(fmt.dequantize(rows[first : first + ROWS]))
        interleave(fmt.in_ram, part, target[first : first + ROWS])


def conversion_bytes(fmt: Format, n_cols: int) -> int:
    """What ``to_strips`` holds on the way, at most."""
    return 0 if fmt.in_ram is fmt else _CONVERSION_BYTES * ROWS * n_cols


def interleave(fmt: Format, rows: np.ndarray, target: np.ndarray) -> None:
    """Brings rows from the file's layout into strips.

    rows: uint8 (n_rows, row_bytes); target: uint8 (padded_rows(n_rows), row_bytes), in other
    memory. Both C-contiguous.
    """
    if target.shape != (padded_rows(len(rows)), rows.shape[1]):
        raise ValueError(f"rows of the shape {rows.shape} do not fill {target.shape}")
    fields, type_size = fmt.fields, fmt.type_size
    if not fmt.int8_activations:
        # A float's block is one value: a whole row is quicker to go through as one block.
        fields = (Field(0, rows.shape[1] // type_size, type_size),)
        type_size = max(1, rows.shape[1])
    numbers = np.array(fields, np.int64)
    whole = len(rows) // ROWS * ROWS
    _interleave(rows[:whole], numbers, type_size, target[:whole])
    if whole < len(rows):
        last = np.zeros((ROWS, rows.shape[1]), np.uint8)
        last[: len(rows) - whole] = rows[whole:]
        _interleave(last, numbers, type_size, target[whole:])


@kernel()
def _interleave(rows, fields, type_size, target):
    """Whole strips."""
    n_rows, row_bytes = rows.shape
    source, to = u8_pointer(rows.ctypes.data), u8_pointer(target.ctypes.data)
    for begin in range(0, n_rows * row_bytes, ROWS * row_bytes):
        for block in range(0, row_bytes, type_size):
            for i in range(len(fields)):
                offset, n_units, unit = block + fields[i, 0], fields[i, 1], fields[i, 2]
                place = begin + ROWS * offset
                _interleave_field(source, begin + offset, row_bytes, n_units, unit, to, place)


@inline
def _interleave_field(source, offset, row_bytes, n_units, unit, target, place):
    """One field of one block: a unit of each row, then the next unit of each row."""
    done = 0
    while unit >= 2 and 16 + done * unit <= n_units * unit:
        if unit == 4:
            interleave_sixteen(source, offset + 4 * done, row_bytes, target, place, 4)
        else:
            interleave_sixteen(source, offset + 2 * done, row_bytes, target, place, 2)
        place += 16 * ROWS
        done += 16 // unit
    for i in range(done, n_units):
        for row in range(ROWS):
            at = row * row_bytes + offset + unit * i
            if unit == 4:
                copy_bytes(source, at, target, place, 4)
            elif unit == 2:
                copy_bytes(source, at, target, place, 2)
            else:
                copy_bytes(source, at, target, place, 1)
            place += unit
