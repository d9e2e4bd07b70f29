"""The experts of a model, brought from disk when the router asks for them."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from threading import Barrier
from types import TracebackType

from q4run.errors import Error
from q4run.experts.layout import ALIGNMENT, ExpertLayout, ExpertMatrix
from q4run.experts.methods import ReadMethod
from q4run.experts.slots import Key, Slots
from q4run.weights import Matrix

# One read is at most this long: several threads share a large expert, one takes a small one whole.
_PIECE_BYTES = 2 << 20
_N_READERS = 8

Piece = tuple[Path, int, memoryview]  # file, offset, where the bytes go


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
        self.slots = Slots(n_slots, layout.slot_bytes)
        self._method = method
        self._readers = ThreadPoolExecutor(_N_READERS, thread_name_prefix="q4run-read")
        # All threads start now: where the system refuses one, no slot is half filled yet.
        everyone = Barrier(_N_READERS)
        for ready in [self._readers.submit(everyone.wait) for _ in range(_N_READERS)]:
            ready.result()

    def request(self, layer: int, experts: Sequence[int]) -> Request:
        """Asks for experts of one layer; the reads of the missing ones leave at once."""
        return Request(self, layer, experts)

    def read(self, key: Key, arrived: SimpleQueue[Arrival]) -> int:
        """Starts to fill a claimed slot; returns how many reads ``arrived`` will hear of."""
        pieces = self._pieces(key)
        batches = _batches(pieces)
        for batch in batches:
            future = self._readers.submit(self._read_pieces, batch)
            future.add_done_callback(lambda done: arrived.put((key, done)))
        self.counters.bytes_read += sum(len(target) for _, _, target in pieces)
        return len(batches)

    def matrices(self, key: Key) -> tuple[Matrix, Matrix, Matrix]:
        """Gate, up and down of an expert whose slot is filled."""
        layer, expert = key
        gate, up, down = (self._matrix(key, m, expert) for m in self.layout.layers[layer])
        return gate, up, down

    def close(self) -> None:
        self._readers.shutdown(wait=True, cancel_futures=True)
        self._method.close()

    def _matrix(self, key: Key, matrix: ExpertMatrix, expert: int) -> Matrix:
        place = matrix.place(expert)
        data = self.slots.bytes_of(key)[place : place + matrix.n_bytes]
        return Matrix(matrix.fmt, data.reshape(matrix.n_rows, matrix.row_bytes))

    def _pieces(self, key: Key) -> list[Piece]:
        """The reads that fill an expert's slot, widened to the method's alignment."""
        layer, expert = key
        slot = self.slots.bytes_of(key).data
        unit = self._method.alignment
        pieces = []
        for matrix in self.layout.layers[layer]:
            begin = matrix.begins(expert) // unit * unit
            end = -(-(matrix.begins(expert) + matrix.n_bytes) // unit) * unit
            place = matrix.slot_offset + begin % ALIGNMENT
            for first in range(begin, end, _PIECE_BYTES):
                length = min(_PIECE_BYTES, end - first)
                at = place + first - begin
                pieces.append((matrix.path, first, slot[at : at + length]))
        return pieces

    def _read_pieces(self, pieces: list[Piece]) -> float:
        """Runs on a reader thread; returns the seconds it took."""
        started = time.perf_counter()
        for path, offset, target in pieces:
            self._method.read(path, offset, target)
        return time.perf_counter() - started


Arrival = tuple[Key, "Future[float]"]


class Request:
    """Experts of one layer on their way: a context manager to be iterated once.

    Yields (expert, (gate, up, down)): first those in RAM, then the others as they arrive. An
    expert's matrices are valid until the next one is asked for. Where there are fewer free slots
    than missing experts, the rest is read as slots are used up, so any number of experts runs
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

    def __iter__(self) -> Iterator[tuple[int, tuple[Matrix, Matrix, Matrix]]]:
        for key in self._resident:
            yield key[1], self._store.matrices(key)
            self._release(key)
        while self._pieces_left:
            key = self._await_one()
            yield key[1], self._store.matrices(key)
            self._release(key)
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

    def _release(self, key: Key) -> None:
        self._held.discard(key)
        self._store.slots.unpin(key)
        self._start_reads()

    def _await_one(self) -> Key:
        """Waits until some expert is complete."""
        started = time.perf_counter()
        try:
            while True:
                key = self._take_arrival()
                if key in self._failed:
                    raise Error(f"an expert could not be read: {self._failed[key]}")
                if key not in self._pieces_left:
                    return key
        finally:
            self._store.counters.wait_s += time.perf_counter() - started

    def _take_arrival(self) -> Key:
        """Counts one finished read; its expert leaves ``_pieces_left`` with the last of them."""
        key, done = self._arrived.get()
        error = done.exception()
        if error is None:
            self._store.counters.read_s += done.result()
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
        if batches[-1] and filled + len(piece[2]) > _PIECE_BYTES:
            batches.append([])
            filled = 0
        batches[-1].append(piece)
        filled += len(piece[2])
    return batches
