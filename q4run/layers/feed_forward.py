"""The feed-forward of a layer without experts, and the records that describe any feed-forward."""

from collections.abc import Sequence

import numpy as np

from q4run.cache.state import LayerState
from q4run.errors import UnsupportedError
from q4run.experts.layout import ExpertMatrix
from q4run.kernels.dense_layer import dense_layer
from q4run.kernels.feed_forward import FEED_FORWARD
from q4run.kernels.threads.pool import Pool
from q4run.layers.materials import Materials
from q4run.layers.rotary import Positions
from q4run.layers.workspace import Int8Buffers, Workspace, flat_input, if_useful
from q4run.models import parts
from q4run.timeline import FEED_FORWARD as FEED_FORWARD_SPAN
from q4run.weights import Matrix, WeightReader

Matrices = tuple[Matrix, Matrix, Matrix]
ExpertMatrices = tuple[ExpertMatrix, ExpertMatrix, ExpertMatrix]


class DenseFeedForward:
    """The feed-forward of a layer without experts."""

    span = FEED_FORWARD_SPAN

    def __init__(self, part: parts.DenseFeedForward, i: int, materials: Materials) -> None:
        weights, config, w = materials.weights, materials.config, materials.workspace
        if part != parts.DenseFeedForward(part.n_ff):
            raise UnsupportedError(f"{weights.path}: {part} cannot be run yet")
        norm, *matrices = part.tensors(config.n_embd, i)
        self._matrices = load_feed_forward(weights, matrices)
        gate, up, _ = self._matrices
        self._buffers = w.experts._replace(
            normed_int8=if_useful(w.experts.normed_int8, gate.fmt, up.fmt)
        )
        self._job = np.zeros(1, FEED_FORWARD)
        self._job[0] = resident_job(self._matrices, w)
        self._norm = weights.vector(norm)
        self._eps = np.float32(config.rms_norm_eps)

    def __call__(self, pool: Pool, x: np.ndarray, kept: LayerState, positions: Positions) -> None:
        """Adds the feed-forward to the stream x, float32 (n_tokens, n_embd)."""
        dense_layer(pool, x, self._norm, self._eps, self._job, self._buffers)


def load_feed_forward(weights: WeightReader, tensors: Sequence[parts.Tensor]) -> Matrices:
    """Reads gate, up and down of a feed-forward that stays in RAM."""
    gate, up, down = (weights.matrix(tensor) for tensor in tensors)
    return gate, up, down


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
