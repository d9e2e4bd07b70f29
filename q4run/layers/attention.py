"""Attention: records of addresses over the workspace, run by one compiled function a pass."""

import numpy as np
from gguf import MODEL_TENSOR

from q4run.cache.keys_values import KeysValues
from q4run.cache.state import LayerState
from q4run.kernels.attention.heads import (
    NO_NORM,
    NO_TEMPERATURES,
    PLAIN,
    WEIGHTED,
    WEIGHTED_AFTER_ROPE,
    WHOLE,
)
from q4run.kernels.attention.layer import ATTENTION, attention_layer
from q4run.kernels.attention.rows import NO_WINDOW
from q4run.kernels.threads.pool import Pool
from q4run.layers.materials import Materials
from q4run.layers.rotary import Positions, temperatures
from q4run.layers.workspace import flat_input, if_useful
from q4run.models import parts
from q4run.models.parts import BIAS, WEIGHT
from q4run.models.rope import RopeForm
from q4run.timeline import ATTENTION as ATTENTION_SPAN
from q4run.weights import Matrix, WeightReader


class Attention:
    """Grouped-query attention over a layer's cache."""

    span = ATTENTION_SPAN

    def __init__(self, part: parts.Attention, i: int, materials: Materials) -> None:
        weights, config, buffers = (
            materials.weights,
            materials.config,
            materials.workspace.attention,
        )
        tensors = part.tensors(config.n_embd, i)
        self._part = part
        self._vectors = {
            (t.kind, t.suffix): weights.vector(t) for t in tensors if len(t.shape) == 1
        }
        q, k, v = self._matrices = _read_projections(part, tensors, weights)
        output = weights.matrix(parts.by_kind(tensors)[MODEL_TENSOR.ATTN_OUT])
        self._output = output
        normed_int8 = if_useful(buffers.normed_int8, q.fmt, k.fmt, v.fmt)
        normed = flat_input(buffers.normed, normed_int8)
        attended_int8 = if_useful(buffers.attended_int8, output.fmt)
        attended = flat_input(buffers.attended, attended_int8)
        self._record = np.zeros(1, ATTENTION)
        record = self._record[0]
        record["norm"] = self._address(MODEL_TENSOR.ATTN_NORM)
        record["eps"] = config.rms_norm_eps
        record["normed"], record["attended"] = normed, attended
        for field in ("q", "k", "v", "update"):
            record[field] = getattr(buffers, field).ctypes.data
        products = record["products"]
        products["matrix"] = [matrix.record for matrix in (q, k, v, output)]
        products["input"] = [normed, normed, normed, attended]
        products["out"] = [record[field] for field in ("q", "k", "v", "update")]
        record["sub_norm"] = self._address(MODEL_TENSOR.ATTN_SUB_NORM)
        record["out_bias"] = self._address(MODEL_TENSOR.ATTN_OUT, BIAS)
        record["post_norm"] = self._address(MODEL_TENSOR.ATTN_POST_NORM)
        if part.residual_scale != 1:
            record["residual_scale"] = part.residual_scale
        self._describe_heads(record["heads"], config.rms_norm_eps)

    def _describe_heads(self, heads: np.void, eps: float) -> None:
        part = self._part
        for field in ("n_head", "n_head_kv", "key_dim", "value_dim"):
            heads[field] = getattr(part, field)
        heads["scale"] = part.scale or np.float32(part.key_dim) ** np.float32(-0.5)
        heads["window"] = part.window or NO_WINDOW
        heads["sinks"] = self._address(MODEL_TENSOR.ATTN_SINKS)
        heads["q_bias"], heads["k_bias"], heads["v_bias"] = self._bias_addresses()
        heads["halves"] = part.rope is not None and part.rope.form is RopeForm.NEOX
        heads["norm"], heads["eps"] = _QK_NORMS[part.qk_norm], eps
        heads["q_norm"] = self._address(MODEL_TENSOR.ATTN_Q_NORM)
        heads["k_norm"] = self._address(MODEL_TENSOR.ATTN_K_NORM)

    def _bias_addresses(self) -> list[int]:
        if self._part.fused_qkv:
            first = self._address(MODEL_TENSOR.ATTN_QKV, BIAS)
            begins = (0, self._part.q_width, self._part.q_width + self._part.k_width)
            return [first + 4 * begin if first else 0 for begin in begins]
        kinds = (MODEL_TENSOR.ATTN_Q, MODEL_TENSOR.ATTN_K, MODEL_TENSOR.ATTN_V)
        return [self._address(kind, BIAS) for kind in kinds]

    def _address(self, kind: MODEL_TENSOR, suffix: str = WEIGHT) -> int:
        """Where a vector is in RAM; 0 for one that the layer does not have."""
        vector = self._vectors.get((kind, suffix))
        return 0 if vector is None else vector.ctypes.data

    def __call__(self, pool: Pool, x: np.ndarray, kept: LayerState, positions: Positions) -> None:
        """Adds the attention to the stream x, float32 (n_tokens, n_embd); ``kept``, keys and
        values, takes the tokens."""
        assert isinstance(kept, KeysValues)
        angles = positions.rotation(self._part.rope)
        grown = NO_TEMPERATURES
        if self._part.temperature:
            grown = temperatures(self._part.temperature, positions.first, len(x))
        place = kept.place(positions.first)
        attention_layer(pool, x, self._record, angles, grown, kept.keys, kept.values, place)


_QK_NORMS = {
    parts.QKNorm.NONE: NO_NORM,
    parts.QKNorm.PLAIN: PLAIN,
    parts.QKNorm.WEIGHTED: WEIGHTED,
    parts.QKNorm.WEIGHTED_AFTER_ROPE: WEIGHTED_AFTER_ROPE,
    parts.QKNorm.WHOLE: WHOLE,
}


def _read_projections(
    part: parts.Attention, tensors: list[parts.Tensor], weights: WeightReader
) -> list[Matrix]:
    """The matrices of queries, keys and values, also where the file has them in one."""
    kinds = parts.by_kind(tensors)
    if part.fused_qkv:
        widths = (part.q_width, part.k_width, part.v_width)
        return weights.row_groups(kinds[MODEL_TENSOR.ATTN_QKV], widths)
    separate = (MODEL_TENSOR.ATTN_Q, MODEL_TENSOR.ATTN_K, MODEL_TENSOR.ATTN_V)
    return [weights.matrix(kinds[kind]) for kind in separate]
