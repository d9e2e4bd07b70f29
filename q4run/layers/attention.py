"""Attention: records of addresses over the workspace, run by one compiled function a pass."""

import numpy as np
from gguf import MODEL_TENSOR

from q4run.cache.keys_values import LayerCache
from q4run.kernels.attention.layer import OUTPUT, attention_layer
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
        self._products = np.zeros(OUTPUT + 1, PRODUCT)
        normed = flat_input(buffers.normed, buffers.normed_int8)
        attended = flat_input(buffers.attended, buffers.attended_int8)
        for product, matrix, source, out in zip(
            self._products,
            self._matrices,
            (normed, normed, normed, attended),
            (buffers.q, buffers.k, buffers.v, buffers.update),
            strict=True,
        ):
            product["matrix"], product["input"] = matrix.record, source
            product["out"] = out.ctypes.data
        self._buffers = buffers
        self._norm = weights.vector(tensors[MODEL_TENSOR.ATTN_NORM])
        self._eps = np.float32(config.rms_norm_eps)
        self._heads = (part.n_head, part.n_head_kv, part.key_dim)
        self._part = part

    def __call__(self, pool: Pool, x: np.ndarray, kept: LayerCache, positions: Positions) -> None:
        """Adds the attention to the stream x, float32 (n_tokens, n_embd); the cache takes the
        tokens."""
        attention_layer(
            pool,
            x,
            self._norm,
            self._eps,
            self._products,
            self._heads,
            self._part.qk_norm is parts.QKNorm.PLAIN,
            positions.rotation(self._part.rope),
            self._temperatures(positions.first, len(x)),
            kept.keys,
            kept.values,
            kept.place(positions.first),
            self._buffers,
        )

    def _temperatures(self, first_position: int, n_tokens: int) -> np.ndarray:
        """What each token's queries are multiplied by; empty where nothing is."""
        temperature = self._part.temperature
        if temperature is None:
            return _NO_TEMPERATURES
        positions = np.arange(first_position, first_position + n_tokens)
        growth = np.log1p((positions + 1) // temperature.length)
        return (1 + temperature.scale * growth).astype(np.float32)


_NO_TEMPERATURES = np.empty(0, np.float32)
