"""Where the experts lie on disk, and how one expert's three matrices lie in a slot of RAM."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import MODEL_TENSOR

from q4run.errors import UnsupportedError
from q4run.gguf_file import GGUFFile, TensorInfo
from q4run.kernels.formats import Format
from q4run.kernels.products.products import matrix_record
from q4run.kernels.products.strips import padded_rows
from q4run.models.config import ModelConfig
from q4run.models.parts import Experts, Role
from q4run.weights import checked_tensor, format_of

_ALIGNMENT = 64  # of a matrix in a slot: whole cache lines


@dataclass(frozen=True)
class ExpertMatrix:
    """Gate, up or down of a layer's experts. That of expert e is at
    ``offset + e * n_beside * n_bytes`` of ``path``, or, where each is a tensor of its own, at the
    place ``apart[e]``."""

    path: Path
    fmt: Format
    n_expert: int
    n_rows: int
    n_cols: int
    offset: int
    slot_offset: int  # where the interleaved matrix begins in a slot
    apart: tuple[tuple[Path, int], ...] = ()
    n_beside: int = 1  # matrices of this size that an expert has in the stack, gate beside up

    @property
    def row_bytes(self) -> int:
        return self.fmt.row_bytes(self.n_cols)

    @property
    def n_bytes(self) -> int:
        """An expert's share of the file."""
        return self.n_rows * self.row_bytes

    @property
    def slot_bytes(self) -> int:
        """An expert's share of its slot."""
        n_bytes = padded_rows(self.n_rows) * self.fmt.in_ram.row_bytes(self.n_cols)
        return -(-n_bytes // _ALIGNMENT) * _ALIGNMENT

    @property
    def record(self) -> np.void:
        """The ``MATRIX`` of an expert in a slot that begins at address 0."""
        return matrix_record(self.fmt.in_ram, self.slot_offset, self.n_rows, self.n_cols)

    def place(self, expert: int) -> tuple[Path, int]:
        """The file that holds an expert's matrix, and its offset there."""
        if self.apart:
            return self.apart[expert]
        return self.path, self.offset + expert * self.n_beside * self.n_bytes


@dataclass(frozen=True)
class ExpertLayout:
    """All layers with experts: gate, up and down matrices, and the slot that fits any expert."""

    layers: Mapping[int, tuple[ExpertMatrix, ExpertMatrix, ExpertMatrix]]
    slot_bytes: int
    n_expert: int  # of the layer that has most
    n_experts: int  # over all layers
    n_bytes: int  # of all experts


def read_layout(file: GGUFFile, config: ModelConfig) -> ExpertLayout:
    """Finds every expert; FormatError where a tensor's shape is not what the model says."""
    layers = {}
    slot_bytes = n_expert = n_experts = n_bytes = 0
    for i, experts in config.experts.items():
        matrices, needed = _layer_matrices(file, experts, config.n_embd, i)
        layers[i] = matrices
        slot_bytes = max(slot_bytes, needed)
        n_expert = max(n_expert, experts.n_expert)
        n_experts += experts.n_expert
        n_bytes += experts.n_expert * sum(matrix.n_bytes for matrix in matrices)
    return ExpertLayout(layers, slot_bytes, n_expert, n_experts, n_bytes)


def _layer_matrices(
    file: GGUFFile, experts: Experts, n_embd: int, i: int
) -> tuple[tuple[ExpertMatrix, ExpertMatrix, ExpertMatrix], int]:
    """A layer's matrices and the bytes of slot they take."""
    matrices: list[ExpertMatrix] = []
    for declared in experts.tensors(n_embd, i):
        if declared.role is Role.EXPERT:
            n_parts = 2 if declared.kind is MODEL_TENSOR.FFN_GATE_UP_EXP else 1
            tensor = checked_tensor(file, declared)
            matrices += _stack_matrices(tensor, n_parts, sum(m.slot_bytes for m in matrices))
    gate, up, down = matrices
    return (gate, up, down), sum(matrix.slot_bytes for matrix in matrices)


def _stack_matrices(tensor: TensorInfo, n_parts: int, slot_offset: int) -> list[ExpertMatrix]:
    """The matrices of a stack, each expert's rows being those of ``n_parts`` matrices."""
    fmt = _common_format(tensor)
    n_expert, n_rows, n_cols = tensor.shape
    n_rows //= n_parts
    n_bytes = n_rows * fmt.row_bytes(n_cols)
    matrices: list[ExpertMatrix] = []
    for part in range(n_parts):
        begin = part * n_bytes
        matrix = ExpertMatrix(
            tensor.path,
            fmt,
            n_expert,
            n_rows,
            n_cols,
            tensor.offset + begin,
            slot_offset,
            tuple((expert.path, expert.offset + begin) for expert in tensor.parts),
            n_parts,
        )
        matrices.append(matrix)
        slot_offset += matrix.slot_bytes
    return matrices


def _common_format(tensor: TensorInfo) -> Format:
    """The type of all experts of a stack, as kernels take them."""
    types = {part.type.name.lower() for part in tensor.stored}
    if len(types) > 1:
        raise UnsupportedError(
            f"{tensor.path}: the experts of {tensor.name} have different types"
            f" ({', '.join(sorted(types))}); `q4run convert` makes a file in which they have one"
        )
    return format_of(tensor)
