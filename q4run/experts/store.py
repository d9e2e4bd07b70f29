"""The experts of a model, brought from disk when the router asks for them, or before."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from queue import Empty

import numpy as np

from q4run.disk.methods import ReadMethod
from q4run.disk.speed import MOST_READERS, N_READERS, PIECE_BYTES
from q4run.experts.filling import Filler, Piece, cut_into_pieces
from q4run.experts.layout import ExpertLayout
from q4run.experts.policies import DEFAULT_CACHE, POLICIES, Key
from q4run.experts.prediction import Prediction
from q4run.experts.prefetch import DEFAULT_PREFETCH
from q4run.experts.readers import Fill, Readers
from q4run.experts.request import Request
from q4run.experts.slots import Slots
from q4run.experts.trace import TraceWriter
from q4run.machine.memory_watch import MemoryWatch
from q4run.timeline import READ, Span, Timeline

# How many experts may be read before they are asked for: these, twice as many where there are slots
# enough, and of small ones as many as keep a fast disk busy while a layer is computed. The other
# slots hold what is used again.
_FEW_AHEAD = 4
_AHEAD_BYTES = 256 << 20
# What keeps the readers busy until the next look at what has arrived.
_ENOUGH_EXPERTS = 4
_ENOUGH_READS = 2 * MOST_READERS
# A wait for the disk is looked up from so often.
_LOOK_UP_S = 0.1


@dataclass
class ExpertCounters:
    """What the store has done since it was made.

    read_s adds up over the reader threads; wait_s is the time that the computation stood still.
    Of the misses, read_ahead were on their way, or there, before they were asked for; begun_ahead
    counts all that were begun so, the vain ones included.
    """

    hits: int = 0
    misses: int = 0
    read_ahead: int = 0
    begun_ahead: int = 0
    bytes_read: int = 0
    read_s: float = 0.0
    wait_s: float = 0.0


class ExpertStore:
    """Slots, the threads that fill them, and the counters. For one computing thread."""

    def __init__(
        self,
        layout: ExpertLayout,
        n_slots: int,
        method: ReadMethod,
        cache: str = DEFAULT_CACHE,
        prefetch: str = DEFAULT_PREFETCH,
        trace: TraceWriter | None = None,
        n_readers: int = N_READERS,
    ) -> None:
        """cache: the name of the policy that says which expert leaves; prefetch: whether guesses
        are read (``Prediction``); trace: hears of every use; both ``method`` and ``trace`` are
        closed with the store."""
        self.counters = ExpertCounters()
        # Told, while a read is waited for, for how many seconds already; what it raises ends that.
        self.while_waiting: Callable[[float], None] = lambda seconds: None
        self.is_waiting = False  # whether the computation stands still for reads at this moment
        self.timeline: Timeline | None = None
        self.layout = layout
        shape = max(layout.layers, default=-1) + 1, layout.n_expert
        # How often each expert of a layer was used: once for each batch of tokens it was used in.
        self.uses = {i: [0] * matrices[0].n_expert for i, matrices in layout.layers.items()}
        self._policy = POLICIES[cache](*shape)
        self.slots = Slots(n_slots, layout.slot_bytes, *shape, self._policy)
        self.prediction = Prediction("never" if self.holds_all else prefetch, shape[0])
        self._trace = trace
        self._watch = MemoryWatch(n_slots, layout.slot_bytes)
        self._n_slots = self._room = n_slots  # planned, and how many memory has room for now
        self._n_lent = 0
        # Told how many slots there are when they have become fewer, and when all are back.
        self.on_resize: Callable[[int], None] = lambda n_slots: None
        self._method = method
        self._filler = Filler(layout, method)
        self._readers = Readers(n_readers)
        self._fills: dict[Key, Fill] = {}
        self._failed: dict[Key, BaseException] = {}
        self._expected: deque[Key] = deque()  # likely to be asked for, and still without a slot
        self._unused: set[Key] = set()  # read ahead, and not asked for so far

    def addresses(self, layer: int) -> np.ndarray:
        """Where each expert of a layer is in RAM, 0 where it is not: int64 (n_expert,), which stays
        true as experts come and go. Its matrices are at their ``slot_offset``, interleaved."""
        addresses: np.ndarray = self.slots.addresses[layer]
        return addresses

    def request(self, layer: int, experts: Sequence[int]) -> Request:
        """Asks for experts of one layer; the reads of the missing ones leave at once."""
        return Request(self, layer, experts)

    def expect(self, keys: Iterable[Key]) -> None:
        """Experts that are likely to be asked for, the likeliest or next first. They are read
        once a request has slots for all that it misses: after all that is waited for, and into
        slots that nothing expected or in use is in."""
        self._expected = deque(keys)

    def expect_layers_after(self, layer: int) -> None:
        """Expects every expert of the layers after one, as a long prompt wants them."""
        later = [n for n in self.layout.layers if n > layer]
        self.expect((n, e) for n in later for e in range(self.layout.layers[n][0].n_expert))

    @property
    def _most_ahead(self) -> int:
        by_bytes = _AHEAD_BYTES // max(self.layout.slot_bytes, 1)
        enough = max(2 * _FEW_AHEAD, min(by_bytes, self.slots.n_slots // 8))
        return max(_FEW_AHEAD, min(enough, self.slots.n_slots // 3))

    @property
    def holds_all(self) -> bool:
        """Whether there is a slot for every expert of the model."""
        return self.slots.n_slots >= self.layout.n_experts

    @property
    def is_short_of_slots(self) -> bool:
        """Whether more is expected than may be read so far: slots are wanted back soon."""
        return bool(self._expected)

    def read_ahead(self) -> None:
        """Goes on with what is expected, as far as there are slots."""
        self.take_arrived()
        self._unused = {key for key in self._unused if key in self.slots}
        while self._expected:
            key = self._expected[0]
            if key not in self.slots:
                if len(self._unused) >= self._most_ahead:
                    return
                if not self.slots.claim(key, keep=self._unused):
                    return
                self._unused.add(key)
                self.counters.begun_ahead += 1
                self._read(key, urgent=False)
            self._expected.popleft()

    def forget_expected(self, layer: int, wanted: Collection[Key]) -> None:
        """A layer has said what it wants: what else was expected of it is not read any more, and
        what has been read of it leaves like any other."""
        self.take_arrived()
        self._expected = deque(key for key in self._expected if key[0] != layer)
        self._unused = {key for key in self._unused if key[0] != layer or key in wanted}
        for key, fill in list(self._fills.items()):
            if key[0] == layer and key not in wanted and not fill.urgent:
                self._abandon(fill)

    def start(self, key: Key) -> bool:
        """Begins to read an absent expert that is wanted now; False while there is no slot."""
        while not self.slots.claim(key, keep=self._unused):
            if any(self._cancel(fill) for fill in reversed(list(self._fills.values()))):
                continue
            if not self.slots.claim(key):
                return False
            break
        self._unused.discard(key)
        self._read(key, urgent=True)
        return True

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

    def begin_pass(self, n_tokens: int) -> None:
        """A batch of tokens goes through all layers from here on."""
        self._fit_into_memory()
        self.prediction.begin_pass(n_tokens)
        if self._trace:
            self._trace.begin_pass(n_tokens)

    @contextmanager
    def lending(self, n_slots: int) -> Iterator[None]:
        """Does without so many slots inside the context: their memory serves something else."""
        self._n_lent = n_slots
        try:
            yield
        finally:
            self._n_lent = 0

    def end_pass(self, n_tokens: int) -> None:
        """A batch has been through all layers."""
        self.prediction.end_pass(n_tokens)

    def use(self, layer: int, experts: Sequence[int]) -> None:
        """A layer computes with these experts now: counted, noted, and known to the policy. Told of
        by every request, and for experts that are used where they are, without one."""
        self._policy.use(layer, experts)
        self.prediction.tell(layer, experts)
        if self._trace:
            self._trace.layer(layer, experts)
        uses = self.uses[layer]
        for expert in experts:
            uses[expert] += 1
            key = (layer, expert)
            if key not in self.slots:
                self.counters.misses += 1
            elif key in self._unused:
                self._unused.discard(key)
                self.counters.misses += 1
                self.counters.read_ahead += 1
            else:
                self.counters.hits += 1

    @property
    def is_reading(self) -> bool:
        """Whether anything is on its way, asked for or not."""
        return bool(self._fills)

    @property
    def is_busy(self) -> bool:
        """Whether the readers have enough to do for some time."""
        n_reads = sum(fill.reads_left for fill in self._fills.values())
        return len(self._fills) >= _ENOUGH_EXPERTS and n_reads >= _ENOUGH_READS

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
                self.while_waiting(waited)
        fill = arrival.fill
        self.counters.bytes_read += arrival.n_bytes
        self.counters.read_s += (arrival.end - arrival.begin) / 1e9
        if self.timeline:
            layer, expert = fill.key
            lane = 1 + arrival.reader
            self.timeline.add(
                Span(READ, layer, lane, arrival.begin, arrival.end, expert, arrival.n_bytes)
            )
        fill.error = fill.error or arrival.error
        fill.reads_left -= 1
        if fill.reads_left:
            return
        del self._fills[fill.key]
        if fill.error:
            self._failed[fill.key] = fill.error
            self.slots.discard(fill.key)
        else:
            self.slots.filled(fill.key)

    def close(self) -> None:
        """Ends the readers and lets go of the files; of those that do not answer, not."""
        if self._readers.close():
            self._method.close()
        if self._trace:
            self._trace.close()

    def _fit_into_memory(self) -> None:
        before, self._room = self._room, self._watch.slots_allowed(self._room)
        self.slots.resize(max(1, min(self._room, self._n_slots - self._n_lent)))
        if self._room < before or before < self._room == self._n_slots:
            self.on_resize(self._room)

    def _read(self, key: Key, urgent: bool) -> None:
        layer, expert = key
        self._failed.pop(key, None)
        slot = self.slots.bytes_of(key)
        matrices = self.layout.layers[layer]
        pieces = [piece for m in matrices for piece in cut_into_pieces(m, expert, slot)]
        reads = [partial(self._fill_pieces, batch) for batch in _batches(pieces)]
        self._fills[key] = Fill(key, len(reads), urgent)
        self._readers.submit(self._fills[key], reads)

    def _cancel(self, fill: Fill) -> bool:
        """Gives up what is read ahead, if none of it has been begun."""
        if fill.urgent or not self._readers.cancel(fill):
            return False
        del self._fills[fill.key]
        self.slots.discard(fill.key)
        return True

    def _abandon(self, fill: Fill) -> None:
        """Gives up what is read ahead, unless all of it has been begun."""
        n_forgotten = self._readers.take_back(fill)
        fill.reads_left -= n_forgotten
        if not fill.reads_left:
            del self._fills[fill.key]
            self.slots.discard(fill.key)
        elif n_forgotten:
            fill.error = fill.error or InterruptedError("given up")

    def _fill_pieces(self, pieces: list[Piece]) -> int:
        """Runs on a reader thread; returns the bytes it read."""
        return sum(self._filler.fill(piece) for piece in pieces)


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
