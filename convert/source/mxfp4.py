"""Weights stored as MXFP4: 32 four-bit floats and a power of two, kept as GGUF has them.

Two forms of a matrix NAME (outputs, inputs), both with the first value of each pair in the lower
half of its byte, and a scale byte e for 2 ** (e - 127), 255 being no number:

- gpt-oss: ``STACK_blocks``, uint8 (experts, outputs, inputs / 32, 16), and ``STACK_scales``,
  uint8 (experts, outputs, inputs / 32);
- compressed-tensors (``mxfp4-pack-quantized``): ``NAME.weight_packed``, uint8 (outputs,
  inputs / 2), and ``NAME.weight_scale``, uint8 (outputs, inputs / 32).

GGUF's block is the scale byte and 16 bytes of which the lower halves are the first 16 values and
the upper halves the others: the same numbers in another order, so that nothing is lost.
"""

import math
from dataclasses import dataclass

import numpy as np

from q4run.convert.blocks import Blocks
from q4run.convert.source.safetensors_file import StoredTensor
from q4run.errors import FormatError
from q4run.kernels.formats.mxfp4 import FORMAT

NO_NUMBER = 255


def names(name: str) -> list[tuple[str, str]]:
    """What the packed values and the scales of the tensor ``name`` may be called."""
    base = name.removesuffix(".weight")
    if base != name:
        return [(f"{base}.weight_packed", f"{base}.weight_scale")]
    return [(f"{name}_blocks", f"{name}_scales")]


@dataclass(frozen=True)
class Mxfp4Tensor:
    """A tensor that reads as GGUF's MXFP4 blocks."""

    name: str
    packed: StoredTensor
    scales: StoredTensor

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.scales.shape[:-1], 32 * self.scales.shape[-1])

    def read_rows(self, first: int, count: int) -> Blocks:
        """Rows ``first`` to ``first + count``, counted through all matrices of a stack.

        Raises ``FormatError`` for a scale that is no number, and as files do.
        """
        per_row = self.scales.shape[-1]
        n_blocks = count * per_row
        scales = self.scales.read_bytes(first * per_row, n_blocks)
        if (scales == NO_NUMBER).any():
            raise FormatError(
                f"{self.scales.path}: '{self.scales.name}' has a scale that is no number: the "
                "checkpoint is damaged"
            )
        packed = self.packed.read_bytes(first * per_row * 16, n_blocks * 16).reshape(n_blocks, 16)
        # Byte k holds values 2 k and 2 k + 1; GGUF's byte j holds values j and j + 16.
        first_half, second_half = packed[:, :8], packed[:, 8:]
        blocks = np.empty((n_blocks, 17), np.uint8)
        blocks[:, 0] = scales
        blocks[:, 1::2] = (first_half & 15) | (second_half << 4)
        blocks[:, 2::2] = (first_half >> 4) | (second_half & 0xF0)
        return Blocks(blocks.reshape(count, per_row * 17), FORMAT)


def paired(name: str, packed: StoredTensor, scales: StoredTensor) -> Mxfp4Tensor:
    """The tensor ``name`` of both; ``FormatError`` unless they are bytes of fitting shapes."""
    for tensor in (packed, scales):
        if tensor.dtype not in ("U8", "F8_E8M0"):
            raise FormatError(
                f"{tensor.path}: tensor '{tensor.name}' is stored as {tensor.dtype}, but MXFP4 "
                "has bytes (U8)"
            )
    given = packed.shape[: len(scales.shape) - 1]
    if (
        not scales.shape
        or given != scales.shape[:-1]
        or (math.prod(packed.shape) != 16 * math.prod(scales.shape))
    ):
        raise FormatError(
            f"{packed.path}: tensor '{packed.name}' has the shape {list(packed.shape)}, which does "
            f"not fit its scales' {list(scales.shape)}: MXFP4 has 16 bytes and one scale a block"
        )
    return Mxfp4Tensor(name, packed, scales)
