"""The experts of a model, brought from disk when the router asks for them, or before."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from q4run.disk.methods import ReadMethod
from q4run.disk.speed import N_READERS
from q4run.events import Events
from q4run.experts.counters import ExpertCounters
from q4run.experts.layout import ExpertLayout
from q4run.experts.policies import DEFAULT_CACHE, POLICIES
from q4run.experts.prediction import DEFAULT_PREFETCH, Prediction
from q4run.experts.read_ahead import ReadAhead
from q4run.experts.request import Request
from q4run.experts.slots import Slots
from q4run.experts.trace import TraceWriter
from q4run.experts.transfers import Transfers
from q4run.machine.memory_watch import MemoryWatch


class ExpertStore:
    """Slots, what fills them, and what was used. For one computing thread."""

    def __init__(
        self,
        layout: ExpertLayout,
        n_slots: int,
        method: ReadMethod,
        cache: str = DEFAULT_CACHE,
        prefetch: str = DEFAULT_PREFETCH,
        trace: TraceWriter | None = None,
        n_readers: int = N_READERS,
        events: Events | None = None,
    ) -> None:
        """cache: the name of the policy that says which expert leaves; prefetch: whether guesses
        are read (``Prediction``); trace: gets every use; events: gets waits, resizing and spans.
        ``method`` and ``trace`` are closed with the store."""
        self.layout = layout
        self.events = events or Events()
        self.counters = ExpertCounters()
        shape = max(layout.layers, default=-1) + 1, layout.n_expert
        # How often each expert of a layer was used: once for each batch of tokens it was used in.
        self.uses = {i: [0] * matrices[0].n_expert for i, matrices in layout.layers.items()}
        self._policy = POLICIES[cache](*shape)
        self.slots = Slots(n_slots, layout.slot_bytes, *shape, self._policy)
        self.prediction = Prediction("never" if self.holds_all else prefetch, shape[0])
        self.transfers = Transfers(
            layout, self.slots, method, n_readers, self.events, self.counters
        )
        self.ahead = ReadAhead(layout, self.slots, self.transfers, self.counters)
        self._trace = trace
        self._watch = MemoryWatch(n_slots, layout.slot_bytes)
        self._n_slots = self._room = n_slots  # planned, and how many memory has room for now
        self._n_lent = 0

    def addresses(self, layer: int) -> np.ndarray:
        """Where each expert of a layer is in RAM, 0 where it is not: int64 (n_expert,), which stays
        true as experts come and go. Its matrices are at their ``slot_offset``, interleaved."""
        addresses: np.ndarray = self.slots.addresses[layer]
        return addresses

    def request(self, layer: int, experts: Sequence[int]) -> Request:
        """Asks for experts of one layer; the reads of the missing ones leave at once."""
        self.ahead.forget(layer, [(layer, expert) for expert in experts])
        self.use(layer, experts)
        return Request(layer, experts, self.slots, self.transfers, self.ahead)

    @property
    def holds_all(self) -> bool:
        """Whether there is a slot for every expert of the model."""
        return self.slots.n_slots >= self.layout.n_experts

    @property
    def is_waiting(self) -> bool:
        """Whether the computation stands still for reads now; may be asked from any thread."""
        return self.transfers.is_waiting

    def begin_pass(self, n_tokens: int) -> None:
        """A batch of tokens goes through all layers from here on."""
        self._fit_into_memory()
        self.prediction.begin_pass(n_tokens)
        if self._trace:
            self._trace.begin_pass(n_tokens)

    def end_pass(self, n_tokens: int) -> None:
        """A batch has been through all layers."""
        self.prediction.end_pass(n_tokens)

    @contextmanager
    def lending(self, n_slots: int) -> Iterator[None]:
        """Does without ``n_slots`` inside the context: their memory serves something else."""
        self._n_lent = n_slots
        try:
            yield
        finally:
            self._n_lent = 0

    def use(self, layer: int, experts: Sequence[int]) -> None:
        """Counts and notes that a layer computes with these experts now, and tells the policy.
        Called by every request, and for experts that are used where they are, without one."""
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
            elif self.ahead.take(key):
                self.counters.misses += 1
                self.counters.read_ahead += 1
            else:
                self.counters.hits += 1

    def close(self) -> None:
        """Ends the readers and closes the files; files whose reads do not return stay open."""
        self.transfers.close()
        if self._trace:
            self._trace.close()

    def _fit_into_memory(self) -> None:
        before, self._room = self._room, self._watch.slots_allowed(self._room)
        self.slots.resize(max(1, min(self._room, self._n_slots - self._n_lent)))
        if self._room < before or before < self._room == self._n_slots:
            self.events.resized(self._room)
