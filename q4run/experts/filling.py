"""Filling slots: an expert's matrices read piece by piece and interleaved on the way.

A piece is some strips of one matrix. Each reader thread has a buffer of its own, so that reads may
be as wide as the method needs and the interleaving of one piece overlaps the reading of others.
"""

import mmap
from pathlib import Path
from threading import local
from typing import NamedTuple

import numpy as np

from q4run.disk.methods import ReadMethod
from q4run.disk.speed import PIECE_BYTES
from q4run.experts.layout import ExpertLayout, ExpertMatrix
from q4run.kernels.formats import Format
from q4run.kernels.products.strips import ROWS, conversion_bytes, padded_rows, to_strips

_WIDEST_ALIGNMENT = 4096


class Piece(NamedTuple):
    """Some rows of a matrix: where they are in a file, and where their strips go."""

    path: Path
    offset: int
    fmt: Format
    n_rows: int
    row_bytes: int
    target: np.ndarray  # uint8 (padded_rows(n_rows), fmt.in_ram.row_bytes)


def cut_into_pieces(matrix: ExpertMatrix, expert: int, slot: np.ndarray) -> list[Piece]:
    """The pieces of an expert's matrix; slot: the bytes of its slot."""
    row_bytes = matrix.row_bytes
    rows_at_once = _rows_at_once(row_bytes)
    strip_bytes = matrix.fmt.in_ram.row_bytes(matrix.n_cols)
    size = padded_rows(matrix.n_rows) * strip_bytes
    strips = slot[matrix.slot_offset : matrix.slot_offset + size].reshape(-1, strip_bytes)
    path, begin = matrix.place(expert)
    pieces = []
    for first in range(0, matrix.n_rows, rows_at_once):
        n_rows = min(rows_at_once, matrix.n_rows - first)
        offset = begin + first * row_bytes
        target = strips[first : first + padded_rows(n_rows)]
        pieces.append(Piece(path, offset, matrix.fmt, n_rows, row_bytes, target))
    return pieces


def buffer_bytes(layout: ExpertLayout) -> int:
    """What the largest read of one piece takes, wherever in the file it begins."""
    most = 0
    for matrices in layout.layers.values():
        for matrix in matrices:
            rows = min(matrix.n_rows, _rows_at_once(matrix.row_bytes))
            most = max(most, rows * matrix.row_bytes)
    return (-(-most // _WIDEST_ALIGNMENT) + 1) * _WIDEST_ALIGNMENT if most else 0


def reader_bytes(layout: ExpertLayout) -> int:
    """What each reader thread takes: its buffer, and what ``to_strips`` holds on the way."""
    matrices = [matrix for layer in layout.layers.values() for matrix in layer]
    converting = (conversion_bytes(matrix.fmt, matrix.n_cols) for matrix in matrices)
    return buffer_bytes(layout) + max(converting, default=0)


def _rows_at_once(row_bytes: int) -> int:
    return max(ROWS, PIECE_BYTES // row_bytes // ROWS * ROWS)


class Filler:
    """Reads pieces; called from several threads at once."""

    def __init__(self, layout: ExpertLayout, method: ReadMethod) -> None:
        self._buffer_bytes = buffer_bytes(layout)
        self._method = method
        self._buffers = local()

    def fill(self, piece: Piece) -> int:
        """Returns the bytes that were read; raises what ``ReadMethod.read`` raises."""
        n_bytes = piece.n_rows * piece.row_bytes
        unit = self._method.alignment
        begin = piece.offset // unit * unit
        end = -(-(piece.offset + n_bytes) // unit) * unit
        buffer = self._buffer()
        self._method.read(piece.path, begin, buffer.data[: end - begin])
        rows = buffer[piece.offset - begin :][:n_bytes].reshape(piece.n_rows, -1)
        to_strips(piece.fmt, rows, piece.target)
        return end - begin

    def _buffer(self) -> np.ndarray:
        """This thread's buffer, which begins on a page border as direct reads want it."""
        if not hasattr(self._buffers, "bytes"):
            self._buffers.bytes = np.frombuffer(mmap.mmap(-1, self._buffer_bytes), np.uint8)
        buffer: np.ndarray = self._buffers.bytes
        return buffer
