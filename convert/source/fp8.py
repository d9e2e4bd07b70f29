"""Weights stored as 8-bit floats with scales: value = code * scale.

How checkpoints name and shape the scales of a matrix NAME.weight (outputs, inputs):

- one scale a tensor: ``NAME.weight_scale``, () or (1,);
- one an output ("channel", as compressed-tensors' ``float-quantized`` and FBGEMM's fp8 have it):
  ``NAME.weight_scale``, (outputs, 1). Llama 4 Maverick FP8 is of this kind: its routed experts are
  matrices of their own, ``feed_forward.experts.N.gate_proj.weight``, not the stacks of bf16;
- one a block (DeepSeek's form, ``quant_method`` "fp8" with ``weight_block_size``):
  ``NAME.weight_scale_inv``, (ceil(outputs / 128), ceil(inputs / 128)), which multiplies too in
  spite of its name.

Stacks of experts (experts, rows, columns) have ``STACK_scale``, ``STACK_scale_inv`` or (ModelOpt)
``STACK_weight_scale``, of the same shapes with the experts in front, or one for all.
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from q4run.convert.source.safetensors_file import StoredTensor
from q4run.errors import FormatError
from q4run.kernels.compiling.compile import kernel

_CODES = np.arange(256, dtype=np.uint8)
_TABLES = {
    "F8_E4M3": _CODES.view(ml_dtypes.float8_e4m3fn).astype(np.float32),
    "F8_E5M2": _CODES.view(ml_dtypes.float8_e5m2).astype(np.float32),
    "F8_E8M0": _CODES.view(ml_dtypes.float8_e8m0fnu).astype(np.float32),
}
WEIGHT_TYPES = ("F8_E4M3", "F8_E5M2")
DEFAULT_BLOCK = (128, 128)
# So many codes are read at a time, beside their values.
PIECE_VALUES = 2**20


def scale_names(name: str) -> list[str]:
    """What the scales of the tensor ``name`` may be called."""
    base = name.removesuffix(".weight")
    if base != name:
        return [f"{base}.weight_scale", f"{base}.weight_scale_inv"]
    return [f"{name}_scale", f"{name}_scale_inv", f"{name}_weight_scale"]


@dataclass(frozen=True)
class Fp8Tensor:
    """A tensor of ``WEIGHT_TYPES`` that reads as float32, multiplied by its scales."""

    codes: StoredTensor
    scales: StoredTensor
    block: tuple[int, int]  # rows and columns that share a scale

    @property
    def name(self) -> str:
        return self.codes.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    @property
    def numpy_dtype(self) -> np.dtype:
        return np.dtype(np.float32)

    def read_rows(self, first: int, count: int) -> np.ndarray:
        """Rows ``first`` to ``first + count``, counted through all matrices of a stack, as float32
        (count, columns). NaN where a code or a scale is. Raises ``FormatError`` as files do."""
        n_cols = self.shape[-1]
        values = np.empty((count, n_cols), np.float32)
        step = max(1, PIECE_VALUES // n_cols)
        for start in range(0, count, step):
            piece = values[start : start + step]
            row = first + start
            codes = self.codes.read_bytes(row * n_cols, len(piece) * n_cols)
            scale_rows = self._scale_rows(row, len(piece))
            first_row = int(scale_rows[0])
            scales = self._read_scales(first_row, int(scale_rows[-1]) + 1 - first_row)
            table = _TABLES[self.codes.dtype]
            rows = scale_rows - first_row
            _multiply(codes.reshape(piece.shape), table, scales, rows, self.block[1], piece)
        return values

    def _scale_rows(self, first: int, count: int) -> np.ndarray:
        """The row of the scales that belongs to each row: int64 (count,), ascending."""
        rows = np.arange(first, first + count)
        n_rows = self.shape[-2]
        per_matrix = -(-n_rows // self.block[0])
        matrix = rows // n_rows if self._n_scale_matrices() > 1 else 0
        return matrix * per_matrix + rows % n_rows // self.block[0]

    def _n_scale_matrices(self) -> int:
        return self.scales.shape[0] if len(self.scales.shape) == 3 else 1

    def _read_scales(self, first: int, count: int) -> np.ndarray:
        n_cols = -(-self.shape[-1] // self.block[1])
        if self.scales.dtype == "F8_E8M0":
            codes = self.scales.read_bytes(first * n_cols, count * n_cols)
            values: np.ndarray = _TABLES["F8_E8M0"][codes]
        else:
            values = self.scales.read(first * n_cols, count * n_cols).astype(np.float32)
        scales: np.ndarray = values.reshape(count, n_cols)
        return scales


def scaled(codes: StoredTensor, scales: StoredTensor, block: tuple[int, int]) -> Fp8Tensor:
    """The tensor of ``codes`` with its ``scales``; ``block`` is the size of blocks, if they are.

    Raises ``FormatError`` for scales of a shape that fits in none of the ways above, and
    ``UnsupportedError`` for scales of a type that is not read.
    """
    if scales.dtype != "F8_E8M0":
        _ = scales.numpy_dtype
    shape, given = codes.shape, scales.shape
    if all(n == 1 for n in given):
        return Fp8Tensor(codes, scales, (shape[-2], shape[-1]))
    if len(shape) == 2 and given == shape[:1]:
        return Fp8Tensor(codes, scales, (1, shape[-1]))
    if len(given) == len(shape) and given[:-2] in (shape[:-2], (1,) * len(shape[:-2])):
        if all(n in (1, size) for n, size in zip(given[-2:], shape[-2:], strict=True)):
            rows, columns = (-(-size // n) for n, size in zip(given[-2:], shape[-2:], strict=True))
            return Fp8Tensor(codes, scales, (rows, columns))
        if given[-2:] == tuple(-(-n // b) for n, b in zip(shape[-2:], block, strict=True)):
            return Fp8Tensor(codes, scales, block)
    raise FormatError(
        f"{scales.path}: the scales '{scales.name}' have the shape {list(given)}, which fits no "
        f"way to scale a tensor of {list(shape)}: not as a whole, not by rows, not in blocks of "
        f"{block[0]} x {block[1]}"
    )


@kernel()
def _multiply(codes, table, scales, scale_rows, columns, values):
    """values = table[codes] * scales, ``columns`` of a row at a time by one scale."""
    n_cols = codes.shape[1]
    for row in range(len(codes)):
        scale_row = scale_rows[row]
        if columns == 1:
            for column in range(n_cols):
                values[row, column] = table[codes[row, column]] * scales[scale_row, column]
        else:
            for group in range(scales.shape[1]):
                scale = scales[scale_row, group]
                for column in range(group * columns, min((group + 1) * columns, n_cols)):
                    values[row, column] = table[codes[row, column]] * scale
