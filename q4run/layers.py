"""What layers are made of: norms, attention, dense feed-forwards and experts; no family's name."""

from typing import NamedTuple

import numpy as np

from q4run.experts.store import ExpertStore
from q4run.gguf_file import GGUFFile
from q4run.kernels.activations import Int8Activations, quantize_activations
from q4run.kernels.attention import attend
from q4run.kernels.elementwise import (
    add_into,
    add_scaled_rows,
    gather_scaled,
    scale_tokens,
    silu_mul,
)
from q4run.kernels.norm import rms_norm, rms_norm_heads
from q4run.kernels.rope import rotate_adjacent
from q4run.kernels.routing import top_k
from q4run.kv_cache import LayerCache
from q4run.models.config import AttentionConfig, Gating, LayerConfig, ModelConfig, MoeConfig
from q4run.weights import Matrix, load_matrix, load_vector


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


class Norm:
    """RMS normalisation with a weight per channel."""

    def __init__(self, file: GGUFFile, name: str, config: ModelConfig) -> None:
        self._weight = load_vector(file, name, config.n_embd)
        self._eps = np.float32(config.rms_norm_eps)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        out = np.empty_like(x)
        rms_norm(x, self._weight, self._eps, out)
        return out


class Attention:
    """Grouped-query attention over a layer's cache."""

    def __init__(self, file: GGUFFile, i: int, config: ModelConfig, layer: AttentionConfig) -> None:
        q_width = config.n_head * config.head_dim
        kv_width = config.n_head_kv * config.head_dim
        self._q = load_matrix(file, f"blk.{i}.attn_q.weight", q_width, config.n_embd)
        self._k = load_matrix(file, f"blk.{i}.attn_k.weight", kv_width, config.n_embd)
        self._v = load_matrix(file, f"blk.{i}.attn_v.weight", kv_width, config.n_embd)
        self._output = load_matrix(file, f"blk.{i}.attn_output.weight", config.n_embd, q_width)
        self._config = config
        self._layer = layer

    def __call__(self, x: np.ndarray, cache: LayerCache, rotation: Rotation) -> np.ndarray:
        """x: float32 (n_tokens, n_embd), normed -> the same shape; the cache takes the tokens."""
        n_tokens = len(x)
        config, layer = self._config, self._layer
        quantized = quantize_if_useful(x, self._q, self._k, self._v)
        q = self._q(x, quantized).reshape(n_tokens, config.n_head, config.head_dim)
        k = self._k(x, quantized).reshape(n_tokens, config.n_head_kv, config.head_dim)
        v = self._v(x, quantized).reshape(n_tokens, config.n_head_kv, config.head_dim)
        if layer.rope:
            rotate_adjacent(q, rotation.cos, rotation.sin)
            rotate_adjacent(k, rotation.cos, rotation.sin)
        if layer.qk_norm:
            rms_norm_heads(q, np.float32(config.rms_norm_eps))
            rms_norm_heads(k, np.float32(config.rms_norm_eps))
        if layer.temperature:
            positions = np.arange(rotation.first_position, rotation.first_position + n_tokens)
            growth = np.log1p((positions + 1) // layer.temperature.length)
            factors = (1 + layer.temperature.scale * growth).astype(np.float32)
            scale_tokens(q.reshape(n_tokens, -1), factors)
        n_seen = cache.append(k, v, rotation.first_position)
        out = np.empty_like(q)
        scale = np.float32(config.head_dim**-0.5)
        attend(q, cache.keys, cache.values, n_seen, scale, out)
        return self._output(out.reshape(n_tokens, -1))


class FeedForward:
    """SwiGLU: down(silu(gate(x)) * up(x)) (Shazeer, arXiv:2002.05202)."""

    __slots__ = ("_down", "_gate", "_up")

    def __init__(self, gate: Matrix, up: Matrix, down: Matrix) -> None:
        self._gate = gate
        self._up = up
        self._down = down

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """x: float32 (n_tokens, n_embd) -> the same shape."""
        quantized = quantize_if_useful(x, self._gate, self._up)
        return self._down(silu_mul(self._gate(x, quantized), self._up(x, quantized)))


def load_feed_forward(file: GGUFFile, i: int, suffix: str, n_embd: int, n_ff: int) -> FeedForward:
    """A feed-forward that stays in RAM: suffix "" for the dense one, "_shexp" for the shared."""
    return FeedForward(
        load_matrix(file, f"blk.{i}.ffn_gate{suffix}.weight", n_ff, n_embd),
        load_matrix(file, f"blk.{i}.ffn_up{suffix}.weight", n_ff, n_embd),
        load_matrix(file, f"blk.{i}.ffn_down{suffix}.weight", n_embd, n_ff),
    )


class MixtureOfExperts:
    """Routed experts from the store and, where the model has one, a shared expert beside them."""

    def __init__(
        self, file: GGUFFile, i: int, n_embd: int, moe: MoeConfig, store: ExpertStore
    ) -> None:
        self._router = load_matrix(file, f"blk.{i}.ffn_gate_inp.weight", moe.n_expert, n_embd)
        self._shared = (
            load_feed_forward(file, i, "_shexp", n_embd, moe.n_ff_shared)
            if moe.n_ff_shared
            else None
        )
        self._i = i
        self._moe = moe
        self._store = store

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """x: float32 (n_tokens, n_embd) -> the same shape.

        Experts run in the order in which they reach RAM; their outputs are kept apart and added
        in the router's order, so that the sum does not depend on what was in RAM.
        """
        n_tokens, n_embd = x.shape
        chosen, weights = self._route(x)
        input_weights, output_weights = weights, np.ones_like(weights)
        if self._moe.gating is Gating.SOFTMAX:
            input_weights, output_weights = output_weights, input_weights
        outputs = np.empty((n_tokens, self._moe.n_expert_used, n_embd), np.float32)
        output_rows = outputs.reshape(-1, n_embd)
        with self._store.request(self._i, np.unique(chosen).tolist()) as request:
            # The reads are under way: what is in RAM for good is computed meanwhile.
            out = self._shared(x) if self._shared else np.zeros_like(x)
            for expert, (gate, up, down) in request:
                rows = np.flatnonzero(chosen == expert)
                expert_input = np.empty((len(rows), n_embd), np.float32)
                tokens = rows // self._moe.n_expert_used
                gather_scaled(x, tokens, input_weights.ravel()[rows], expert_input)
                output_rows[rows] = FeedForward(gate, up, down)(expert_input)
        add_scaled_rows(out, outputs, output_weights)
        return out

    def _route(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The experts of each token, int64 (n_tokens, k), and their weights, float32 alike."""
        shape = (len(x), self._moe.n_expert_used)
        chosen, logits = np.empty(shape, np.int64), np.empty(shape, np.float32)
        top_k(self._router(x), chosen, logits)
        if self._moe.gating is Gating.SIGMOID_ON_INPUT:
            with np.errstate(over="ignore"):  # to infinity, and the weight to 0
                return chosen, 1 / (1 + np.exp(-logits))
        # Renormalising a softmax over the chosen is the softmax of the chosen.
        weights = np.exp(logits - logits[:, :1])
        return chosen, weights / weights.sum(axis=1, keepdims=True)


class Layer:
    """Attention and feed-forward, each on the normed stream and added back to it."""

    def __init__(
        self, file: GGUFFile, i: int, config: ModelConfig, layer: LayerConfig, store: ExpertStore
    ) -> None:
        self._attention_norm = Norm(file, f"blk.{i}.attn_norm.weight", config)
        self._attention = Attention(file, i, config, layer.attention)
        self._feed_forward_norm = Norm(file, f"blk.{i}.ffn_norm.weight", config)
        self._feed_forward = (
            MixtureOfExperts(file, i, config.n_embd, layer.moe, store)
            if layer.moe
            else load_feed_forward(file, i, "", config.n_embd, layer.n_ff)
        )

    def __call__(self, x: np.ndarray, cache: LayerCache, rotation: Rotation) -> None:
        """Adds the layer's work to the stream x, float32 (n_tokens, n_embd), in place."""
        add_into(x, self._attention(self._attention_norm(x), cache, rotation))
        add_into(x, self._feed_forward(self._feed_forward_norm(x)))


def quantize_if_useful(x: np.ndarray, *matrices: Matrix) -> Int8Activations | None:
    """Activations in int8, once for several matrices; None where none of them takes int8."""
    if any(matrix.fmt.int8_activations for matrix in matrices):
        return quantize_activations(x)
    return None
