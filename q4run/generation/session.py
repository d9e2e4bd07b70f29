"""From prompt to tokens: a session that remembers what its cache holds, and the loop over it."""

import time
from collections.abc import Iterator, Sequence, Set
from dataclasses import asdict, dataclass

import numpy as np

from q4run.cache.keys_values import KVCache
from q4run.errors import Error
from q4run.generation.sampler import NotFiniteError, Sampler
from q4run.generation.stats import Work
from q4run.layers.decoder import Consumer, Transformer


@dataclass
class TokenCounters:
    """Tokens run and the seconds they took: prompts in batches, decoding one by one."""

    prompt_tokens: int = 0
    prompt_s: float = 0.0
    tokens: int = 0
    decode_s: float = 0.0


class Session:
    """One sequence of tokens and its cache; a new prompt runs only where it differs."""

    def __init__(self, transformer: Transformer, cache: KVCache) -> None:
        self.counters = TokenCounters()
        self.tokens: list[int] = []
        self._transformer = transformer
        self._cache = cache

    @property
    def context(self) -> int:
        """How many tokens there is room for."""
        return self._cache.context

    @property
    def n_vocab(self) -> int:
        """How many tokens the model knows."""
        return self._transformer.config.n_vocab

    @property
    def work(self) -> Work:
        """What was done so far: this session's tokens, and the experts of its model."""
        return Work(**asdict(self.counters), **asdict(self._transformer.store.counters))

    @property
    def progress(self) -> float:
        """How many tokens the cache holds now, and of the batch under way the share that the layers
        it has been through are of all; may be asked from any thread."""
        return self._cache.length + self._transformer.under_way

    def clear(self) -> None:
        """Forgets everything."""
        self._cache.rewind(0)
        self.tokens = []

    def feed(
        self, ids: Sequence[int], *, consume: Consumer | None = None, first: int = 0
    ) -> np.ndarray:
        """Makes ``ids`` the session's tokens; returns the logits after the last.

        What the cache already holds of them is kept, but where ``consume`` wants the logits after
        ``ids[first:]`` (see `Transformer.forward`), all of them run.
        """
        kept = 0 if consume else _common_prefix(self.tokens, ids)
        self._cache.rewind(max(0, min(kept, len(ids) - 1)))
        begin = self._cache.length
        started = time.perf_counter()
        try:
            logits = self._transformer.forward(
                ids[begin:], self._cache, consume=consume, first=first
            )
        finally:
            self.tokens = list(ids[: self._cache.length])
        self.counters.prompt_tokens += len(ids) - begin
        self.counters.prompt_s += time.perf_counter() - started
        return logits

    def step(self, token: int) -> np.ndarray:
        """Appends one token; returns the logits after it."""
        started = time.perf_counter()
        try:
            logits = self._transformer.forward([token], self._cache)
        finally:
            # Ctrl-C may come after the cache took the token.
            self.tokens += [token][: self._cache.length - len(self.tokens)]
        self.counters.tokens += 1
        self.counters.decode_s += time.perf_counter() - started
        return logits

    def overflow(self) -> Error | None:
        """Return what to tell a person if logits are no numbers because of how keys and values are
        stored; None where that is not why."""
        if not self._cache.has_overflowed():
            return None
        return Error(
            f"this model's keys or values are larger than --kv-type {self._cache.kv_type} holds:"
            " give --kv-type f32; if that does not work either, the model file is damaged"
        )

    def generate(
        self,
        ids: Sequence[int],
        sampler: Sampler,
        stop_ids: Set[int],
        max_tokens: int | None = None,
        never: np.ndarray | None = None,
    ) -> Iterator[int]:
        """Continues ``ids``: yields tokens until a stop token (yielded too), ``max_tokens`` or the
        end of the context. ``max_tokens`` 0 yields nothing and runs nothing; None sets no limit.
        The ids in ``never`` are not chosen.

        The last token that was yielded is in the session's tokens only once the next was asked for.
        """
        most = self.context if max_tokens is None else max_tokens
        if most <= 0:
            return
        logits = self.feed(ids)
        for count in range(1, most + 1):
            if never is not None:
                logits[never] = -np.inf
            try:
                token = sampler.sample(logits, self.tokens)
            except NotFiniteError as error:
                raise self.overflow() or error from None
            yield token
            if token in stop_ids or count == most or len(self.tokens) == self.context:
                return
            logits = self.step(token)


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """How many tokens two sequences share at their beginning."""
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return i
    return min(len(a), len(b))
