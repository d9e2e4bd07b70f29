"""A model's weights as float32, from a GGUF file or from a checkpoint that is being converted."""

from collections.abc import Iterable, Iterator
from typing import Protocol

import numpy as np

from q4run.convert.tensors import OutputTensor
from q4run.convert.widen import float_values
from q4run.disk.read_at import read_fully_at
from q4run.errors import FormatError
from q4run.gguf_file import GGUFFile, TensorInfo
from q4run.weights import format_of

# A matrix is widened to float32 band by band: on their way values take several times their size.
_BAND_VALUES = 2**20


class Weights(Protocol):
    """Where the values of a model's tensors come from, by their names in GGUF."""

    def matrix(self, name: str, n_rows: int, n_cols: int, matrix: int = 0) -> np.ndarray:
        """float32 (n_rows, n_cols): one whole matrix of the stack ``name``, of that shape."""

    def bands(self, name: str, n_rows: int, n_cols: int) -> Iterator[tuple[int, np.ndarray]]:
        """A matrix in runs of rows: (first row, float32 (rows, n_cols)), in order."""


class FileWeights:
    """The weights of a GGUF file, whatever their types. Raises ``FormatError`` for other shapes
    than asked for, ``UnsupportedError`` for a type that cannot be read."""

    def __init__(self, file: GGUFFile) -> None:
        self._file = file

    def matrix(self, name: str, n_rows: int, n_cols: int, matrix: int = 0) -> np.ndarray:
        tensor = self._tensor(name, n_rows, n_cols, matrix)
        values = np.empty((n_rows, n_cols), np.float32)
        for start, rows in self._rows(tensor, n_rows, n_cols, matrix):
            values[start : start + len(rows)] = rows
        return values

    def bands(self, name: str, n_rows: int, n_cols: int) -> Iterator[tuple[int, np.ndarray]]:
        yield from self._rows(self._tensor(name, n_rows, n_cols, 0), n_rows, n_cols, 0)

    def _tensor(self, name: str, n_rows: int, n_cols: int, matrix: int) -> TensorInfo:
        tensor = self._file.tensor(name)
        *stack, rows, cols = (1, 1, *tensor.shape)
        if (rows, cols) != (n_rows, n_cols) or matrix >= stack[-1] or len(tensor.shape) > 3:
            raise FormatError(
                f"{tensor.path}: the tensor {name} has the shape {tensor.shape}, but the"
                f" hyperparameters ask for matrices of {(n_rows, n_cols)}"
            )
        return tensor

    def _rows(
        self, tensor: TensorInfo, n_rows: int, n_cols: int, matrix: int
    ) -> Iterator[tuple[int, np.ndarray]]:
        if tensor.parts:
            tensor, matrix = tensor.parts[matrix], 0
        fmt = format_of(tensor)
        row_bytes = fmt.row_bytes(n_cols)
        step = max(1, _BAND_VALUES // n_cols)
        with tensor.path.open("rb", buffering=0) as source:
            for start in range(0, n_rows, step):
                data = np.empty((min(step, n_rows - start), row_bytes), np.uint8)
                offset = tensor.offset + (matrix * n_rows + start) * row_bytes
                if read_fully_at(source.fileno(), data.data.cast("B"), offset) < data.nbytes:
                    raise FormatError(f"{tensor.path}: the file became shorter while it was read")
                yield start, fmt.dequantize(data)


class PlannedWeights:
    """The weights that a conversion will write, as they are before they are quantised."""

    def __init__(self, tensors: Iterable[OutputTensor]) -> None:
        self._tensors = {tensor.name: tensor for tensor in tensors}

    def matrix(self, name: str, n_rows: int, n_cols: int, matrix: int = 0) -> np.ndarray:
        tensor = self._tensors[name]
        if tensor.whole:
            return float_values(tensor.read(matrix, 0, n_rows))
        values = np.empty((n_rows, n_cols), np.float32)
        for start, stop in _runs(n_rows, n_cols):
            values[start:stop] = float_values(tensor.read(matrix, start, stop))
        return values

    def bands(self, name: str, n_rows: int, n_cols: int) -> Iterator[tuple[int, np.ndarray]]:
        for start, stop in _runs(n_rows, n_cols):
            yield start, float_values(self._tensors[name].read(0, start, stop))


def _runs(n_rows: int, n_cols: int) -> Iterator[tuple[int, int]]:
    step = max(1, _BAND_VALUES // n_cols)
    for start in range(0, n_rows, step):
        yield start, min(start + step, n_rows)
