"""Weights in RAM: quantised matrices that multiply, vectors, and the embedding table on disk."""

import os
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from q4run.disk.read_at import read_fully_at
from q4run.errors import FormatError, UnsupportedError
from q4run.gguf_file import GGUFFile, TensorInfo
from q4run.kernels.formats import Format, all_formats, find_format
from q4run.kernels.products.products import matrix_record
from q4run.kernels.products.strips import ROWS, padded_rows, to_strips
from q4run.machine.huge_pages import Blocks
from q4run.models.parts import Tensor

_READ_BYTES = 1 << 20
# So many embeddings are read at a time: on its way to float32 a value takes up to 16 bytes.
_EMBEDDINGS_AT_ONCE = 16
_BYTES_ON_THE_WAY = 16


class Matrix:
    """A quantised matrix, n_rows outputs by n_cols inputs, in strips of interleaved rows."""

    __slots__ = ("_strips", "fmt", "n_cols", "n_rows")

    def __init__(self, fmt: Format, strips: np.ndarray, n_rows: int, n_cols: int) -> None:
        """fmt: one that has kernels; strips: uint8 (padded_rows(n_rows), fmt.row_bytes(n_cols)), as
        ``interleave`` fills them."""
        self.fmt = fmt
        self.n_rows = n_rows
        self.n_cols = n_cols
        self._strips = strips

    @property
    def record(self) -> np.void:
        """The ``MATRIX`` that kernels take; valid as long as this object lives."""
        return matrix_record(self.fmt, self._strips.ctypes.data, self.n_rows, self.n_cols)


def format_of(tensor: TensorInfo) -> Format:
    """The kernels for a tensor's type; UnsupportedError naming the type where there are none."""
    fmt = find_format(tensor.type)
    if fmt is None:
        known = ", ".join(sorted(known.name for known in all_formats()))
        raise UnsupportedError(
            f"{tensor.path}: the tensor {tensor.name} has the type {tensor.type.name.lower()},"
            f" which q4run cannot compute with yet; it knows {known}"
        )
    return fmt


def checked_tensor(file: GGUFFile, declared: Tensor) -> TensorInfo:
    """Finds a tensor in the file; FormatError where it is absent or has another shape."""
    tensor = file.tensor(declared.name)
    if tensor.shape != declared.shape:
        raise FormatError(
            f"{tensor.path}: the tensor {declared.name} has the shape {tensor.shape}, but the"
            f" hyperparameters ask for {declared.shape}"
        )
    return tensor


class WeightReader:
    """Reads what stays in RAM."""

    def __init__(self, file: GGUFFile) -> None:
        self.path = file.path
        self._file = file
        self._memory = Blocks()

    def matrix(self, declared: Tensor) -> Matrix:
        """Reads a whole matrix, n_rows outputs by n_cols inputs."""
        return self.row_groups(declared, declared.shape[:1])[0]

    def row_groups(self, declared: Tensor, sizes: Sequence[int]) -> list[Matrix]:
        """Reads a matrix whose rows are those of several, one after the other, as these."""
        tensor = checked_tensor(self._file, declared)
        ends = accumulate(sizes)
        return [self._rows(tensor, end - n, n) for end, n in zip(ends, sizes, strict=True)]

    def _rows(self, tensor: TensorInfo, begin: int, n_rows: int) -> Matrix:
        n_cols = tensor.shape[1]
        fmt = format_of(tensor)
        row_bytes = fmt.row_bytes(n_cols)
        strips = self._memory.take(padded_rows(n_rows), fmt.in_ram.row_bytes(n_cols))
        rows_at_once = max(ROWS, padded_rows(_READ_BYTES // row_bytes))
        rows = np.empty((min(rows_at_once, n_rows), row_bytes), np.uint8)
        with tensor.path.open("rb", buffering=0) as source:
            for first in range(0, n_rows, rows_at_once):
                part = rows[: n_rows - first]
                offset = tensor.offset + (begin + first) * row_bytes
                _read(source.fileno(), part, offset, tensor.path)
                to_strips(fmt, part, strips[first : first + padded_rows(len(part))])
        return Matrix(fmt.in_ram, strips, n_rows, n_cols)

    def vector(self, declared: Tensor) -> np.ndarray:
        """Reads a small tensor of any supported type as float32 of its shape."""
        tensor = checked_tensor(self._file, declared)
        fmt = format_of(tensor)
        *rows, n_cols = tensor.shape
        data = np.empty((*rows, fmt.row_bytes(n_cols)), np.uint8)
        with tensor.path.open("rb", buffering=0) as source:
            _read(source.fileno(), data, tensor.offset, tensor.path)
        return fmt.dequantize(data).copy()


def embedding_bytes(n_tokens: int, n_embd: int) -> int:
    """What ``EmbeddingTable.rows`` takes, its result included."""
    at_once = min(n_tokens, _EMBEDDINGS_AT_ONCE)
    return (4 * n_tokens + _BYTES_ON_THE_WAY * at_once) * n_embd


class EmbeddingTable:
    """Token embeddings, read from disk row by row: a prompt touches few of the many rows."""

    def __init__(self, file: GGUFFile, declared: Tensor) -> None:
        tensor = checked_tensor(file, declared)
        self._fmt = format_of(tensor)
        self._n_embd = n_embd = tensor.shape[1]
        self._offset = tensor.offset
        self._row_bytes = self._fmt.row_bytes(n_embd)
        self._path = tensor.path
        self._file = os.open(tensor.path, os.O_RDONLY)

    def rows(self, ids: Sequence[int]) -> np.ndarray:
        """float32 (len(ids), n_embd); ids must be below n_vocab."""
        x = np.empty((len(ids), self._n_embd), np.float32)
        raw = np.empty((min(len(ids), _EMBEDDINGS_AT_ONCE), self._row_bytes), np.uint8)
        for first in range(0, len(ids), _EMBEDDINGS_AT_ONCE):
            part = ids[first : first + _EMBEDDINGS_AT_ONCE]
            for row, token in zip(raw, part, strict=False):
                offset = self._offset + token * self._row_bytes
                _read(self._file, row, offset, self._path)
            x[first : first + len(part)] = self._fmt.dequantize(raw[: len(part)])
        return x

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _read(file: int, data: np.ndarray, offset: int, path: Path) -> None:
    """Fills ``data``, uint8, from ``offset`` on; ``FormatError`` where the file ends early."""
    if read_fully_at(file, data.data.cast("B"), offset) < data.nbytes:
        raise FormatError(f"{path}: the file became shorter while it was in use")
