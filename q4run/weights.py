"""Weights in RAM: quantised matrices that multiply, vectors, and the embedding table on disk."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from q4run.errors import FormatError, UnsupportedError
from q4run.gguf_file import GGUFFile, TensorInfo
from q4run.kernels.activations import Int8Activations
from q4run.kernels.formats import Format, all_formats, find_format
from q4run.kernels.matmul import matmul
from q4run.read_at import read_at


class Matrix:
    """A quantised matrix, n_rows outputs by n_cols inputs, in the bytes of its format."""

    __slots__ = ("data", "fmt")

    def __init__(self, fmt: Format, data: np.ndarray) -> None:
        """data: uint8 (n_rows, fmt.row_bytes(n_cols)), C-contiguous."""
        self.fmt = fmt
        self.data = data

    def __call__(
        self,
        x: np.ndarray,
        quantized: Int8Activations | None = None,
        out: np.ndarray | None = None,
    ) -> np.ndarray:
        """x (n_tokens, n_cols) float32 times the matrix -> float32 (n_tokens, n_rows)."""
        return matmul(self.fmt, self.data, x, quantized, out)


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


def checked_tensor(file: GGUFFile, name: str, shape: tuple[int, ...]) -> TensorInfo:
    """The tensor ``name``, which must have ``shape``; FormatError otherwise."""
    tensor = file.tensor(name)
    if tensor.shape != shape:
        raise FormatError(
            f"{tensor.path}: the tensor {name} has the shape {tensor.shape}, but the"
            f" hyperparameters ask for {shape}"
        )
    return tensor


def load_matrix(file: GGUFFile, name: str, n_rows: int, n_cols: int) -> Matrix:
    """Reads a whole matrix into RAM."""
    tensor = checked_tensor(file, name, (n_rows, n_cols))
    fmt = format_of(tensor)
    data = np.empty((n_rows, fmt.row_bytes(n_cols)), np.uint8)
    _read_into(tensor.path, tensor.offset, data)
    return Matrix(fmt, data)


def load_vector(file: GGUFFile, name: str, size: int) -> np.ndarray:
    """Reads a 1-D tensor of any supported type as float32 (size,)."""
    tensor = checked_tensor(file, name, (size,))
    fmt = format_of(tensor)
    data = np.empty(fmt.row_bytes(size), np.uint8)
    _read_into(tensor.path, tensor.offset, data)
    return fmt.dequantize(data).copy()


class EmbeddingTable:
    """Token embeddings, read from disk row by row: a prompt touches few of the many rows."""

    def __init__(self, file: GGUFFile, n_vocab: int, n_embd: int) -> None:
        tensor = checked_tensor(file, "token_embd.weight", (n_vocab, n_embd))
        self._fmt = format_of(tensor)
        self._offset = tensor.offset
        self._row_bytes = self._fmt.row_bytes(n_embd)
        self._path = tensor.path
        self._file = os.open(tensor.path, os.O_RDONLY)

    def rows(self, ids: Sequence[int]) -> np.ndarray:
        """float32 (len(ids), n_embd); ids must be below n_vocab."""
        raw = np.empty((len(ids), self._row_bytes), np.uint8)
        for row, token in zip(raw, ids, strict=True):
            offset = self._offset + token * self._row_bytes
            if read_at(self._file, row.data, offset) != self._row_bytes:
                raise FormatError(f"{self._path}: the file became shorter while it was in use")
        return self._fmt.dequantize(raw)

    def close(self) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _read_into(path: Path, offset: int, data: np.ndarray) -> None:
    """Fills ``data`` from ``offset`` on; FormatError where the file ends early."""
    view = data.data.cast("B")
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        while view:
            count = file.readinto(view)
            if not count:
                raise FormatError(f"{path}: the file became shorter while it was being read")
            view = view[count:]
