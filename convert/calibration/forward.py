"""A model's forward pass over many windows at once, layer by layer, in float32 numpy.

All windows go through a layer before the next layer's weights are read, so that every weight is
read once however long the text is. What a layer does is what its configuration declares, as in
``q4run/layers``; no family's name occurs. An observer hears what each matrix multiplies.
"""

from collections.abc import Callable

import numpy as np

from q4run.convert.calibration.arrays import Arrays
from q4run.convert.calibration.attention import N_QUERIES, attend, rms_norm
from q4run.convert.calibration.weights import Weights
from q4run.errors import Error, FormatError
from q4run.layers.rotary import RotaryEmbedding
from q4run.models.config import Gating, ModelConfig, MoeConfig

# Hears (tensors, matrix, tokens, inputs): the matrices of that index of the named tensors multiply
# ``inputs``, float32 (len(tokens), n_cols), which is only valid during the call; ``tokens``: their
# places among all tokens, int64 (or a range).
Observer = Callable[[tuple[str, ...], int, np.ndarray, np.ndarray], None]
# Called with how many tokens went through half a layer.
Tick = Callable[[int], None]

N_BATCH = 512
# Reading a matrix takes its stored form as well, and a band of it on its way to float32.
_READ_BYTES = 64 * 2**20


def working_bytes(config: ModelConfig, context: int) -> int:
    """What a pass takes beside the residual stream: the weights of half a layer, and its scratch
    for one window or batch."""
    q_width, kv_width = (n * config.head_dim for n in (config.n_head, config.n_head_kv))
    attention = 2 * config.n_embd * (q_width + kv_width)
    scores = config.n_head // config.n_head_kv * N_QUERIES * context
    attention += context * (4 * config.n_embd + 5 * (q_width + kv_width)) + 2 * scores
    n_ff = max(
        max(layer.n_ff, *((layer.moe.n_ff, layer.moe.n_ff_shared) if layer.moe else (0,)))
        for layer in config.layers
    )
    feed_forward = 3 * config.n_embd * n_ff + N_BATCH * (4 * config.n_embd + 4 * n_ff)
    return 4 * max(attention, feed_forward) + _READ_BYTES


class Forward:
    """The residual stream of all windows; `run_layer` takes it on by one layer."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
        has_rope_factors: bool,
        windows: np.ndarray,
        arrays: Arrays,
    ) -> None:
        """windows: int32 (n_windows, context), each a sequence of its own from position 0.

        Raises ``FormatError`` for a token outside the vocabulary.
        """
        self._config = config
        self._weights = weights
        self._windows = windows
        self.n_tokens = windows.size
        if windows.max() >= config.n_vocab:
            raise FormatError(
                f"token {windows.max()} of the text is not in the model's vocabulary of"
                f" {config.n_vocab}: the tokenizer is another model's"
            )
        self._stream = arrays.empty(windows.size, config.n_embd)
        self._update = arrays.empty(windows.size, config.n_embd)
        factors = None
        if has_rope_factors:
            factors = self._vector("rope_freqs", config.rope_dim // 2).astype(np.float64)
        self._rotation = RotaryEmbedding(config, factors)(0, windows.shape[1])[1:]
        self._embed()

    def run_layer(self, i: int, observe: Observer, tick: Tick) -> None:
        """Takes all tokens through layer ``i``; layers come in order, each once."""
        self._attention(i, observe, tick)
        layer = self._config.layers[i]
        if layer.moe is None:
            self._dense_feed_forward(i, observe, tick)
        else:
            self._experts(i, layer.moe, observe, tick)
        if not np.isfinite(self._stream[-1]).all():
            raise Error(f"layer {i} gave values that are not finite numbers: the model is damaged")

    def run_head(self, observe: Observer) -> None:
        """What the output matrix multiplies, after the last layer."""
        norm = self._vector("output_norm", self._config.n_embd)
        for tokens in _batches(np.arange(self.n_tokens)):
            observe(("output.weight",), 0, tokens, self._normed(tokens, norm))

    def logits(self, window: int) -> np.ndarray:
        """float32 (context, n_vocab): the model's output for one window, after the last layer."""
        config = self._config
        name = "token_embd.weight" if config.tied_embeddings else "output.weight"
        context = self._windows.shape[1]
        tokens = np.arange(window * context, (window + 1) * context)
        normed = self._normed(tokens, self._vector("output_norm", config.n_embd))
        logits = np.empty((context, config.n_vocab), np.float32)
        for start, rows in self._weights.bands(name, config.n_vocab, config.n_embd):
            logits[:, start : start + len(rows)] = normed @ rows.T
        return logits

    def _embed(self) -> None:
        """The tokens' embeddings, from one pass over the table."""
        config = self._config
        ids = self._windows.reshape(-1)
        order = np.argsort(ids, kind="stable")
        in_order = ids[order]
        for start, rows in self._weights.bands("token_embd.weight", config.n_vocab, config.n_embd):
            first, end = np.searchsorted(in_order, (start, start + len(rows)))
            self._stream[order[first:end]] = rows[in_order[first:end] - start]

    def _attention(self, i: int, observe: Observer, tick: Tick) -> None:
        config, layer = self._config, self._config.layers[i].attention
        q_width = config.n_head * config.head_dim
        kv_width = config.n_head_kv * config.head_dim
        names = tuple(f"blk.{i}.attn_{part}.weight" for part in "qkv")
        q, k, v = (
            self._weights.matrix(name, width, config.n_embd)
            for name, width in zip(names, (q_width, kv_width, kv_width), strict=True)
        )
        output_name = f"blk.{i}.attn_output.weight"
        output = self._weights.matrix(output_name, config.n_embd, q_width)
        norm = self._vector(f"blk.{i}.attn_norm", config.n_embd)
        context = self._windows.shape[1]
        for start in range(0, self.n_tokens, context):
            tokens = np.arange(start, start + context)
            x = self._normed(tokens, norm)
            observe(names, 0, tokens, x)
            attended = attend(x @ q.T, x @ k.T, x @ v.T, config, layer, self._rotation)
            observe((output_name,), 0, tokens, attended)
            self._stream[start : start + context] += attended @ output.T
            tick(context)

    def _dense_feed_forward(self, i: int, observe: Observer, tick: Tick) -> None:
        norm = self._vector(f"blk.{i}.ffn_norm", self._config.n_embd)
        matrices = self._feed_forward_matrices(i, "", self._config.layers[i].n_ff)
        for tokens in _batches(np.arange(self.n_tokens)):
            x = self._normed(tokens, norm)
            self._stream[tokens] += self._feed_forward(i, "", 0, matrices, tokens, x, observe)
            tick(len(tokens))

    def _experts(self, i: int, moe: MoeConfig, observe: Observer, tick: Tick) -> None:
        """One expert's matrices are in memory at a time; its tokens go through it in batches."""
        config = self._config
        norm = self._vector(f"blk.{i}.ffn_norm", config.n_embd)
        chosen, shares = self._route(i, moe, norm, observe)
        self._update[:] = 0
        if moe.n_ff_shared:
            matrices = self._feed_forward_matrices(i, "_shexp", moe.n_ff_shared)
            for tokens in _batches(np.arange(self.n_tokens)):
                x = self._normed(tokens, norm)
                self._update[tokens] = self._feed_forward(
                    i, "_shexp", 0, matrices, tokens, x, observe
                )
        n_steps = 0
        for expert in range(moe.n_expert):
            routed, rank = np.nonzero(chosen == expert)
            if len(routed) == 0:
                continue
            matrices = self._feed_forward_matrices(i, "_exps", moe.n_ff, expert)
            for part in _batches(np.arange(len(routed))):
                tokens, share = routed[part], shares[routed[part], rank[part], None]
                x = self._normed(tokens, norm)
                if moe.gating is Gating.SIGMOID_ON_INPUT:
                    x *= share
                y = self._feed_forward(i, "_exps", expert, matrices, tokens, x, observe)
                self._update[tokens] += y if moe.gating is Gating.SIGMOID_ON_INPUT else y * share
                n_steps += len(tokens)
                tick(n_steps // moe.n_expert_used - (n_steps - len(tokens)) // moe.n_expert_used)
        self._stream += self._update

    def _route(
        self, i: int, moe: MoeConfig, norm: np.ndarray, observe: Observer
    ) -> tuple[np.ndarray, np.ndarray]:
        """Every token's experts and their weights, int64 and float32 (n_tokens, n_expert_used)."""
        name = f"blk.{i}.ffn_gate_inp.weight"
        router = self._weights.matrix(name, moe.n_expert, self._config.n_embd)
        chosen = np.empty((self.n_tokens, moe.n_expert_used), np.int64)
        shares = np.empty(chosen.shape, np.float32)
        for tokens in _batches(np.arange(self.n_tokens)):
            x = self._normed(tokens, norm)
            observe((name,), 0, tokens, x)
            logits = x @ router.T
            best = np.argsort(-logits, axis=1, kind="stable")[:, : moe.n_expert_used]
            chosen[tokens] = best
            shares[tokens] = _shares(np.take_along_axis(logits, best, axis=1), moe.gating)
        return chosen, shares

    def _feed_forward_matrices(
        self, i: int, suffix: str, n_ff: int, matrix: int = 0
    ) -> tuple[np.ndarray, ...]:
        n_embd = self._config.n_embd
        shapes = {"gate": (n_ff, n_embd), "up": (n_ff, n_embd), "down": (n_embd, n_ff)}
        return tuple(
            self._weights.matrix(f"blk.{i}.ffn_{part}{suffix}.weight", *shape, matrix)
            for part, shape in shapes.items()
        )

    def _feed_forward(
        self,
        i: int,
        suffix: str,
        matrix: int,
        matrices: tuple[np.ndarray, ...],
        tokens: np.ndarray,
        x: np.ndarray,
        observe: Observer,
    ) -> np.ndarray:
        """down(silu(gate x) * up x)."""
        gate, up, down = matrices
        names = [f"blk.{i}.ffn_{part}{suffix}.weight" for part in ("gate", "up", "down")]
        observe((names[0], names[1]), matrix, tokens, x)
        gated = x @ gate.T
        gated *= _sigmoid(gated)
        gated *= x @ up.T
        observe((names[2],), matrix, tokens, gated)
        return gated @ down.T

    def _normed(self, tokens: np.ndarray, norm: np.ndarray) -> np.ndarray:
        return rms_norm(self._stream[tokens], self._config.rms_norm_eps) * norm

    def _vector(self, name: str, size: int) -> np.ndarray:
        return self._weights.matrix(f"{name}.weight", 1, size)[0]


def _batches(tokens: np.ndarray) -> list[np.ndarray]:
    return [tokens[start : start + N_BATCH] for start in range(0, len(tokens), N_BATCH)]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    """By tanh, so that no exponential overflows."""
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def _shares(logits: np.ndarray, gating: Gating) -> np.ndarray:
    """What the chosen experts' inputs or outputs are multiplied by, of their router logits."""
    if gating is Gating.SIGMOID_ON_INPUT:
        return _sigmoid(logits)
    exps = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exps / exps.sum(axis=1, keepdims=True)
