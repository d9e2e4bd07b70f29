"""A model's forward pass over many windows at once, layer by layer, in float32 numpy.

All windows go through a layer before the next layer's weights are read, so that every weight is
read once however long the text is. What a layer does is what its configuration declares, as in
``q4run/layers``; no family's name occurs. An observer is given what each matrix multiplies.
The runtime's own layers are not used: they hold all experts of a layer, or read them again for
every batch, where this pass holds one and reads it once (``docs/experiments.md``).
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from gguf import MODEL_TENSOR

from q4run.convert.calibration.activations import ACTIVATIONS
from q4run.convert.calibration.arrays import Arrays
from q4run.convert.calibration.attention import attend, rms_norm
from q4run.convert.calibration.routing import choose, sigmoid
from q4run.convert.calibration.weights import Weights
from q4run.errors import Error, FormatError
from q4run.layers.rotary import RotaryEmbedding
from q4run.models.config import ModelConfig
from q4run.models.parts import (
    BIAS,
    WEIGHT,
    Activation,
    DenseFeedForward,
    Experts,
    Role,
    SharedExpert,
    Tensor,
    by_kind,
)

# Is given (tensors, matrix, tokens, inputs): matrix ``matrix`` of each named tensor multiplies
# ``inputs``, float32 (len(tokens), n_cols), which is only valid during the call; ``tokens``: their
# places among all tokens, int64 (or a range).
Observer = Callable[[tuple[str, ...], int, np.ndarray, np.ndarray], None]
# Is called with how many tokens went through half a layer.
Tick = Callable[[int], None]

# Takes (tokens, inputs, observe) through one feed-forward.
FeedForward = Callable[[np.ndarray, np.ndarray, Observer], np.ndarray]
# A part's small tensors, by what they are and the end of their name.
Vectors = Mapping[tuple[MODEL_TENSOR, str], np.ndarray]

N_BATCH = 512


class Forward:
    """The residual stream of all windows; `run_layer` takes it on by one layer."""

    def __init__(
        self,
        config: ModelConfig,
        weights: Weights,
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
        context = windows.shape[1]
        rotary = RotaryEmbedding(config.ropes, self._values, "the model")
        self._positions = rotary(0, context, context)
        self._embed()

    def run_layer(self, i: int, observe: Observer, tick: Tick) -> None:
        """Takes all tokens through layer ``i``; layers come in order, each once."""
        self._attention(i, observe, tick)
        part = self._config.layers[i].feed_forward
        if isinstance(part, Experts):
            self._experts(i, part, observe, tick)
        else:
            self._dense_feed_forward(i, part, observe, tick)
        if not np.isfinite(self._stream[-1]).all():
            raise Error(f"layer {i} gave values that are not finite numbers: the model is damaged")

    def run_head(self, observe: Observer) -> None:
        """What the output matrix multiplies, after the last layer."""
        head, n_embd = self._config.head, self._config.n_embd
        norm = self._values(head.tensors(n_embd)[0])
        for tokens in _batches(np.arange(self.n_tokens)):
            observe((head.matrix(n_embd).name,), 0, tokens, self._normed(tokens, norm))

    def logits(self, window: int) -> np.ndarray:
        """float32 (context, n_vocab): the model's output for one window, after the last layer."""
        config = self._config
        matrix = config.head.matrix(config.n_embd)
        context = self._windows.shape[1]
        tokens = np.arange(window * context, (window + 1) * context)
        normed = self._normed(tokens, self._values(config.head.tensors(config.n_embd)[0]))
        logits = np.empty((context, config.n_vocab), np.float32)
        for start, rows in self._weights.bands(matrix.name, *matrix.shape):
            logits[:, start : start + len(rows)] = normed @ rows.T
        logits /= np.float32(config.head.divisor)
        cap = config.head.soft_cap
        return logits if cap is None else np.tanh(logits / cap) * np.float32(cap)

    def _embed(self) -> None:
        """The tokens' embeddings, from one pass over the table."""
        config = self._config
        ids = self._windows.reshape(-1)
        order = np.argsort(ids, kind="stable")
        in_order = ids[order]
        table = config.embedding.tensors(config.n_embd)[0]
        for start, rows in self._weights.bands(table.name, *table.shape):
            first, end = np.searchsorted(in_order, (start, start + len(rows)))
            self._stream[order[first:end]] = rows[in_order[first:end] - start]
        if config.embedding.scale != 1:
            self._stream *= np.float32(config.embedding.scale)

    def _attention(self, i: int, observe: Observer, tick: Tick) -> None:
        part, config = self._config.layers[i].attention, self._config
        tensors = part.tensors(config.n_embd, i)
        vectors = self._vectors(tensors)
        norms = {kind: vector for (kind, suffix), vector in vectors.items() if suffix == WEIGHT}
        matrices = {t.kind: t for t in tensors if len(t.shape) == 2}
        output_tensor = matrices.pop(MODEL_TENSOR.ATTN_OUT)
        names = tuple(tensor.name for tensor in matrices.values())
        sources = [self._matrix(tensor) for tensor in matrices.values()]
        biases = [vectors[kind, BIAS] for kind in matrices if (kind, BIAS) in vectors]
        bias = np.concatenate(biases) if biases else np.float32(0)
        ends = np.cumsum((part.q_width, part.k_width))
        output = self._matrix(output_tensor)
        rotation, eps = self._positions.rotation(part.rope), config.rms_norm_eps
        context = self._windows.shape[1]
        for start in range(0, self.n_tokens, context):
            tokens = np.arange(start, start + context)
            x = self._normed(tokens, norms[MODEL_TENSOR.ATTN_NORM])
            observe(names, 0, tokens, x)
            q, k, v = np.split(_products(x, sources) + bias, ends, axis=1)
            attended = attend(q, k, v, part, eps, rotation, norms)
            if part.sub_norm:
                attended = rms_norm(attended, eps) * norms[MODEL_TENSOR.ATTN_SUB_NORM]
            observe((output_tensor.name,), 0, tokens, attended)
            update = attended @ output.T + vectors.get((MODEL_TENSOR.ATTN_OUT, BIAS), 0)
            if part.post_norm:
                update = rms_norm(update, eps) * norms[MODEL_TENSOR.ATTN_POST_NORM]
            self._stream[start : start + context] += update * np.float32(part.residual_scale)
            tick(context)

    def _dense_feed_forward(
        self, i: int, part: DenseFeedForward, observe: Observer, tick: Tick
    ) -> None:
        tensors, eps = part.tensors(self._config.n_embd, i), self._config.rms_norm_eps
        vectors = self._vectors(tensors)
        matrices = [tensor for tensor in tensors if tensor.role is Role.MATRIX]
        sub_norm = vectors.get((MODEL_TENSOR.FFN_SUB_NORM, WEIGHT))
        feed_forward = self._feed_forward(matrices, part.activation, sub_norm=sub_norm)
        for tokens in _batches(np.arange(self.n_tokens)):
            x = self._normed(tokens, vectors[part.norm, WEIGHT])
            update = feed_forward(tokens, x, observe)
            if part.post_norm:
                update = rms_norm(update, eps) * vectors[MODEL_TENSOR.FFN_POST_NORM, WEIGHT]
            self._stream[tokens] += update * np.float32(part.residual_scale)
            tick(len(tokens))

    def _experts(self, i: int, part: Experts, observe: Observer, tick: Tick) -> None:
        """One expert's matrices are in memory at a time; its tokens go through it in batches."""
        tensors = part.tensors(self._config.n_embd, i)
        stacks = [tensor for tensor in tensors if tensor.role is Role.EXPERT]
        vectors = self._vectors(tensors)
        norm = vectors[part.norm, WEIGHT]
        router = by_kind(tensors)[MODEL_TENSOR.FFN_GATE_INP]
        chosen, shares = self._route(part, router, norm, vectors, observe)
        biases = [vectors[t.kind, BIAS] for t in stacks] if part.biases else []
        self._update[:] = 0
        if part.shared:
            self._shared_expert(part, part.shared, tensors, vectors, observe)
        n_steps = 0
        for expert in range(part.n_expert):
            routed, rank = np.nonzero(chosen == expert)
            if len(routed) == 0:
                continue
            own_biases = [bias[expert] for bias in biases]
            feed_forward = self._feed_forward(stacks, part.activation, expert, biases=own_biases)
            for some in _batches(np.arange(len(routed))):
                tokens, share = routed[some], shares[routed[some], rank[some], None]
                x = self._normed(tokens, norm)
                if part.router.on_input:
                    x *= share
                y = feed_forward(tokens, x, observe)
                self._update[tokens] += y if part.router.on_input else y * share
                n_steps += len(tokens)
                tick(n_steps // part.n_expert_used - (n_steps - len(tokens)) // part.n_expert_used)
        for tokens in _batches(np.arange(self.n_tokens)):
            self._stream[tokens] += self._update[tokens] * np.float32(part.residual_scale)

    def _shared_expert(
        self,
        part: Experts,
        shared: SharedExpert,
        tensors: Sequence[Tensor],
        vectors: Vectors,
        observe: Observer,
    ) -> None:
        matrices = [tensor for tensor in tensors if tensor.role is Role.MATRIX]
        feed_forward = self._feed_forward(matrices, part.activation)
        for tokens in _batches(np.arange(self.n_tokens)):
            x = self._normed(tokens, vectors[part.norm, WEIGHT])
            self._update[tokens] = feed_forward(tokens, x, observe)
            if shared.gated:
                gate = vectors[MODEL_TENSOR.FFN_GATE_INP_SHEXP, WEIGHT]
                self._update[tokens] *= sigmoid(x @ gate)[:, None]

    def _route(
        self,
        part: Experts,
        tensor: Tensor,
        norm: np.ndarray,
        vectors: Vectors,
        observe: Observer,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Every token's experts and their weights, int64 and float32 (n_tokens, n_expert_used)."""
        router = self._matrix(tensor)
        chosen = np.empty((self.n_tokens, part.n_expert_used), np.int64)
        shares = np.empty(chosen.shape, np.float32)
        bias = vectors.get((MODEL_TENSOR.FFN_GATE_INP, BIAS), 0)
        selection_bias = vectors.get((MODEL_TENSOR.FFN_EXP_PROBS_B, BIAS))
        for tokens in _batches(np.arange(self.n_tokens)):
            x = self._normed(tokens, norm)
            observe((tensor.name,), 0, tokens, x)
            logits = x @ router.T + bias
            chosen[tokens], shares[tokens] = choose(
                logits, part.router, part.n_expert_used, selection_bias
            )
        return chosen, shares

    def _feed_forward(
        self,
        tensors: Sequence[Tensor],
        activation: Activation,
        matrix: int = 0,
        *,
        biases: Sequence[np.ndarray] = (),
        sub_norm: np.ndarray | None = None,
    ) -> FeedForward:
        """Reads gate, up and down, of which gate and up may be one, of stacks one ``matrix``."""
        *first, last = tensors
        sources = [self._matrix(tensor, matrix) for tensor in first]
        down = self._matrix(last, matrix)
        names = tuple(tensor.name for tensor in first)
        first_bias = np.concatenate(biases[:-1]) if biases else np.float32(0)
        last_bias = biases[-1] if biases else np.float32(0)

        def run(tokens: np.ndarray, x: np.ndarray, observe: Observer) -> np.ndarray:
            observe(names, matrix, tokens, x)
            gate, up = np.split(_products(x, sources) + first_bias, 2, axis=1)
            hidden = ACTIVATIONS[activation](gate, up)
            if sub_norm is not None:
                hidden = rms_norm(hidden, self._config.rms_norm_eps) * sub_norm
            observe((last.name,), matrix, tokens, hidden)
            out: np.ndarray = hidden @ down.T + last_bias
            return out

        return run

    def _vectors(self, tensors: Sequence[Tensor]) -> Vectors:
        """What of a part's tensors is small: norms, biases, sinks and gates."""
        small = [t for t in tensors if len(t.shape) == 1 or t.role is Role.BIAS]
        return {(t.kind, t.suffix): self._values(t) for t in small}

    def _normed(self, tokens: np.ndarray, norm: np.ndarray) -> np.ndarray:
        normed: np.ndarray = rms_norm(self._stream[tokens], self._config.rms_norm_eps) * norm
        return normed

    def _matrix(self, tensor: Tensor, matrix: int = 0) -> np.ndarray:
        n_rows, n_cols = tensor.shape[-2:]
        return self._weights.matrix(tensor.name, n_rows, n_cols, matrix)

    def _values(self, tensor: Tensor) -> np.ndarray:
        """A small tensor in its shape."""
        *rows, n_cols = tensor.shape
        values = self._weights.matrix(tensor.name, rows[0] if rows else 1, n_cols)
        return values.reshape(tensor.shape)


def _products(x: np.ndarray, matrices: Sequence[np.ndarray]) -> np.ndarray:
    """What each matrix makes of x, side by side."""
    return np.concatenate([x @ matrix.T for matrix in matrices], axis=1)


def _batches(tokens: np.ndarray) -> list[np.ndarray]:
    return [tokens[start : start + N_BATCH] for start in range(0, len(tokens), N_BATCH)]
