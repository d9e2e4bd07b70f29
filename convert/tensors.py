"""The tensors of the file to be written, and how each one's values come from the checkpoint.

An output tensor is a stack of matrices: one, or one per expert. It is read as runs of rows of one
matrix, so that no more than such a run is ever in memory. Values come in the type they are stored
in: as bfloat16, float16 or float32, or as blocks of a GGUF type.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from q4run.convert.blocks import Blocks
from q4run.convert.widen import transpose_columns
from q4run.kernels.formats import Format
from q4run.models.parts import Role

BAND_BYTES = 4 * 2**20
Rows = np.ndarray | Blocks
ReadRows = Callable[[int, int, int], Rows]


class SourceTensor(Protocol):
    """A tensor of the checkpoint, however it is stored there."""

    @property
    def name(self) -> str: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    def read_rows(self, first: int, count: int) -> Rows:
        """Rows ``first`` to ``first + count``, counted through all matrices of a stack."""
        ...


@dataclass(frozen=True)
class OutputTensor:
    """One tensor of the GGUF.

    ``shape`` is in numpy's order: (n,), (rows, columns) or (experts, rows, columns).
    ``read(matrix, start, stop)`` gives rows ``start`` to ``stop`` of one matrix, as an array
    (stop - start, columns) or as blocks. ``whole`` says that one read costs as much as reading the
    whole matrix, because the checkpoint holds it transposed: few long runs are better than many
    short. ``stored`` is the quantised type that it is stored in, or one of them; None for floats.
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    read: ReadRows
    whole: bool = False
    stored: Format | None = None

    @property
    def n_matrices(self) -> int:
        return self.shape[0] if len(self.shape) == 3 else 1

    @property
    def n_rows(self) -> int:
        return self.shape[-2] if len(self.shape) > 1 else 1

    @property
    def n_cols(self) -> int:
        return self.shape[-1]

    @property
    def n_values(self) -> int:
        return self.n_matrices * self.n_rows * self.n_cols


class Quantizer(Protocol):
    """Quantises the rows of a tensor together, not one by one."""

    def quantize_rows(
        self, tensor: OutputTensor, fmt: Format, matrix: int, values: np.ndarray
    ) -> np.ndarray:
        """Returns the blocks of ``values``, float32 (n_rows, n_cols): the next ones of a matrix."""
        ...


@dataclass(frozen=True)
class PlannedTensor:
    """An output tensor with its type; ``n_bytes`` is what it takes without padding.

    ``importance``: float32 (n_matrices, n_cols), the mean square of what each column multiplies;
    None where all columns count alike. ``calibration``: what quantises its rows instead, in the
    file's order and one run at a time.
    """

    tensor: OutputTensor
    fmt: Format
    importance: np.ndarray | None = None
    calibration: Quantizer | None = None

    @property
    def n_bytes(self) -> int:
        tensor = self.tensor
        return tensor.n_matrices * tensor.n_rows * self.fmt.row_bytes(tensor.n_cols)


def rows_of(tensor: SourceTensor, *, first_row: int = 0, rows_per_matrix: int = 0) -> ReadRows:
    """Rows as the checkpoint holds them, from ``first_row`` of each matrix on.

    ``rows_per_matrix`` is the checkpoint's count, needed where it holds a stack (experts, rows,
    columns).
    """

    def read(matrix: int, start: int, stop: int) -> Rows:
        return tensor.read_rows(matrix * rows_per_matrix + first_row + start, stop - start)

    return read


def stack_of(tensors: Sequence[SourceTensor]) -> ReadRows:
    """A stack whose matrices are tensors of their own in the checkpoint."""
    readers = [rows_of(tensor) for tensor in tensors]

    def read(matrix: int, start: int, stop: int) -> Rows:
        return readers[matrix](0, start, stop)

    return read


def columns_of(tensor: SourceTensor, *, first_column: int = 0) -> ReadRows:
    """Rows that are columns in the checkpoint's stack (experts, inputs, outputs).

    The checkpoint is read in bands of whole rows, one after another, of which the wanted columns
    are kept.
    """
    _, n_inputs, n_outputs = tensor.shape

    def read(matrix: int, start: int, stop: int) -> np.ndarray:
        band_rows = max(1, BAND_BYTES // (4 * n_outputs))
        rows = None
        for band_start in range(0, n_inputs, band_rows):
            n_band = min(band_rows, n_inputs - band_start)
            band = tensor.read_rows(matrix * n_inputs + band_start, n_band)
            assert isinstance(band, np.ndarray), "blocks cannot be transposed"
            if rows is None:
                rows = np.empty((stop - start, n_inputs), band.dtype)
            bits = f"u{band.itemsize}"
            transpose_columns(band.view(bits), first_column + start, rows.view(bits), band_start)
        assert rows is not None
        return rows

    return read


def every_second_row(read: ReadRows, first: int) -> ReadRows:
    """Rows ``first``, ``first + 2`` and so on of each matrix."""

    def read_some(matrix: int, start: int, stop: int) -> Rows:
        rows = read(matrix, 2 * start, 2 * stop)
        return rows[np.arange(first, len(rows), 2)]

    return read_some


def every_second_value(tensor: SourceTensor, first: int) -> ReadRows:
    """Rows of a matrix, of which values ``first``, ``first + 2`` and so on."""

    def read(matrix: int, start: int, stop: int) -> np.ndarray:
        rows = tensor.read_rows(start, stop - start)
        assert isinstance(rows, np.ndarray), "values of blocks cannot be picked"
        return np.ascontiguousarray(rows[:, first::2])

    return read


def plus_one(read: ReadRows) -> ReadRows:
    """Weights of norms that a checkpoint stores less one, as float32."""

    def read_some(matrix: int, start: int, stop: int) -> np.ndarray:
        rows = read(matrix, start, stop)
        assert isinstance(rows, np.ndarray), "blocks cannot be added to"
        return rows.astype(np.float32) + np.float32(1)

    return read_some


def rope_pairs_of(tensor: SourceTensor, head_dim: int) -> ReadRows:
    """Rows of a query or key matrix, ordered for RoPE over adjacent pairs.

    Hugging Face's Llama rotates value i of a head with value i + head_dim/2; GGUF's ``llama``
    architecture rotates neighbours, so row 2i comes from row i and row 2i+1 from i + head_dim/2.
    """
    plain = rows_of(tensor)
    half = head_dim // 2

    def read(matrix: int, start: int, stop: int) -> Rows:
        first_head, end_head = start // head_dim, -(-stop // head_dim)
        rows = plain(matrix, first_head * head_dim, end_head * head_dim)
        order = np.arange(len(rows)).reshape(-1, 2, half).swapaxes(1, 2).reshape(-1)
        order = order[start - first_head * head_dim : stop - first_head * head_dim]
        if isinstance(rows, Blocks):
            return rows[order]
        # Moved as plain integers: numpy copies its own types faster than bfloat16.
        return rows.view(f"u{rows.itemsize}")[order].view(rows.dtype)

    return read


def values_of(values: np.ndarray) -> ReadRows:
    """A short vector that was computed, not stored."""

    def read(matrix: int, start: int, stop: int) -> np.ndarray:
        return values.reshape(1, -1)[start:stop]

    return read
