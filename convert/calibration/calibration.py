"""Calibrated quantisation: the text runs through the model while its tensors are written.

Tensors come in the file's order. When the first of a layer comes, the text goes through that layer,
and what its matrices multiplied is kept until the next layer's turn; each matrix's hessian is
computed when its rows come. The output matrix comes last, after all layers.
"""

from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from gguf import MODEL_TENSOR

from q4run.convert.calibration.arrays import Arrays
from q4run.convert.calibration.compensation import (
    Inputs,
    can_compensate,
    compensate,
    prepare_inputs,
)
from q4run.convert.calibration.forward import Forward
from q4run.convert.calibration.room import working_bytes
from q4run.convert.calibration.weights import Weights
from q4run.convert.tensors import OutputTensor
from q4run.errors import BudgetError
from q4run.kernels.formats import Format
from q4run.models.config import ModelConfig
from q4run.models.parts import Role
from q4run.sizes import format_size

# An expert's inputs are believed as far as it met tokens: the average over all of its layer's
# experts counts as this share of a token for each column.
_AVERAGE_TOKENS_PER_COLUMN = 0.25
_BATCH = 4096
# Two in float32, and three in float64 while the factor is made.
_BYTES_PER_HESSIAN_VALUE = 2 * 4 + 3 * 8
# Compensating a run of rows takes about so much beyond quantising it plainly.
ROWS_BYTES = 256 * 2**20


@dataclass
class Loss:
    """The squared error of matrices' outputs on the text, beside the outputs' own squares."""

    error: float = 0.0
    output: float = 0.0

    @property
    def relative(self) -> float:
        return self.error / self.output if self.output else 0.0


@dataclass(eq=False)
class _Kept:
    """What the matrices of one name multiplied: rows of ``inputs``, each matrix's together."""

    inputs: np.ndarray
    parts: dict[int, slice] = field(default_factory=dict)
    n_rows: int = 0


class Calibration:
    """Takes the model's matrices in the file's order and gives their quantised rows.

    Not for several threads at once. ``losses`` are by tensor role and type; ``n_unreached`` counts
    the matrices of experts that met no token.
    """

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        windows: np.ndarray,
        out: Path,
    ) -> None:
        """windows: as `Forward` has them; out: beside it lie results that do not fit into RAM."""
        self._config = config
        self._model = (weights, windows)
        self._out = out
        self._forward: Forward | None = None
        self._layer = -1
        self._buffers: dict[MODEL_TENSOR, np.ndarray] = {}
        self._kept: dict[str, _Kept] = {}
        self._average: tuple[_Kept, np.ndarray] | None = None
        self._inputs: tuple[_Kept | None, int, Inputs] | None = None
        self.losses: dict[tuple[Role, str], Loss] = defaultdict(Loss)
        self.n_unreached = 0

    def start(self, room: int) -> None:
        """Makes ready to quantise, within ``room`` bytes of memory; BudgetError if that is less
        than it takes at all."""
        weights, windows = self._model
        least = _least_bytes(self._config, windows.shape[1])
        if room < least:
            raise BudgetError(
                f"calibrating takes {format_size(least - room)} of memory more than there is: raise"
                " --max-ram"
            )
        self._arrays = Arrays(room - least, self._out.absolute().parent)
        self._forward = Forward(self._config, weights, windows, self._arrays)

    def handles(self, tensor: OutputTensor, fmt: Format) -> bool:
        """Whether the rows of a tensor are for `quantize_rows`."""
        roles = (Role.MATRIX, Role.EXPERT, Role.OUTPUT)
        return tensor.role in roles and can_compensate(fmt)

    def quantize_rows(
        self, tensor: OutputTensor, fmt: Format, matrix: int, values: np.ndarray
    ) -> np.ndarray:
        """float32 (n_rows, n_cols), rows of one of the tensor's matrices -> uint8."""
        self._advance_to(tensor.name)
        inputs = self._inputs_of(tensor.name, matrix, tensor.n_cols)
        raw, error = compensate(fmt, values, inputs)
        loss = self.losses[tensor.role, fmt.name]
        loss.error += error
        loss.output += float(np.einsum("ij,ij->", values @ inputs.hessian, values))
        return raw

    def _advance_to(self, name: str) -> None:
        """Runs the layers up to the tensor's own, or all of them for the output matrix."""
        forward, layer = self._forward, self._config.tensors[name].layer
        assert forward is not None, "not started"
        n_layers = len(self._config.layers)
        wanted = n_layers if layer is None else layer
        while self._layer < wanted:
            self._layer += 1
            self._kept.clear()
            self._average = None
            self._inputs = None
            if self._layer < n_layers:
                forward.run_layer(self._layer, self._keep, lambda n_tokens: None)
            else:
                forward.run_head(self._keep)

    def _keep(
        self, names: tuple[str, ...], matrix: int, tokens: np.ndarray, inputs: np.ndarray
    ) -> None:
        if self._config.tensors[names[0]].role is Role.ROUTER:
            return
        if names[0] not in self._kept:
            kept = _Kept(self._buffer(names[0], inputs.shape[1]))
            self._kept |= dict.fromkeys(names, kept)
        kept = self._kept[names[0]]
        start, stop = kept.n_rows, kept.n_rows + len(inputs)
        kept.inputs[start:stop] = inputs
        # All of an expert's tokens come before another's.
        first = kept.parts[matrix].start if matrix in kept.parts else start
        kept.parts[matrix] = slice(first, stop)
        kept.n_rows = stop

    def _buffer(self, name: str, n_cols: int) -> np.ndarray:
        """Room for what a tensor's matrices multiply; the same for all layers."""
        kind = self._config.tensors[name].kind
        n_rows = self._model[1].size
        if self._is_expert(name):
            n_rows *= max(part.n_expert_used for part in self._config.experts.values())
        if kind not in self._buffers:
            self._buffers[kind] = self._arrays.empty(n_rows, n_cols)
        return self._buffers[kind]

    def _is_expert(self, name: str) -> bool:
        return self._config.tensors[name].role is Role.EXPERT

    def _inputs_of(self, name: str, matrix: int, n_cols: int) -> Inputs:
        kept = self._kept.get(name)
        if self._inputs is None or self._inputs[:2] != (kept, matrix):
            self._inputs = None  # let go of the last before the next is made
            self._inputs = kept, matrix, prepare_inputs(self._hessian(kept, name, matrix, n_cols))
        return self._inputs[2]

    def _hessian(self, kept: _Kept | None, name: str, matrix: int, n_cols: int) -> np.ndarray:
        """The mean of x x^T over the matrix's inputs; an expert's with some of the average."""
        if kept is None:  # no token reached any expert of the layer
            self.n_unreached += 1
            return np.eye(n_cols, dtype=np.float32)
        total = np.zeros((n_cols, n_cols), np.float32)
        count = _add_products(total, kept.inputs, kept.parts.get(matrix, slice(0, 0)))
        self.n_unreached += count == 0
        if not self._is_expert(name):
            total /= count
            return total
        if self._average is None or self._average[0] is not kept:
            average = np.zeros((n_cols, n_cols), np.float32)
            average /= _add_products(average, kept.inputs, slice(0, kept.n_rows))
            self._average = kept, average
        weight = _AVERAGE_TOKENS_PER_COLUMN * n_cols
        total += np.float32(weight) * self._average[1]
        total /= np.float32(count + weight)
        return total


def _add_products(total: np.ndarray, inputs: np.ndarray, part: slice) -> int:
    """Adds x x^T of some rows of the inputs to ``total``; returns how many those are."""
    for start in range(part.start, part.stop, _BATCH):
        rows = inputs[start : min(start + _BATCH, part.stop)]
        total += rows.T @ rows
    return int(part.stop - part.start)


def _least_bytes(config: ModelConfig, context: int) -> int:
    """What calibrating takes beside the arrays: half a layer's weights, or one matrix's hessian
    with its factor in both precisions and the average of the experts, and rows at work."""
    n_cols = max(tensor.shape[-1] for tensor in config.tensors.values() if len(tensor.shape) > 1)
    hessians = _BYTES_PER_HESSIAN_VALUE * n_cols**2
    return max(working_bytes(config, context), hessians) + ROWS_BYTES
