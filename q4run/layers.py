"""What layers are made of: attention, dense feed-forwards and experts; no family's name.

Each part is prepared once, as records of addresses over the workspace, and then run by one or a few
compiled functions a pass.
"""

from typing import NamedTuple

import numpy as np

from q4run.experts.layout import ExpertMatrix
from q4run.experts.store import ExpertStore
from q4run.kernels.activations import GROUP, Int8Activations
from q4run.kernels.attention_layer import OUTPUT, attention_layer
from q4run.kernels.dense_layer import dense_layer
from q4run.kernels.experts import combine, moe_layer, route, run_experts
from q4run.kernels.feed_forward import FEED_FORWARD
from q4run.kernels.formats import Format
from q4run.kernels.head import output_head
from q4run.kernels.products import PRODUCT, input_record
from q4run.kernels.threads.pool import Pool
from q4run.kv_cache import LayerCache
from q4run.models.config import AttentionConfig, Gating, LayerConfig, ModelConfig, MoeConfig
from q4run.weights import Matrix, WeightReader
from q4run.workspace import NO_INT8, Int8Buffers, Workspace, shared_begin

# The share of a layer's experts that may be read ahead in vain.
_FEW = 0.05


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
            normed_int8=_if_useful(workspace.attention.normed_int8, q.fmt, k.fmt, v.fmt),
            attended_int8=_if_useful(workspace.attention.attended_int8, output.fmt),
        )
        self._products = np.zeros(OUTPUT + 1, PRODUCT)
        normed = _flat_input(buffers.normed, buffers.normed_int8)
        attended = _flat_input(buffers.attended, buffers.attended_int8)
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


class DenseFeedForward:
    """The feed-forward of a layer without experts."""

    def __init__(
        self, weights: WeightReader, i: int, config: ModelConfig, n_ff: int, w: Workspace
    ) -> None:
        self._matrices = load_feed_forward(weights, i, "", config.n_embd, n_ff)
        gate, up, _ = self._matrices
        self._buffers = w.experts._replace(
            normed_int8=_if_useful(w.experts.normed_int8, gate.fmt, up.fmt)
        )
        self._job = np.zeros(1, FEED_FORWARD)
        self._job[0] = _resident_job(self._matrices, w)
        self._norm = weights.vector(f"blk.{i}.ffn_norm.weight", config.n_embd)
        self._eps = np.float32(config.rms_norm_eps)

    def __call__(self, pool: Pool, x: np.ndarray) -> None:
        """Adds the feed-forward to the stream x, float32 (n_tokens, n_embd)."""
        dense_layer(pool, x, self._norm, self._eps, self._job, self._buffers)


class MixtureOfExperts:
    """Routed experts from the store and, where the model has one, a shared expert beside them."""

    def __init__(
        self,
        weights: WeightReader,
        i: int,
        config: ModelConfig,
        moe: MoeConfig,
        store: ExpertStore,
        w: Workspace,
    ) -> None:
        n_embd = config.n_embd
        self._i = i
        self._moe = moe
        self._softmax = moe.gating is Gating.SOFTMAX
        self._store = store
        self._addresses = store.addresses(i)
        self._router = weights.matrix(f"blk.{i}.ffn_gate_inp.weight", moe.n_expert, n_embd)
        self._shared = np.zeros(1 if moe.n_ff_shared else 0, FEED_FORWARD)
        formats = [self._router.fmt]
        if moe.n_ff_shared:
            begin = shared_begin(moe, w.n_batch)
            self._shared_matrices = load_feed_forward(weights, i, "_shexp", n_embd, moe.n_ff_shared)
            self._shared[0] = _resident_job(self._shared_matrices, w, begin)
            formats += [matrix.fmt for matrix in self._shared_matrices[:2]]
        experts = store.layout.layers[i]
        # Of an expert whose rows and address are still to be told.
        self._template = np.zeros(1, FEED_FORWARD)
        self._template[0] = _feed_forward_job(
            experts, w.experts.input, w.experts.input_int8, w.experts.output, w
        )
        self._buffers = w.experts._replace(
            normed_int8=_if_useful(w.experts.normed_int8, *formats),
            input_int8=_if_useful(w.experts.input_int8, *(m.fmt for m in experts[:2])),
        )
        self._router_product = np.zeros(1, PRODUCT)
        self._router_product[0]["matrix"] = self._router.record
        self._router_product[0]["input"] = _flat_input(w.experts.normed, w.experts.normed_int8)
        self._router_product[0]["out"] = w.routing.logits.ctypes.data
        self._routing = w.routing
        self._jobs = np.zeros(moe.n_expert + 1, FEED_FORWARD)
        self._norm = weights.vector(f"blk.{i}.ffn_norm.weight", n_embd)
        self._eps = np.float32(config.rms_norm_eps)

    def __call__(self, pool: Pool, x: np.ndarray) -> None:
        """Adds the experts to the stream x, float32 (n_tokens, n_embd).

        Experts run in the order in which they reach RAM; their outputs are kept apart and added
        in the router's order, so that the sum does not depend on what was in RAM.
        """
        moe, routing = self._moe, self._routing
        arguments = (
            pool, x, self._norm, self._eps, self._router_product, moe.n_expert, moe.n_expert_used,
            self._softmax,
        )  # fmt: skip
        in_wave = self._wants_nearly_all(len(x)) and not self._store.holds_all
        if in_wave:
            n_experts, is_done = route(*arguments, routing, self._buffers), False
        else:
            n_experts, is_done = moe_layer(
                *arguments, self._template, self._shared, self._addresses, self._jobs, routing,
                self._buffers,
            )  # fmt: skip
        chosen = routing.experts[:n_experts].tolist()
        if is_done:
            self._store.use(self._i, chosen)
        else:
            self._run_as_they_arrive(pool, x, chosen, in_wave)

    def _wants_nearly_all(self, n_tokens: int) -> bool:
        """Whether a batch is so long that few experts, if any, will not be chosen."""
        n_choices = n_tokens * self._moe.n_expert_used
        return (1 - 1 / self._moe.n_expert) ** n_choices < _FEW

    def _run_as_they_arrive(
        self, pool: Pool, x: np.ndarray, chosen: list[int], in_wave: bool
    ) -> None:
        moe, routing = self._moe, self._routing
        place_of = {expert: place for place, expert in enumerate(chosen)}
        shared = self._shared
        if in_wave:
            self._store.expect_layers_after(self._i)
        with self._store.request(self._i, chosen) as request:
            # The reads are under way: what is in RAM is computed meanwhile.
            for ready in request:
                places = np.array([place_of[expert] for expert in ready], np.int64)
                run_experts(
                    pool, len(x), self._template, shared, places, self._addresses, routing,
                    self._jobs,
                )  # fmt: skip
                shared = self._shared[:0]
        has_shared = len(self._shared) > 0
        combine(pool, x, moe.n_expert_used, self._softmax, has_shared, routing, self._buffers)


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
        self._attention = Attention(weights, i, config, layer.attention, workspace)
        self._feed_forward = (
            MixtureOfExperts(weights, i, config, layer.moe, store, workspace)
            if layer.moe
            else DenseFeedForward(weights, i, config, layer.n_ff, workspace)
        )

    def __call__(self, pool: Pool, x: np.ndarray, cache: LayerCache, rotation: Rotation) -> None:
        """Adds the layer's work to the stream x, float32 (n_tokens, n_embd), in place."""
        self._attention(pool, x, cache, rotation)
        self._feed_forward(pool, x)


class Head:
    """The last norm, and logits over the vocabulary."""

    def __init__(self, weights: WeightReader, config: ModelConfig, w: Workspace) -> None:
        name = "token_embd.weight" if config.tied_embeddings else "output.weight"
        self._matrix = weights.matrix(name, config.n_vocab, config.n_embd)
        self._normed = w.experts.normed
        self._normed_int8 = _if_useful(w.experts.normed_int8, self._matrix.fmt)
        self._product = np.zeros(1, PRODUCT)
        self._product[0]["matrix"] = self._matrix.record
        self._product[0]["input"] = _flat_input(self._normed, self._normed_int8)
        self._norm = weights.vector("output_norm.weight", config.n_embd)
        self._eps = np.float32(config.rms_norm_eps)

    def __call__(self, pool: Pool, x: np.ndarray, logits: np.ndarray) -> None:
        """Fills logits, float32 (n_tokens, n_vocab), from x, float32 (n_tokens, n_embd)."""
        output_head(
            pool, x, self._norm, self._eps, self._product, self._normed, self._normed_int8, logits
        )


Matrices = tuple[Matrix, Matrix, Matrix]
ExpertMatrices = tuple[ExpertMatrix, ExpertMatrix, ExpertMatrix]


def load_feed_forward(
    weights: WeightReader, i: int, suffix: str, n_embd: int, n_ff: int
) -> Matrices:
    """Gate, up and down that stay in RAM: suffix "" of the dense one, "_shexp" of the shared."""
    return (
        weights.matrix(f"blk.{i}.ffn_gate{suffix}.weight", n_ff, n_embd),
        weights.matrix(f"blk.{i}.ffn_up{suffix}.weight", n_ff, n_embd),
        weights.matrix(f"blk.{i}.ffn_down{suffix}.weight", n_embd, n_ff),
    )


def _resident_job(matrices: Matrices, w: Workspace, hidden_begin: int = 0) -> np.void:
    """The ``FEED_FORWARD`` of all tokens, which stays in RAM."""
    source, source_int8 = w.experts.normed, w.experts.normed_int8
    return _feed_forward_job(matrices, source, source_int8, w.experts.update, w, hidden_begin)


def _feed_forward_job(
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
    job = np.zeros(1, FEED_FORWARD)[0]
    job["gate"], job["up"], job["down"] = gate.record, up.record, down.record
    job["input"] = _flat_input(source, _if_useful(source_int8, gate.fmt, up.fmt))
    hidden_int8 = _if_useful(w.experts.hidden_int8, down.fmt)
    job["hidden"] = _flat_input(w.experts.hidden, hidden_int8, hidden_begin)
    job["up_out"] = w.experts.up[hidden_begin:].ctypes.data
    job["out"] = out.ctypes.data
    return job


def _flat_input(x: np.ndarray, int8: Int8Buffers, begin: int = 0) -> np.void:
    """The ``INPUT`` of flat buffers from value ``begin`` on, a whole group; each pass tells how
    many tokens there are."""
    q, scales, sums = int8
    group = begin // GROUP
    rest = Int8Activations(q[begin:], scales[group:], sums[2 * group :]) if len(q) else None
    return input_record(x[begin:], rest)


def _if_useful(int8: Int8Buffers, *formats: Format) -> Int8Buffers:
    """The buffers, or none where no format takes its activations in int8."""
    return int8 if any(fmt.int8_activations for fmt in formats) else NO_INT8
