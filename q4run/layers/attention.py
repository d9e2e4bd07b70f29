"""Attention: records of addresses over the workspace, run by one compiled function a pass."""

import numpy as np
from gguf import MODEL_TENSOR

from q4run.cache.keys_values import KeysValues
from q4run.cache.state import LayerState
from q4run.errors import UnsupportedError
from q4run.kernels.attention.heads import NO_TEMPERATURES
from q4run.kernels.attention.layer import ATTENTION, attention_layer
from q4run.kernels.threads.pool import Pool
from q4run.layers.materials import Materials
from q4run.layers.rotary import Positions, temperatures
from q4run.layers.workspace import flat_input, if_useful
from q4run.models import parts
from q4run.models.rope import RopeForm
from q4run.timeline import ATTENTION as ATTENTION_SPAN


class Attention:
    """Grouped-query attention over a layer's cache."""

    span = ATTENTION_SPAN

    def __init__(self, part: parts.Attention, i: int, materials: Materials) -> None:
        weights, config, workspace = materials.weights, materials.config, materials.workspace
        if part.qk_norm is parts.QKNorm.WEIGHTED:
            raise UnsupportedError(f"{weights.path}: a q/k norm with weights cannot be run yet")
        if part.rope and part.rope.form is not RopeForm.ADJACENT:
            raise UnsupportedError(
                f"{weights.path}: RoPE on pairs {part.rope.form.value} cannot be run yet"
            )
        tensors = parts.by_kind(part.tensors(config.n_embd, i))
        q = weights.matrix(tensors[MODEL_TENSOR.ATTN_Q])
        k = weights.matrix(tensors[MODEL_TENSOR.ATTN_K])
        v = weights.matrix(tensors[MODEL_TENSOR.ATTN_V])
        output = weights.matrix(tensors[MODEL_TENSOR.ATTN_OUT])
        norm = weights.vector(tensors[MODEL_TENSOR.ATTN_NORM])
        self._alive = (q, k, v, output, norm)  # the record holds their addresses
        buffers = workspace.attention
        normed_int8 = if_useful(buffers.normed_int8, q.fmt, k.fmt, v.fmt)
        normed = flat_input(buffers.normed, normed_int8)
        attended_int8 = if_useful(buffers.attended_int8, output.fmt)
        attended = flat_input(buffers.attended, attended_int8)
        self._record = np.zeros(1, ATTENTION)
        record = self._record[0]
        record["norm"] = norm.ctypes.data
        record["eps"] = config.rms_norm_eps
        record["normed"], record["attended"] = normed, attended
        for field in ("q", "k", "v", "update"):
            record[field] = getattr(buffers, field).ctypes.data
        products = record["products"]
        products["matrix"] = [matrix.record for matrix in (q, k, v, output)]
        products["input"] = [normed, normed, normed, attended]
        products["out"] = [record[field] for field in ("q", "k", "v", "update")]
        heads = record["heads"]
        for field in ("n_head", "n_head_kv", "key_dim", "value_dim"):
            heads[field] = getattr(part, field)
        heads["scale"] = np.float32(part.key_dim) ** np.float32(-0.5)
        heads["qk_norm"] = part.qk_norm is parts.QKNorm.PLAIN
        heads["eps"] = config.rms_norm_eps
        self._part = part

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
