"""Where the time goes: what was computed, waited for and read, when, and for which layer.

Whoever could record has a ``timeline`` that is None unless somebody wants to know.
"""

from __future__ import annotations

import time
from typing import NamedTuple

# What the computing thread does, one after the other.
EMBEDDING, ATTENTION, FEED_FORWARD, HEAD = "embedding", "attention", "feed-forward", "head"
EXPERTS = "experts"  # a feed-forward that has experts: from the router to the sum of their outputs
WAIT = "wait"  # the part of EXPERTS in which it stands still for a read
READ = "read"  # what a reader thread does meanwhile: a read, and interleaving what has come

NO_LAYER = NO_EXPERT = -1
COMPUTING = 0  # the lane of the computing thread; those of the reader threads are 1, 2, ...
MOST_SPANS = 200_000


class Span(NamedTuple):
    """From ``begin`` to ``end``, nanoseconds of ``time.perf_counter_ns``."""

    kind: str
    layer: int
    lane: int
    begin: int
    end: int
    expert: int = NO_EXPERT
    n_bytes: int = 0


class Pass(NamedTuple):
    """A prompt or a token, from its first layer's input to its logits."""

    n_tokens: int
    begin: int
    end: int


class Timeline:
    """Spans of the passes that run while it is there. For one computing thread, which also tells of
    the reads, as it hears of them: one that began before the first pass may be among them."""

    def __init__(self, most_spans: int = MOST_SPANS) -> None:
        """most_spans: those beyond are only counted, in ``n_dropped``."""
        self.spans: list[Span] = []
        self.passes: list[Pass] = []
        self.n_dropped = 0
        self._most_spans = most_spans
        self._n_tokens = 0
        self._pass_begin = self._lap_begin = time.perf_counter_ns()

    def begin_pass(self, n_tokens: int) -> None:
        """``n_tokens`` go through all layers from here on."""
        self._n_tokens = n_tokens
        self._pass_begin = self._lap_begin = time.perf_counter_ns()

    def lap(self, kind: str, layer: int = NO_LAYER) -> None:
        """All the computing thread's time since the last lap went there."""
        now = time.perf_counter_ns()
        self.add(Span(kind, layer, COMPUTING, self._lap_begin, now))
        self._lap_begin = now

    def add(self, span: Span) -> None:
        """A span whose beginning and end are known."""
        if len(self.spans) < self._most_spans:
            self.spans.append(span)
        else:
            self.n_dropped += 1

    def end_pass(self) -> None:
        """The pass ends where its last lap does. One that an exception ends is not told."""
        self.passes.append(Pass(self._n_tokens, self._pass_begin, self._lap_begin))
