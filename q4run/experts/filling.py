"""Filling slots: an expert's matrices read piece by piece and interleaved on the way.

A piece is some strips of one matrix. Pieces that lie side by side in a file, such as gate and up of
a fused stack, are one request. Each reader thread has a buffer of its own, so that requests may be
as wide as the method needs and the interleaving of one overlaps the reading of others.
"""

import itertools
import mmap
import time
from collections.abc import Iterable, Iterator, Sequence
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

    @property
    def n_bytes(self) -> int:
        return self.n_rows * self.row_bytes


class Amount(NamedTuple):
    """What came from disk, in how many requests, and the nanoseconds that these took."""

    n_bytes: int
    n_requests: int
    read_ns: int = 0


def cut_into_requests(
    matrices: Sequence[ExpertMatrix], expert: int, slot: np.ndarray
) -> list[list[Piece]]:
    """The pieces of an expert in lists, each of which is read at once; slot: its slot's bytes."""
    pieces = [piece for matrix in matrices for piece in cut_into_pieces(matrix, expert, slot)]
    cuts = _request_ends((piece.path, piece.offset, piece.n_bytes) for piece in pieces)
    return [pieces[begin:end] for begin, end in itertools.pairwise([0, *cuts])]


def cut_into_pieces(matrix: ExpertMatrix, expert: int, slot: np.ndarray) -> list[Piece]:
    """The pieces of an expert's matrix; slot: the bytes of its slot."""
    strip_bytes = matrix.fmt.in_ram.row_bytes(matrix.n_cols)
    size = padded_rows(matrix.n_rows) * strip_bytes
    strips = slot[matrix.slot_offset : matrix.slot_offset + size].reshape(-1, strip_bytes)
    path, begin = matrix.place(expert)
    pieces = []
    for first, n_rows in _row_ranges(matrix):
        offset = begin + first * matrix.row_bytes
        target = strips[first : first + padded_rows(n_rows)]
        pieces.append(Piece(path, offset, matrix.fmt, n_rows, matrix.row_bytes, target))
    return pieces


def buffer_bytes(layout: ExpertLayout) -> int:
    """What the largest request takes, wherever in the file it begins."""
    most = max((_longest_request(matrices) for matrices in layout.layers.values()), default=0)
    return (-(-most // _WIDEST_ALIGNMENT) + 1) * _WIDEST_ALIGNMENT if most else 0


def reader_bytes(layout: ExpertLayout) -> int:
    """What each reader thread takes: its buffer, and what ``to_strips`` holds on the way."""
    matrices = [matrix for layer in layout.layers.values() for matrix in layer]
    converting = (conversion_bytes(matrix.fmt, matrix.n_cols) for matrix in matrices)
    return buffer_bytes(layout) + max(converting, default=0)


def _longest_request(matrices: Sequence[ExpertMatrix]) -> int:
    """The most bytes that a layer's experts are read at once in."""
    # Experts of a stack lie all alike.
    n_expert = matrices[0].n_expert if any(matrix.apart for matrix in matrices) else 1
    most = 0
    for expert in range(n_expert):
        ranges = [
            (path, begin + first * matrix.row_bytes, n_rows * matrix.row_bytes)
            for matrix in matrices
            for path, begin in [matrix.place(expert)]
            for first, n_rows in _row_ranges(matrix)
        ]
        for begin, end in itertools.pairwise([0, *_request_ends(ranges)]):
            most = max(most, sum(n_bytes for _, _, n_bytes in ranges[begin:end]))
    return most


def _request_ends(ranges: Iterable[tuple[Path, int, int]]) -> list[int]:
    """After how many ranges (path, offset, bytes) each request ends: it joins those that follow one
    another in a file, up to ``PIECE_BYTES``."""
    ends, n_bytes, behind = [], 0, None
    for i, (path, offset, size) in enumerate(ranges):
        if i and ((path, offset) != behind or n_bytes + size > PIECE_BYTES):
            ends.append(i)
            n_bytes = 0
        n_bytes += size
        behind = path, offset + size
    return [*ends, i + 1] if behind else []


def _row_ranges(matrix: ExpertMatrix) -> Iterator[tuple[int, int]]:
    """First row and number of rows of each piece."""
    at_once = _rows_at_once(matrix.row_bytes)
    for first in range(0, matrix.n_rows, at_once):
        yield first, min(at_once, matrix.n_rows - first)


def _rows_at_once(row_bytes: int) -> int:
    return max(ROWS, PIECE_BYTES // row_bytes // ROWS * ROWS)


class Filler:
    """Reads pieces; called from several threads at once."""

    def __init__(self, layout: ExpertLayout, method: ReadMethod) -> None:
        self._buffer_bytes = buffer_bytes(layout)
        self._method = method
        self._buffers = local()

    def fill(self, requests: Iterable[Sequence[Piece]]) -> Amount:
        """Returns what was read; raises what ``ReadMethod.read`` raises."""
        amounts = [self._fill(pieces) for pieces in requests]
        return Amount(*map(sum, zip(*amounts, strict=True)))

    def _fill(self, pieces: Sequence[Piece]) -> Amount:
        first, n_bytes = pieces[0], sum(piece.n_bytes for piece in pieces)
        unit = self._method.alignment
        begin = first.offset // unit * unit
        end = -(-(first.offset + n_bytes) // unit) * unit
        buffer = self._buffer()
        began = time.perf_counter_ns()
        self._method.read(first.path, begin, buffer.data[: end - begin])
        read_ns = time.perf_counter_ns() - began
        for piece in pieces:
            rows = buffer[piece.offset - begin :][: piece.n_bytes].reshape(piece.n_rows, -1)
            to_strips(piece.fmt, rows, piece.target)
        return Amount(end - begin, 1, read_ns)

    def _buffer(self) -> np.ndarray:
        """This thread's buffer, which begins on a page border as direct reads want it."""
        if not hasattr(self._buffers, "bytes"):
            self._buffers.bytes = np.frombuffer(mmap.mmap(-1, self._buffer_bytes), np.uint8)
        buffer: np.ndarray = self._buffers.bytes
        return buffer
