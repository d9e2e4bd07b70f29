"""Attention: records of addresses over the workspace, run by one compiled function a pass."""

import numpy as np
from gguf import MODEL_TENSOR

from q4run.cache.keys_values import KeysValues
from q4run.cache.state import LayerState
from q4run.errors import UnsupportedError
from q4run.kernels.attention.heads import ByPosition, Heads
from q4run.kernels.attention.layer import OUTPUT, AttentionRecord, attention_layer
from q4run.kernels.products.products import PRODUCT
from q4run.kernels.threads.pool import Pool
from q4run.layers.materials import Materials
from q4run.layers.rotary import Positions
from q4run.layers.workspace import flat_input, if_useful
from q4run.models import parts
from q4run.timeline import ATTENTION


class Attention:
    """Grouped-query attention over a layer's cache."""

    span = ATTENTION

    def __init__(self, part: parts.Attention, i: int, materials: Materials) -> None:
        weights, config, workspace = materials.weights, materials.config, materials.workspace
        if part.qk_norm is parts.QKNorm.WEIGHTED:
            raise UnsupportedError(f"{weights.path}: a q/k norm with weights cannot be run yet")
        tensors = parts.by_kind(part.tensors(config.n_embd, i))
        q = weights.matrix(tensors[MODEL_TENSOR.ATTN_Q])
        k = weights.matrix(tensors[MODEL_TENSOR.ATTN_K])
        v = weights.matrix(tensors[MODEL_TENSOR.ATTN_V])
        output = weights.matrix(tensors[MODEL_TENSOR.ATTN_OUT])
        self._matrices = (q, k, v, output)  # the records below hold their addresses
        buffers = workspace.attention._replace(
            normed_int8=if_useful(workspace.attention.normed_int8, q.fmt, k.fmt, v.fmt),
            attended_int8=if_useful(workspace.attention.attended_int8, output.fmt),
        )
        products = np.zeros(OUTPUT + 1, PRODUCT)
        normed = flat_input(buffers.normed, buffers.normed_int8)
        attended = flat_input(buffers.attended, buffers.attended_int8)
        for product, matrix, source, out in zip(
            products,
            self._matrices,
            (normed, normed, normed, attended),
            (buffers.q, buffers.k, buffers.v, buffers.update),
            strict=True,
        ):
            product["matrix"], product["input"] = matrix.record, source
            product["out"] = out.ctypes.data
        eps = np.float32(config.rms_norm_eps)
        norm = weights.vector(tensors[MODEL_TENSOR.ATTN_NORM])
        self._record = AttentionRecord(norm, eps, products, _heads(part, eps), buffers)
        self._part = part

    def __call__(self, pool: Pool, x: np.ndarray, kept: LayerState, positions: Positions) -> None:
        """Adds the attention to the stream x, float32 (n_tokens, n_embd); ``kept``, keys and
        values, takes the tokens."""
        assert isinstance(kept, KeysValues)
        cos, sin = positions.rotation(self._part.rope)
        by_position = ByPosition(cos, sin, self._temperatures(positions.first, len(x)))
        place = kept.place(positions.first)
        attention_layer(pool, x, self._record, by_position, kept.keys, kept.values, place)

    def _temperatures(self, first_position: int, n_tokens: int) -> np.ndarray:
        """What each token's queries are multiplied by; empty where nothing is."""
        temperature = self._part.temperature
        if temperature is None:
            return _NO_TEMPERATURES
        positions = np.arange(first_position, first_position + n_tokens)
        growth = np.log1p((positions + 1) // temperature.length)
        return (1 + temperature.scale * growth).astype(np.float32)


_NO_TEMPERATURES = np.empty(0, np.float32)


def _heads(part: parts.Attention, eps: np.float32) -> Heads:
    return Heads(
        part.n_head,
        part.n_head_kv,
        part.key_dim,
        part.value_dim,
        scale=np.float32(part.key_dim) ** np.float32(-0.5),
        qk_norm=part.qk_norm is parts.QKNorm.PLAIN,
        eps=eps,
    )
