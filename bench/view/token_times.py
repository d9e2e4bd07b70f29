"""Where the time of a recorded pass went, layer by layer: what the drawings draw."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from q4run.bench.measure.recording import Recording
from q4run.timeline import (
    ATTENTION,
    COMPUTING,
    EMBEDDING,
    HEAD,
    NO_LAYER,
    READ,
    WAIT,
    Pass,
    Span,
)


@dataclass(frozen=True)
class Times:
    """Seconds of the computing thread, and of them those in which a read was under way; bytes that
    were read for a layer in the time of the pass, perhaps before its turn.

    first, last: numbers of layers; or, of the embedding and the head, -1.
    """

    first: int
    last: int
    attention: float = 0.0
    feed_forward: float = 0.0  # with experts or without; not waiting
    rest: float = 0.0  # the embedding and the head
    wait: float = 0.0
    reading: float = 0.0
    n_bytes: int = 0

    @property
    def total(self) -> float:
        return self.attention + self.feed_forward + self.rest + self.wait

    def __add__(self, other: Times) -> Times:
        return Times(
            min(self.first, other.first),
            max(self.last, other.last),
            self.attention + other.attention,
            self.feed_forward + other.feed_forward,
            self.rest + other.rest,
            self.wait + other.wait,
            self.reading + other.reading,
            self.n_bytes + other.n_bytes,
        )


def typical_token(recording: Recording) -> int | None:
    """Which pass is a token's of median length, the shorter of two; None where there is none."""
    tokens = range(1, len(recording.passes))
    by_length = sorted(tokens, key=lambda i: _seconds(recording.passes[i]))
    return by_length[(len(by_length) - 1) // 2] if by_length else None


def spans_of(recording: Recording, of: Pass) -> list[Span]:
    """The spans of a pass, and reads that went on in its time."""
    return [span for span in recording.spans if span.begin < of.end and span.end > of.begin]


def times_of(recording: Recording, of: Pass) -> list[Times]:
    """A row for the embedding and the head together, if anything is known, and one for each layer,
    in order."""
    spans = spans_of(recording, of)
    busy = _united((span.begin, span.end) for span in spans if span.kind == READ)
    rows: dict[int, Times] = {}
    for span in spans:
        layer, seconds = span.layer, (span.end - span.begin) / 1e9
        if span.kind == READ:
            more = Times(layer, layer, n_bytes=span.n_bytes)
        elif span.kind == WAIT:
            more = Times(layer, layer, feed_forward=-seconds, wait=seconds)
        else:
            reading = _overlap(busy, span.begin, span.end) / 1e9
            more = Times(layer, layer, reading=reading)
            if span.kind == ATTENTION:
                more += Times(layer, layer, attention=seconds)
            elif span.kind in (EMBEDDING, HEAD):
                more += Times(layer, layer, rest=seconds)
            else:
                more += Times(layer, layer, feed_forward=seconds)
        rows[layer] = rows[layer] + more if layer in rows else more
    return [rows[layer] for layer in sorted(rows)]


def in_groups(rows: Sequence[Times], most: int) -> list[Times]:
    """No more than ``most`` rows (at least 2): neighbouring layers added up where need be."""
    outer = [row for row in rows if row.last == NO_LAYER]
    layers = rows[len(outer) :]
    together = max(1, -(-len(layers) // max(1, most - len(outer))))
    groups = [added_up(layers[i : i + together]) for i in range(0, len(layers), together)]
    return [*outer, *groups]


def added_up(rows: Sequence[Times]) -> Times:
    """All of some rows, at least one."""
    total = rows[0]
    for row in rows[1:]:
        total += row
    return total


def token_seconds(recording: Recording) -> list[tuple[float, float]]:
    """For each decoded token the seconds of computing and of waiting."""
    waits = [span for span in recording.spans if span.kind == WAIT and span.lane == COMPUTING]
    seconds = []
    for one in recording.passes[1:]:
        waited = sum(span.end - span.begin for span in waits if one.begin <= span.begin < one.end)
        seconds.append((_seconds(one) - waited / 1e9, waited / 1e9))
    return seconds


def _seconds(one: Pass) -> float:
    return (one.end - one.begin) / 1e9


def _united(intervals: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """The same time as intervals that do not touch, in order."""
    united: list[tuple[int, int]] = []
    for begin, end in sorted(intervals):
        if united and begin <= united[-1][1]:
            united[-1] = united[-1][0], max(united[-1][1], end)
        else:
            united.append((begin, end))
    return united


def _overlap(united: list[tuple[int, int]], begin: int, end: int) -> int:
    return sum(max(0, min(end, e) - max(begin, b)) for b, e in united)
