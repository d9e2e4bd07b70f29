"""Layers: attention and a feed-forward, dense or of experts; and the head. No family's name.

Each part is prepared once, as records of addresses over the workspace, and then run by one or a few
compiled functions a pass.
"""

from typing import NamedTuple

import numpy as np

from q4run.cache.keys_values import LayerCache
from q4run.experts.store import ExpertStore
from q4run.feed_forward import DenseFeedForward
from q4run.kernels.attention.layer import OUTPUT, attention_layer
from q4run.kernels.head import output_head
from q4run.kernels.products.products import PRODUCT
from q4run.kernels.threads.pool import Pool
from q4run.mixture_of_experts import MixtureOfExperts
from q4run.models.config import AttentionConfig, LayerConfig, ModelConfig
from q4run.timeline import ATTENTION, EXPERTS, FEED_FORWARD, Timeline
from q4run.weights import WeightReader
from q4run.workspace import Workspace, flat_input, if_useful


class Rotation(NamedTuple):
    """The positions of a pass: cos and sin of each RoPE angle, float32 (n_tokens, rope_dim / 2)."""

    first_position: int
    cos: np.ndarray
    sin: np.ndarray


class RotaryEmbedding:
    """RoPE angles: position / theta^(2i / rope_dim), divided by the file's factor for each i."""

    def __init__(self, config: ModelConfig, factors: np.ndarray | None) -> None:
        exponents = np.arange(0, config.rope_dim, 2, dtype=np.float64) / config.rope_dim
        self._frequencies = config.rope_theta**-exponents
        if factors is not None:
            self._frequencies /= factors

    def __call__(self, first_position: int, n_tokens: int) -> Rotation:
        positions = np.arange(first_position, first_position + n_tokens, dtype=np.float64)
        angles = np.outer(positions, self._frequencies)
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        return Rotation(first_position, cos, sin)


class Attention:
    """Grouped-query attention over a layer's cache."""

    def __init__(
        self,
        weights: WeightReader,
        i: int,
        config: ModelConfig,
        layer: AttentionConfig,
        workspace: Workspace,
    ) -> None:
        q_width = config.n_head * config.head_dim
        kv_width = config.n_head_kv * config.head_dim
        q = weights.matrix(f"blk.{i}.attn_q.weight", q_width, config.n_embd)
        k = weights.matrix(f"blk.{i}.attn_k.weight", kv_width, config.n_embd)
        v = weights.matrix(f"blk.{i}.attn_v.weight", kv_width, config.n_embd)
        output = weights.matrix(f"blk.{i}.attn_output.weight", config.n_embd, q_width)
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
        self._norm = weights.vector(f"blk.{i}.attn_norm.weight", config.n_embd)
        self._eps = np.float32(config.rms_norm_eps)
        self._heads = (config.n_head, config.n_head_kv, config.head_dim)
        self._layer = layer

    def __call__(self, pool: Pool, x: np.ndarray, cache: LayerCache, rotation: Rotation) -> None:
        """Adds the attention to the stream x, float32 (n_tokens, n_embd); the cache takes the
        tokens."""
        attention_layer(
            pool,
            x,
            self._norm,
            self._eps,
            self._products,
            self._heads,
            self._layer.qk_norm,
            (rotation.cos, rotation.sin) if self._layer.rope else _NO_ROTATION,
            self._temperatures(rotation.first_position, len(x)),
            cache.keys,
            cache.values,
            cache.place(rotation.first_position),
            self._buffers,
        )

    def _temperatures(self, first_position: int, n_tokens: int) -> np.ndarray:
        """What each token's queries are multiplied by; empty where nothing is."""
        temperature = self._layer.temperature
        if temperature is None:
            return _NO_TEMPERATURES
        positions = np.arange(first_position, first_position + n_tokens)
        growth = np.log1p((positions + 1) // temperature.length)
        return (1 + temperature.scale * growth).astype(np.float32)


_NO_ROTATION = (np.empty((1, 0), np.float32),) * 2
_NO_TEMPERATURES = np.empty(0, np.float32)


class Layer:
    """Attention and feed-forward, each on the normed stream and added back to it."""

    def __init__(
        self,
        weights: WeightReader,
        i: int,
        config: ModelConfig,
        layer: LayerConfig,
        store: ExpertStore,
        workspace: Workspace,
    ) -> None:
        self._i = i
        self._kind = EXPERTS if layer.moe else FEED_FORWARD
        self._attention = Attention(weights, i, config, layer.attention, workspace)
        self.feed_forward = (
            MixtureOfExperts(weights, i, config, layer.moe, store, workspace)
            if layer.moe
            else DenseFeedForward(weights, i, config, layer.n_ff, workspace)
        )

    def __call__(
        self,
        pool: Pool,
        x: np.ndarray,
        cache: LayerCache,
        rotation: Rotation,
        timeline: Timeline | None = None,
    ) -> None:
        """Adds the layer's work to the stream x, float32 (n_tokens, n_embd), in place."""
        self._attention(pool, x, cache, rotation)
        if timeline:
            timeline.lap(ATTENTION, self._i)
        self.feed_forward(pool, x)
        if timeline:
            timeline.lap(self._kind, self._i)


class Head:
    """The last norm, and logits over the vocabulary."""

    def __init__(self, weights: WeightReader, config: ModelConfig, w: Workspace) -> None:
        name = "token_embd.weight" if config.tied_embeddings else "output.weight"
        self._matrix = weights.matrix(name, config.n_vocab, config.n_embd)
        self._normed = w.experts.normed
        self._normed_int8 = if_useful(w.experts.normed_int8, self._matrix.fmt)
        self._product = np.zeros(1, PRODUCT)
        self._product[0]["matrix"] = self._matrix.record
        self._product[0]["input"] = flat_input(self._normed, self._normed_int8)
        self._norm = weights.vector("output_norm.weight", config.n_embd)
        self._eps = np.float32(config.rms_norm_eps)

    def __call__(self, pool: Pool, x: np.ndarray, logits: np.ndarray) -> None:
        """Fills logits, float32 (n_tokens, n_vocab), from x, float32 (n_tokens, n_embd)."""
        output_head(
            pool, x, self._norm, self._eps, self._product, self._normed, self._normed_int8, logits
        )
