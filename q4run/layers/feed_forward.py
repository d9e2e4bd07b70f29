"""The feed-forward of a layer without experts, and the records that describe any feed-forward."""

from collections.abc import Sequence
from itertools import chain

import numpy as np
from gguf import MODEL_TENSOR

from q4run.cache.state import LayerState
from q4run.experts.layout import ExpertMatrix
from q4run.kernels.dense_layer import DENSE, dense_layer
from q4run.kernels.elementwise import CLAMPED_SWIGLU, GELU, RELU_SQUARED, SILU
from q4run.kernels.feed_forward import FEED_FORWARD
from q4run.kernels.threads.pool import Pool
from q4run.layers.materials import Materials
from q4run.layers.rotary import Positions
from q4run.layers.workspace import Int8Buffers, Workspace, flat_input, if_useful
from q4run.models import parts
from q4run.models.parts import Activation, Role
from q4run.timeline import FEED_FORWARD as FEED_FORWARD_SPAN
from q4run.weights import Matrix, WeightReader

Matrices = tuple[Matrix, Matrix, Matrix]
ExpertMatrices = tuple[ExpertMatrix, ExpertMatrix, ExpertMatrix]

ACTIVATIONS = {
    Activation.SILU: SILU,
    Activation.GELU: GELU,
    Activation.RELU_SQUARED: RELU_SQUARED,
    Activation.CLAMPED_SWIGLU: CLAMPED_SWIGLU,
}


class DenseFeedForward:
    """The feed-forward of a layer without experts."""

    span = FEED_FORWARD_SPAN

    def __init__(self, part: parts.DenseFeedForward, i: int, materials: Materials) -> None:
        weights, config, w = materials.weights, materials.config, materials.workspace
        tensors = part.tensors(config.n_embd, i)
        self._vectors = {t.kind: weights.vector(t) for t in tensors if t.role is Role.NORM}
        self._matrices = load_feed_forward(weights, tensors, part.n_ff)
        self._jobs = np.zeros(1, FEED_FORWARD)
        self._jobs[0] = resident_job(self._matrices, w)
        job = self._jobs[0]
        job["activation"] = ACTIVATIONS[part.activation]
        job["sub_norm"] = self._address(MODEL_TENSOR.FFN_SUB_NORM)
        job["eps"] = config.rms_norm_eps
        self._record = np.zeros(1, DENSE)
        record = self._record[0]
        record["norm"] = self._address(part.norm)
        record["eps"] = config.rms_norm_eps
        record["post_norm"] = self._address(MODEL_TENSOR.FFN_POST_NORM)
        if part.residual_scale != 1:
            record["residual_scale"] = part.residual_scale

    def _address(self, kind: MODEL_TENSOR) -> int:
        """Where a norm's weights are in RAM; 0 for a norm that the layer does not have."""
        return self._vectors[kind].ctypes.data if kind in self._vectors else 0

    def __call__(self, pool: Pool, x: np.ndarray, kept: LayerState, positions: Positions) -> None:
        """Adds the feed-forward to the stream x, float32 (n_tokens, n_embd)."""
        dense_layer(pool, x, self._record, self._jobs)


def load_feed_forward(
    weights: WeightReader, tensors: Sequence[parts.Tensor], n_ff: int
) -> Matrices:
    """Reads the matrices among a part's tensors, which stay in RAM: gate, up and down, of which
    gate and up may be one."""
    *first, down = (tensor for tensor in tensors if tensor.role is Role.MATRIX)
    groups = (weights.row_groups(t, [n_ff] * (t.shape[0] // n_ff)) for t in first)
    gate, up = chain.from_iterable(groups)
    return gate, up, weights.matrix(down)


def resident_job(matrices: Matrices, w: Workspace, hidden_begin: int = 0) -> np.void:
    """The ``FEED_FORWARD`` of all tokens, which stays in RAM."""
    source, source_int8 = w.experts.normed, w.experts.normed_int8
    return feed_forward_job(matrices, source, source_int8, w.experts.update, w, hidden_begin)


def feed_forward_job(
    matrices: Matrices | ExpertMatrices,
    source: np.ndarray,
    source_int8: Int8Buffers,
    out: np.ndarray,
    w: Workspace,
    hidden_begin: int = 0,
) -> np.void:
    """The ``FEED_FORWARD`` from ``source`` to ``out``; its hidden values begin at
    ``hidden_begin``."""
    gate, up, down = matrices
    job: np.void = np.zeros(1, FEED_FORWARD)[0]
    job["gate"], job["up"], job["down"] = gate.record, up.record, down.record
    job["input"] = flat_input(source, if_useful(source_int8, gate.fmt, up.fmt))
    hidden_int8 = if_useful(w.experts.hidden_int8, down.fmt)
    job["hidden"] = flat_input(w.experts.hidden, hidden_int8, hidden_begin)
    job["up_out"] = w.experts.up[hidden_begin:].ctypes.data
    job["out"] = out.ctypes.data
    return job
