"""A model's forward pass over many windows at once, layer by layer, in float32 numpy.

All windows go through a layer before the next layer's weights are read, so that every weight is
read once however long the text is. What a layer does is what its configuration declares, as in
``q4run/layers``; no family's name occurs. An observer is given what each matrix multiplies.
The runtime's own layers are not used: they hold all experts of a layer, or read them again for
every batch, where this pass holds one and reads it once (``docs/experiments.md``).
"""

from collections.abc import Callable, Sequence

import numpy as np
from gguf import MODEL_TENSOR

from q4run.convert.calibration.arrays import Arrays
from q4run.convert.calibration.attention import N_QUERIES, attend, rms_norm
from q4run.convert.calibration.weights import Weights
from q4run.errors import Error, FormatError
from q4run.layers.rotary import RotaryEmbedding
from q4run.models.config import ModelConfig
from q4run.models.parts import Attention, DenseFeedForward, Experts, Role, Router, Tensor, by_kind
from q4run.models.parts import FeedForward as FeedForwardPart

# Is given (tensors, matrix, tokens, inputs): matrix ``matrix`` of each named tensor multiplies
# ``inputs``, float32 (len(tokens), n_cols), which is only valid during the call; ``tokens``: their
# places among all tokens, int64 (or a range).
Observer = Callable[[tuple[str, ...], int, np.ndarray, np.ndarray], None]
# Is called with how many tokens went through half a layer.
Tick = Callable[[int], None]

# Takes (tokens, inputs, observe) through one feed-forward.
FeedForward = Callable[[np.ndarray, np.ndarray, Observer], np.ndarray]

N_BATCH = 512
# The matrices that multiply the same normed stream.
_SOURCES = (MODEL_TENSOR.ATTN_Q, MODEL_TENSOR.ATTN_K, MODEL_TENSOR.ATTN_V)
# Reading a matrix takes its stored form as well, and a band of it on its way to float32.
_READ_BYTES = 64 * 2**20


def working_bytes(config: ModelConfig, context: int) -> int:
    """What a pass takes beside the residual stream: the weights of half a layer, and its scratch
    for one window or batch."""
    attention = max(
        _attention_values(layer.attention, config.n_embd, context) for layer in config.layers
    )
    n_ff = max(n for layer in config.layers for n in widths(layer.feed_forward))
    feed_forward = 3 * config.n_embd * n_ff + N_BATCH * (4 * config.n_embd + 4 * n_ff)
    return 4 * max(attention, feed_forward) + _READ_BYTES


def _attention_values(part: Attention, n_embd: int, context: int) -> int:
    """Of four matrices, of a window's vectors, and of the scores of heads that share their keys."""
    width = part.q_width + part.k_width
    scores = part.n_head // part.n_head_kv * N_QUERIES * context
    return 2 * n_embd * width + context * (4 * n_embd + 5 * width) + 2 * scores


def widths(part: FeedForwardPart) -> list[int]:
    """The values between gate and down, of each feed-forward of a layer."""
    if isinstance(part, Experts):
        return [part.n_ff, part.shared.n_ff if part.shared else 0]
    return [part.n_ff]


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
        rotary = RotaryEmbedding(config.ropes, self._vector, "the model")
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
        norm = self._vector(head.tensors(n_embd)[0])
        for tokens in _batches(np.arange(self.n_tokens)):
            observe((head.matrix(n_embd).name,), 0, tokens, self._normed(tokens, norm))

    def logits(self, window: int) -> np.ndarray:
        """float32 (context, n_vocab): the model's output for one window, after the last layer."""
        config = self._config
        matrix = config.head.matrix(config.n_embd)
        context = self._windows.shape[1]
        tokens = np.arange(window * context, (window + 1) * context)
        normed = self._normed(tokens, self._vector(config.head.tensors(config.n_embd)[0]))
        logits = np.empty((context, config.n_vocab), np.float32)
        for start, rows in self._weights.bands(matrix.name, *matrix.shape):
            logits[:, start : start + len(rows)] = normed @ rows.T
        return logits

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

    def _attention(self, i: int, observe: Observer, tick: Tick) -> None:
        part = self._config.layers[i].attention
        tensors = by_kind(part.tensors(self._config.n_embd, i))
        sources = [tensors[kind] for kind in _SOURCES]
        names = tuple(tensor.name for tensor in sources)
        q, k, v = (self._matrix(tensor) for tensor in sources)
        output_tensor = tensors[MODEL_TENSOR.ATTN_OUT]
        output = self._matrix(output_tensor)
        norm = self._vector(tensors[MODEL_TENSOR.ATTN_NORM])
        rotation, eps = self._positions.rotation(part.rope), self._config.rms_norm_eps
        context = self._windows.shape[1]
        for start in range(0, self.n_tokens, context):
            tokens = np.arange(start, start + context)
            x = self._normed(tokens, norm)
            observe(names, 0, tokens, x)
            attended = attend(x @ q.T, x @ k.T, x @ v.T, part, eps, rotation)
            observe((output_tensor.name,), 0, tokens, attended)
            self._stream[start : start + context] += attended @ output.T
            tick(context)

    def _dense_feed_forward(
        self, i: int, part: DenseFeedForward, observe: Observer, tick: Tick
    ) -> None:
        norm_tensor, *tensors = part.tensors(self._config.n_embd, i)
        norm = self._vector(norm_tensor)
        feed_forward = self._feed_forward(tensors)
        for tokens in _batches(np.arange(self.n_tokens)):
            x = self._normed(tokens, norm)
            self._stream[tokens] += feed_forward(tokens, x, observe)
            tick(len(tokens))

    def _experts(self, i: int, part: Experts, observe: Observer, tick: Tick) -> None:
        """One expert's matrices are in memory at a time; its tokens go through it in batches."""
        tensors = part.tensors(self._config.n_embd, i)
        stacks = [tensor for tensor in tensors if tensor.role is Role.EXPERT]
        norm = self._vector(by_kind(tensors)[MODEL_TENSOR.FFN_NORM])
        router = by_kind(tensors)[MODEL_TENSOR.FFN_GATE_INP]
        chosen, shares = self._route(part, router, norm, observe)
        self._update[:] = 0
        if part.shared:
            shared = self._feed_forward(part.shared.tensors(self._config.n_embd, i))
            for tokens in _batches(np.arange(self.n_tokens)):
                self._update[tokens] = shared(tokens, self._normed(tokens, norm), observe)
        n_steps = 0
        for expert in range(part.n_expert):
            routed, rank = np.nonzero(chosen == expert)
            if len(routed) == 0:
                continue
            feed_forward = self._feed_forward(stacks, expert)
            for some in _batches(np.arange(len(routed))):
                tokens, share = routed[some], shares[routed[some], rank[some], None]
                x = self._normed(tokens, norm)
                if part.router.on_input:
                    x *= share
                y = feed_forward(tokens, x, observe)
                self._update[tokens] += y if part.router.on_input else y * share
                n_steps += len(tokens)
                tick(n_steps // part.n_expert_used - (n_steps - len(tokens)) // part.n_expert_used)
        self._stream += self._update

    def _route(
        self, part: Experts, tensor: Tensor, norm: np.ndarray, observe: Observer
    ) -> tuple[np.ndarray, np.ndarray]:
        """Every token's experts and their weights, int64 and float32 (n_tokens, n_expert_used)."""
        router = self._matrix(tensor)
        chosen = np.empty((self.n_tokens, part.n_expert_used), np.int64)
        shares = np.empty(chosen.shape, np.float32)
        for tokens in _batches(np.arange(self.n_tokens)):
            x = self._normed(tokens, norm)
            observe((tensor.name,), 0, tokens, x)
            logits = x @ router.T
            best = np.argsort(-logits, axis=1, kind="stable")[:, : part.n_expert_used]
            chosen[tokens] = best
            shares[tokens] = _shares(np.take_along_axis(logits, best, axis=1), part.router)
        return chosen, shares

    def _feed_forward(self, tensors: Sequence[Tensor], matrix: int = 0) -> FeedForward:
        """Reads gate, up and down, of stacks one ``matrix``; returns down(silu(gate x) * up x)."""
        gate, up, down = (self._matrix(tensor, matrix) for tensor in tensors)
        names = [tensor.name for tensor in tensors]

        def run(tokens: np.ndarray, x: np.ndarray, observe: Observer) -> np.ndarray:
            observe((names[0], names[1]), matrix, tokens, x)
            gated: np.ndarray = x @ gate.T
            gated *= _sigmoid(gated)
            gated *= x @ up.T
            observe((names[2],), matrix, tokens, gated)
            out: np.ndarray = gated @ down.T
            return out

        return run

    def _normed(self, tokens: np.ndarray, norm: np.ndarray) -> np.ndarray:
        normed: np.ndarray = rms_norm(self._stream[tokens], self._config.rms_norm_eps) * norm
        return normed

    def _matrix(self, tensor: Tensor, matrix: int = 0) -> np.ndarray:
        n_rows, n_cols = tensor.shape[-2:]
        return self._weights.matrix(tensor.name, n_rows, n_cols, matrix)

    def _vector(self, tensor: Tensor) -> np.ndarray:
        vector: np.ndarray = self._weights.matrix(tensor.name, 1, *tensor.shape)[0]
        return vector


def _batches(tokens: np.ndarray) -> list[np.ndarray]:
    return [tokens[start : start + N_BATCH] for start in range(0, len(tokens), N_BATCH)]


def _sigmoid(x: np.ndarray) -> np.ndarray:
    """By tanh, so that no exponential overflows."""
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def _shares(logits: np.ndarray, router: Router) -> np.ndarray:
    """What the chosen experts' inputs or outputs are multiplied by, of their router logits."""
    if router.on_input:
        return _sigmoid(logits)
    exps = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares: np.ndarray = exps / exps.sum(axis=1, keepdims=True)
    return shares
