"""The experts of a model, brought from disk when the router asks for them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Barrier
from types import TracebackType

import numpy as np

from q4run.errors import Error
from q4run.experts.filling import N_READERS, PIECE_BYTES, Filler, Piece, cut_into_pieces
from q4run.experts.layout import ExpertLayout
from q4run.experts.methods import ReadMethod
from q4run.experts.slots import Key, Slots


@dataclass
class ExpertCounters:
    """What the store has done since it was made.

    read_s adds up over the reader threads; wait_s is the time that the computation stood still.
    """

    hits: int = 0
    misses: int = 0
    bytes_read: int = 0
    read_s: float = 0.0
    wait_s: float = 0.0


class ExpertStore:
    """Slots, the threads that fill them, and the counters."""

    def __init__(self, layout: ExpertLayout, n_slots: int, method: ReadMethod) -> None:
        self.counters = ExpertCounters()
        self.layout = layout
        n_layer = max(layout.layers, default=-1) + 1
        self.slots = Slots(n_slots, layout.slot_bytes, n_layer, layout.n_expert)
        self._method = method
        self._filler = Filler(layout, method)
        self._readers = ThreadPoolExecutor(N_READERS, thread_name_prefix="q4run-read")
        # All threads start now: where the system refuses one, no slot is half filled yet.
        everyone = Barrier(N_READERS)
        for ready in [self._readers.submit(everyone.wait) for _ in range(N_READERS)]:
            ready.result()

    def request(self, layer: int, experts: Sequence[int]) -> Request:
        """Asks for experts of one layer; the reads of the missing ones leave at once."""
        return Request(self, layer, experts)

    def addresses(self, layer: int) -> np.ndarray:
        """Where each expert of a layer is in RAM, 0 where it is not: int64 (n_expert,), which stays
        true as experts come and go. Its matrices are at their ``slot_offset``, interleaved."""
        return self.slots.addresses[layer]

    def count_hits(self, layer: int, experts: Sequence[int]) -> None:
        """Tells of experts that were used where they were, without a request."""
        self.counters.hits += len(experts)
        for expert in experts:
            self.slots.touch((layer, expert))

    def read(self, key: Key, arrived: SimpleQueue[Arrival]) -> int:
        """Starts to fill a claimed slot; returns how many reads ``arrived`` will hear of."""
        layer, expert = key
        slot = self.slots.bytes_of(key)
        matrices = self.layout.layers[layer]
        pieces = [piece for m in matrices for piece in cut_into_pieces(m, expert, slot)]
        batches = _batches(pieces)
        for batch in batches:
            future = self._readers.submit(self._fill_pieces, batch)
            future.add_done_callback(lambda done: arrived.put((key, done)))
        return len(batches)

    def close(self) -> None:
        self._readers.shutdown(wait=True, cancel_futures=True)
        self._method.close()

    def _fill_pieces(self, pieces: list[Piece]) -> tuple[int, float]:
        """Runs on a reader thread; returns the bytes it read and the seconds it took."""
        started = time.perf_counter()
        n_bytes = sum(self._filler.fill(piece) for piece in pieces)
        return n_bytes, time.perf_counter() - started


Arrival = tuple[Key, "Future[tuple[int, float]]"]


class Request:
    """Experts of one layer on their way: a context manager to be iterated once.

    Yields lists of experts: first those in RAM (perhaps none), then the others as they arrive. A
    list's experts stay where they are until the next list is asked for. Where there are fewer free
    slots than missing experts, the rest is read as slots are used up, so any number of experts runs
    through a single slot. Leaving the context waits for reads under way, whatever happened.
    """

    def __init__(self, store: ExpertStore, layer: int, experts: Sequence[int]) -> None:
        self._store = store
        self._layer = layer
        self._arrived: SimpleQueue[Arrival] = SimpleQueue()
        self._pieces_left: dict[Key, int] = {}
        self._failed: dict[Key, BaseException] = {}
        keys = [(layer, expert) for expert in experts]
        self._held = {key for key in keys if store.slots.pin(key)}
        self._resident = [key for key in keys if key in self._held]
        self._missing = [key for key in reversed(keys) if key not in self._held]
        store.counters.hits += len(self._resident)
        store.counters.misses += len(self._missing)
        self._start_reads()

    def __enter__(self) -> Request:
        return self

    def __iter__(self) -> Iterator[list[int]]:
        ready = self._resident
        while True:
            yield [expert for _, expert in ready]
            self._release(ready)
            if not self._pieces_left:
                break
            ready = self._await_some()
        if self._missing:
            raise RuntimeError("no slot for an expert: another request holds them all")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        unfinished = set(self._pieces_left)
        while self._pieces_left:
            self._take_arrival()
        for key in unfinished | set(self._failed):
            self._store.slots.discard(key)
            self._held.discard(key)
        for key in self._held:
            self._store.slots.unpin(key)

    def _start_reads(self) -> None:
        while self._missing and self._store.slots.claim(self._missing[-1]):
            key = self._missing.pop()
            self._held.add(key)
            self._pieces_left[key] = self._store.read(key, self._arrived)

    def _release(self, keys: Sequence[Key]) -> None:
        for key in keys:
            self._held.discard(key)
            self._store.slots.unpin(key)
        self._start_reads()

    def _await_some(self) -> list[Key]:
        """Waits until some expert is complete; takes what else has arrived by then."""
        started = time.perf_counter()
        complete: list[Key] = []
        try:
            while not complete or not self._arrived.empty():
                key = self._take_arrival()
                if key in self._failed:
                    raise Error(f"an expert could not be read: {self._failed[key]}")
                if key not in self._pieces_left:
                    self._store.slots.filled(key)
                    complete.append(key)
            return complete
        finally:
            self._store.counters.wait_s += time.perf_counter() - started

    def _take_arrival(self) -> Key:
        """Counts one finished read; its expert leaves ``_pieces_left`` with the last of them."""
        key, done = self._arrived.get()
        error = done.exception()
        if error is None:
            n_bytes, seconds = done.result()
            self._store.counters.bytes_read += n_bytes
            self._store.counters.read_s += seconds
        else:
            self._failed[key] = error
        self._pieces_left[key] -= 1
        if not self._pieces_left[key]:
            del self._pieces_left[key]
        return key


def _batches(pieces: list[Piece]) -> list[list[Piece]]:
    """Pieces in groups of about one full read: small ones do not cost a hand-over each."""
    batches: list[list[Piece]] = [[]]
    filled = 0
    for piece in pieces:
        if batches[-1] and filled + piece.target.size > PIECE_BYTES:
            batches.append([])
            filled = 0
        batches[-1].append(piece)
        filled += piece.target.size
    return batches
