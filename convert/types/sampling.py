"""Some rows of a tensor, and what a type makes of them: to judge without converting."""

import numpy as np

from q4run.convert.tensors import OutputTensor
from q4run.convert.widen import float_values
from q4run.kernels.formats import Format

SAMPLE_VALUES = 64 * 1024


def sample_rows(
    tensor: OutputTensor, importance: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Rows from all over the tensor and what their columns count, both float32 (n, n_cols).

    Of a stack that is stored transposed one matrix has to do: each would be read whole.
    """
    n_rows = max(1, SAMPLE_VALUES // tensor.n_cols)
    n_matrices = 1 if tensor.whole else min(tensor.n_matrices, n_rows)
    matrices = np.unique(np.linspace(0, tensor.n_matrices - 1, n_matrices).astype(int))
    n_each = min(tensor.n_rows, -(-n_rows // len(matrices)))
    rows, counts = [], []
    for matrix in matrices:
        start = (tensor.n_rows - n_each) // 2
        rows.append(float_values(tensor.read(int(matrix), start, start + n_each)))
        own = np.ones(tensor.n_cols, np.float32) if importance is None else importance[matrix]
        counts.append(np.broadcast_to(own, rows[-1].shape))
    return np.concatenate(rows), np.concatenate(counts)


def relative_error(fmt: Format, rows: np.ndarray, counts: np.ndarray) -> float:
    """The squared error of the rows in that format over their squares, columns weighted."""
    # Damaged values are told of when they are converted.
    with np.errstate(all="ignore"):
        square = float((counts * rows.astype(np.float64) ** 2).sum())
        difference = fmt.dequantize(fmt.quantize(rows)).astype(np.float64) - rows
        return float((counts * difference**2).sum()) / square if square else 0.0
