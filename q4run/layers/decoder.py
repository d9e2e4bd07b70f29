"""The decoder: embedding, layers, head; tokens in, logits out."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from q4run.cache.keys_values import KVCache
from q4run.errors import Error, UnsupportedError
from q4run.experts.store import ExpertStore
from q4run.gguf_file import GGUFFile
from q4run.kernels.threads.pool import ThreadPool
from q4run.layers.head import Head
from q4run.layers.materials import Materials
from q4run.layers.stack import Stack
from q4run.layers.workspace import Workspace
from q4run.models.config import ModelConfig
from q4run.timeline import EMBEDDING, HEAD
from q4run.weights import EmbeddingTable, WeightReader

# Ids, or vectors in place of embeddings: float32 (n, n_embd).
Tokens = Sequence[int] | np.ndarray
# Is called with logits, float32 (n, n_vocab).
Consumer = Callable[[np.ndarray], None]
# The logits of so many bytes are computed at once where those of many tokens are wanted.
_LOGITS_BYTES = 16 * 2**20


class Transformer:
    """The weights that stay in RAM, and the pass over them."""

    def __init__(
        self,
        file: GGUFFile,
        config: ModelConfig,
        store: ExpertStore,
        n_batch: int,
        threads: int,
        progress: Callable[[int, int], None] | None = None,
        long_batch: tuple[int, int] | None = None,
    ) -> None:
        """Reads everything but the experts; ``progress`` hears of (layers done, layers in all).

        long_batch: in what batches prompts beyond ``n_batch`` tokens run, and how many slots lend
        their memory to that.
        Raises UnsupportedError where the file has tensors that no layer would use.
        """
        check_all_declared(file, config)
        self.config = config
        self._n_batch = n_batch
        self._n_long_batch, self._n_lent_slots = long_batch or (n_batch, 0)
        self._workspace = workspace = Workspace(config, self._n_long_batch)
        weights = WeightReader(file)
        self.store = store
        self._embedding = EmbeddingTable(file, config.embedding.tensors(config.n_embd)[0])
        self._stack = Stack(Materials(weights, config, store, workspace), progress)
        self._head = Head(weights, config, workspace)
        self._pool = ThreadPool(threads)
        # How far the batch under way is: its tokens times the share of the layers behind it.
        self.under_way = 0.0

    def forward(
        self,
        tokens: Tokens,
        cache: KVCache,
        *,
        consume: Consumer | None = None,
        first: int = 0,
    ) -> np.ndarray:
        """Runs tokens after those in the cache, in batches; the cache then holds them too.

        tokens: ids, or vectors that enter the layers in place of embeddings. Returns the logits
        after the last token, float32 (n_vocab,). ``consume`` is called with those after
        ``tokens[first:]``, float32 (n, n_vocab), some at a time and in order; the array is used
        again. After Ctrl-C the cache holds the batches that were complete.
        Raises Error if the context is too short, an id is not in the vocabulary, or vectors have
        not the model's width.
        """
        self._check(tokens, cache)
        events, timeline = self.store.events, self.store.events.timeline
        if timeline:
            timeline.begin_pass(len(tokens))
        done = 0
        with events.safe_points() as check_interrupt, self._batch_for(len(tokens)) as n_batch:
            while done < len(tokens):
                n_tokens = cache.begin(min(n_batch, len(tokens) - done))
                x = self._embed(tokens[done : done + n_tokens])
                try:
                    self._run_stack(x, cache, check_interrupt)
                finally:
                    self.under_way = 0.0
                cache.commit(n_tokens)
                if consume:
                    self._give_logits(x[max(0, first - done) :], consume)
                    if timeline:
                        timeline.lap(HEAD)
                done += n_tokens
                x = x[-1:].copy()  # the other tokens are not needed any more
        logits = np.empty((1, self.config.n_vocab), np.float32)
        self._head(self._pool.state, x, logits)
        if timeline:
            timeline.lap(HEAD)
            timeline.end_pass()
        last: np.ndarray = logits[0]
        return last

    def _give_logits(self, x: np.ndarray, consume: Consumer) -> None:
        n_vocab = self.config.n_vocab
        step = min(max(1, _LOGITS_BYTES // (4 * n_vocab)), len(x))
        logits = np.empty((step, n_vocab), np.float32)
        for start in range(0, len(x), max(1, step)):
            some = x[start : start + step]
            self._head(self._pool.state, some, logits[: len(some)])
            consume(logits[: len(some)])

    @contextmanager
    def _batch_for(self, n_tokens: int) -> Iterator[int]:
        """How long the batches of so many tokens are; scratch for long ones is borrowed."""
        if n_tokens <= self._n_batch or self._n_long_batch == self._n_batch:
            yield self._n_batch
            return
        with self.store.lending(self._n_lent_slots):
            try:
                yield self._n_long_batch
            finally:
                self._workspace.give_back()

    def _check(self, tokens: Tokens, cache: KVCache) -> None:
        if not len(tokens):
            raise Error("there are no tokens to run: the prompt is empty")
        if cache.length + len(tokens) > cache.context:
            raise Error(
                f"{cache.length + len(tokens)} tokens do not fit into a context of {cache.context};"
                " ask for a larger one with --context"
            )
        if isinstance(tokens, np.ndarray):
            if tokens.ndim != 2 or tokens.shape[1] != self.config.n_embd:
                raise Error(
                    f"vectors of the shape {tokens.shape} do not enter a model of width"
                    f" {self.config.n_embd}"
                )
            return
        outside = [token for token in tokens if not 0 <= token < self.config.n_vocab]
        if outside:
            raise Error(f"token {outside[0]} is not in the vocabulary of {self.config.n_vocab}")

    def _embed(self, tokens: Tokens) -> np.ndarray:
        """The stream as it enters the layers, float32 (len(tokens), n_embd), for them to change."""
        if isinstance(tokens, np.ndarray):
            x = np.array(tokens, np.float32)
        else:
            x = self._embedding.rows(tokens)
            if (scale := self.config.embedding.scale) != 1:
                x *= np.float32(scale)
        if timeline := self.store.events.timeline:
            timeline.lap(EMBEDDING)
        return x

    def _run_stack(
        self, x: np.ndarray, cache: KVCache, check_interrupt: Callable[[], None]
    ) -> None:
        def begin_layer(i: int) -> None:
            self.under_way = len(x) * i / len(self.config.layers)
            check_interrupt()

        timeline = self.store.events.timeline
        self.store.begin_pass(len(x))
        self._stack(self._pool.state, x, cache, begin_layer, timeline)
        self.store.end_pass(len(x))

    def close(self) -> None:
        """Ends the threads and lets go of the file."""
        self._pool.close()
        self._embedding.close()


def check_all_declared(file: GGUFFile, config: ModelConfig) -> None:
    """Refuses a file that holds more than the layers read: it would run wrongly."""
    unknown = [
        name for name in file.tensors if name not in config.tensors and not config.skips(name)
    ]
    if unknown:
        raise UnsupportedError(
            f"{file.path}: q4run does not know what to do with the tensor {unknown[0]} in a"
            f" {file.architecture} model ({len(unknown)} such tensors)"
        )
