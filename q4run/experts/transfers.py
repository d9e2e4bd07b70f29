"""Experts on their way from disk into their slots."""

from __future__ import annotations

import time
from collections.abc import Collection
from functools import partial
from queue import Empty

from q4run.disk.methods import ReadMethod
from q4run.disk.speed import MOST_READERS, PIECE_BYTES
from q4run.events import Events
from q4run.experts.counters import ExpertCounters
from q4run.experts.filling import Filler, Piece, cut_into_requests
from q4run.experts.layout import ExpertLayout
from q4run.experts.policies import Key
from q4run.experts.readers import Fill, Readers
from q4run.experts.slots import Slots
from q4run.timeline import COMPUTING, READ, WAIT, Span

# What keeps the readers busy until the next look at what has arrived.
_ENOUGH_EXPERTS = 4
_ENOUGH_READS = 2 * MOST_READERS
# A wait for the disk is looked up from this often.
_LOOK_UP_S = 0.1


class Transfers:
    """The threads that fill slots, and which expert has how much still to come."""

    def __init__(
        self,
        layout: ExpertLayout,
        slots: Slots,
        method: ReadMethod,
        n_readers: int,
        events: Events,
        counters: ExpertCounters,
    ) -> None:
        """``method`` is closed with this."""
        self._layout = layout
        self._slots = slots
        self._method = method
        self._filler = Filler(layout, method)
        self._readers = Readers(n_readers)
        self._events = events
        self._counters = counters
        self._fills: dict[Key, Fill] = {}
        self._failed: dict[Key, BaseException] = {}
        self._wait_began: int | None = None  # ``time.perf_counter_ns``
        self._reading_until = 0  # as that: the end of the last read that is counted

    def begin(self, key: Key, urgent: bool) -> None:
        """Begins to read an expert into the slot that it has just got."""
        layer, expert = key
        self._failed.pop(key, None)
        slot = self._slots.bytes_of(key)
        requests = cut_into_requests(self._layout.layers[layer], expert, slot)
        reads = [partial(self._filler.fill, batch) for batch in _batches(requests)]
        self._fills[key] = Fill(key, len(reads), urgent)
        self._readers.submit(self._fills[key], reads)

    def hurry(self, key: Key) -> bool:
        """Whether an expert that has a slot is still on its way; if so, it is waited for now."""
        fill = self._fills.get(key)
        if fill and not fill.urgent:
            self._readers.hurry(fill)
        return fill is not None

    def is_on_its_way(self, key: Key) -> bool:
        return key in self._fills

    def error_of(self, key: Key) -> BaseException | None:
        """Why the last attempt to read an expert failed, if it did."""
        return self._failed.get(key)

    @property
    def is_reading(self) -> bool:
        """Whether anything is on its way, asked for or not."""
        return bool(self._fills)

    @property
    def is_busy(self) -> bool:
        """Whether the readers have enough to do for some time."""
        n_reads = sum(fill.reads_left for fill in self._fills.values())
        return len(self._fills) >= _ENOUGH_EXPERTS and n_reads >= _ENOUGH_READS

    @property
    def is_waiting(self) -> bool:
        """Whether the computation stands still for reads now; may be asked from any thread."""
        return self._wait_began is not None

    def begin_wait(self) -> None:
        """The computation stands still from here on."""
        self._wait_began = time.perf_counter_ns()

    def end_wait(self, layer: int) -> None:
        """The computation of a layer goes on."""
        assert self._wait_began is not None
        begin, self._wait_began = self._wait_began, None
        end = time.perf_counter_ns()
        self._counters.wait_s += (end - begin) / 1e9
        if timeline := self._events.timeline:
            timeline.add(Span(WAIT, layer, COMPUTING, begin, end))

    def take_arrived(self) -> None:
        """Counts the reads that are over."""
        while not self._readers.arrived.empty():
            self.take_arrival()

    def take_arrival(self) -> None:
        """Counts one finished read, which is waited for; its expert may be complete with it."""
        waited = 0.0
        while True:
            try:
                arrival = self._readers.arrived.get(timeout=_LOOK_UP_S)
                break
            except Empty:
                waited += _LOOK_UP_S
                self._events.waiting(waited)
        fill = arrival.fill
        self._counters.bytes_read += arrival.amount.n_bytes
        self._counters.requests += arrival.amount.n_requests
        self._counters.read_s += (arrival.end - arrival.begin) / 1e9
        # Interleaving is no reading: it comes after each request, here as if after all of them.
        begin, end = arrival.begin, arrival.begin + arrival.amount.read_ns
        self._counters.reading_s += max(0, end - max(begin, self._reading_until)) / 1e9
        self._reading_until = max(end, self._reading_until)
        if timeline := self._events.timeline:
            layer, expert = fill.key
            lane = 1 + arrival.reader
            timeline.add(
                Span(READ, layer, lane, arrival.begin, arrival.end, expert, arrival.amount.n_bytes)
            )
        fill.error = fill.error or arrival.error
        fill.reads_left -= 1
        if fill.reads_left:
            return
        del self._fills[fill.key]
        if fill.error:
            self._failed[fill.key] = fill.error
            self._slots.discard(fill.key)
        else:
            self._slots.filled(fill.key)

    def cancel_one(self) -> bool:
        """Frees a slot: gives up the latest expert read ahead of which no read has begun. False
        where there is none."""
        for fill in reversed(list(self._fills.values())):
            if not fill.urgent and self._readers.cancel(fill):
                self._forget(fill)
                return True
        return False

    def abandon(self, layer: int, wanted: Collection[Key]) -> None:
        """Gives up what is read ahead of a layer, save what is wanted and reads under way."""
        for key, fill in list(self._fills.items()):
            if key[0] != layer or key in wanted or fill.urgent:
                continue
            n_forgotten = self._readers.take_back(fill)
            fill.reads_left -= n_forgotten
            if not fill.reads_left:
                self._forget(fill)
            elif n_forgotten:
                fill.error = fill.error or InterruptedError("given up")

    def close(self) -> None:
        """Ends the readers and closes the files; files whose reads do not return stay open."""
        if self._readers.close():
            self._method.close()

    def _forget(self, fill: Fill) -> None:
        del self._fills[fill.key]
        self._slots.discard(fill.key)


def _batches(requests: list[list[Piece]]) -> list[list[list[Piece]]]:
    """Requests in groups of about one full read: small ones do not cost a hand-over each."""
    batches: list[list[list[Piece]]] = [[]]
    filled = 0
    for request in requests:
        size = sum(piece.target.size for piece in request)
        if batches[-1] and filled + size > PIECE_BYTES:
            batches.append([])
            filled = 0
        batches[-1].append(request)
        filled += size
    return batches
