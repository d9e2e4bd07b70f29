"""Experts of one layer on their way, for the computation to take as they arrive."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType

from q4run.errors import Error
from q4run.experts.policies import Key
from q4run.experts.read_ahead import ReadAhead
from q4run.experts.slots import Slots
from q4run.experts.transfers import Transfers


class Request:
    """Experts of one layer on their way: a context manager to be iterated once.

    Yields lists of experts: first those in RAM (perhaps none), then the others as they arrive. A
    list's experts stay where they are until the next list is asked for. Where there are fewer free
    slots than missing experts, the rest is read as slots are used up, so any number of experts runs
    through a single slot. Leaving the context waits for reads under way, whatever happened; only
    Ctrl-C leaves them to arrive later.
    """

    def __init__(
        self,
        layer: int,
        experts: Sequence[int],
        slots: Slots,
        transfers: Transfers,
        ahead: ReadAhead,
    ) -> None:
        self._slots = slots
        self._transfers = transfers
        self._ahead = ahead
        self._layer = layer
        keys = [(layer, expert) for expert in experts]
        present = [key for key in keys if key in slots]
        for key in present:
            slots.pin(key)
        self._held = set(present)
        self._awaited = [key for key in present if transfers.hurry(key)]
        self._joined = set(self._awaited)
        self._resident = [key for key in present if key not in self._joined]
        self._missing = [key for key in reversed(keys) if key not in self._held]
        self._start_reads()

    def __enter__(self) -> Request:
        return self

    def __iter__(self) -> Iterator[list[int]]:
        ready = self._resident
        while True:
            some = -(-len(ready) // 4)
            while self._ahead.is_short_of_slots and len(ready) > some:
                yield [expert for _, expert in ready[:some]]
                self._release(ready[:some])
                ready = ready[some:]
            yield [expert for _, expert in ready]
            self._release(ready)
            ready = self._await_some()
            if not ready:
                break
        if self._missing:
            raise RuntimeError("no slot for an expert: another request holds them all")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if kind is None or not issubclass(kind, KeyboardInterrupt):
                while any(map(self._transfers.is_on_its_way, self._awaited)):
                    self._transfers.take_arrival()
        finally:
            for key in self._held:
                self._slots.unpin(key)

    def _start_reads(self) -> None:
        # No more than the disk needs: each slot that is taken too early is an expert less.
        while self._missing and not (self._awaited and self._transfers.is_busy):
            if not self._ahead.begin_wanted(self._missing[-1]):
                break
            key = self._missing.pop()
            self._slots.pin(key)
            self._held.add(key)
            self._awaited.append(key)
        if not self._missing:
            self._ahead.go_on()

    def _release(self, keys: Sequence[Key]) -> None:
        for key in keys:
            self._held.discard(key)
            self._slots.unpin(key)
        self._start_reads()

    def _await_some(self) -> list[Key]:
        """Waits until some expert is complete; takes what else has arrived by then. Empty where
        nothing is on its way that could be, or make room for, a missing one."""
        self._transfers.begin_wait()
        try:
            self._transfers.take_arrived()
            self._start_reads()
            while not (complete := self._take_complete()):
                if not (self._awaited or (self._missing and self._transfers.is_reading)):
                    return []
                self._transfers.take_arrival()
                self._start_reads()
            return complete
        finally:
            self._transfers.end_wait(self._layer)

    def _take_complete(self) -> list[Key]:
        over = [key for key in self._awaited if not self._transfers.is_on_its_way(key)]
        self._awaited = [key for key in self._awaited if key not in over]
        for key in over:
            error = self._transfers.error_of(key)
            if error and key not in self._joined:
                raise Error(f"an expert could not be read: {error}")
        failed = [key for key in over if self._transfers.error_of(key)]
        if failed:
            # They were read ahead, perhaps long ago: now is the time that counts.
            self._joined.difference_update(failed)
            self._held.difference_update(failed)
            self._missing += failed
            self._start_reads()
        return [key for key in over if key not in failed]
