"""Threads that read: first what the computation waits for, then what it may want soon."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from queue import SimpleQueue

from q4run.experts.filling import Amount
from q4run.experts.policies import Key

# How long a read may take when everything else is over.
_PATIENCE_S = 2.0

Read = Callable[[], Amount]


@dataclass(eq=False)
class Fill:
    """An expert on its way into its slot."""

    key: Key
    reads_left: int
    urgent: bool
    error: BaseException | None = None


@dataclass(frozen=True)
class Arrival:
    """A read that is over: what it belongs to, what it brought, the number of the thread, when it
    began and ended (``time.perf_counter_ns``), and why it failed."""

    fill: Fill
    amount: Amount
    reader: int
    begin: int
    end: int
    error: BaseException | None


class Readers:
    """``n_threads`` threads; what they have read is told in ``arrived``."""

    def __init__(self, n_threads: int) -> None:
        self.arrived: SimpleQueue[Arrival] = SimpleQueue()
        self._urgent: deque[tuple[Fill, Read]] = deque()
        self._ahead: deque[tuple[Fill, Read]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._threads: list[threading.Thread] = []
        try:
            for i in range(n_threads):
                thread = threading.Thread(
                    target=self._work, args=(i,), name=f"q4run-read-{i}", daemon=True
                )
                thread.start()
                self._threads.append(thread)
        except BaseException:
            self.close()
            raise

    def submit(self, fill: Fill, reads: Sequence[Read]) -> None:
        """Queues the reads of an expert, behind others of the same urgency."""
        with self._changed:
            queue = self._urgent if fill.urgent else self._ahead
            queue.extend((fill, read) for read in reads)
            self._changed.notify(len(reads))

    def hurry(self, fill: Fill) -> None:
        """What was read ahead is waited for now."""
        with self._changed:
            fill.urgent = True
            self._urgent.extend(self._take_queued(fill))

    def cancel(self, fill: Fill) -> bool:
        """Takes back an expert that is read ahead; False if some of it has been begun."""
        with self._changed:
            queued = self._take_queued(fill)
            if len(queued) == fill.reads_left:
                return True
            self._ahead.extendleft(reversed(queued))
            return False

    def take_back(self, fill: Fill) -> int:
        """Forgets the reads of an expert that have not been begun; returns how many."""
        with self._changed:
            return len(self._take_queued(fill))

    def close(self) -> bool:
        """Ends the threads: reads under way are finished, queued ones forgotten.

        False where a read has not returned within some seconds: its thread is left behind.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        end = time.perf_counter() + _PATIENCE_S
        for thread in self._threads:
            thread.join(max(0.0, end - time.perf_counter()))
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        return not self._threads

    def _take_queued(self, fill: Fill) -> list[tuple[Fill, Read]]:
        mine = [entry for entry in self._ahead if entry[0] is fill]
        if mine:
            self._ahead = deque(entry for entry in self._ahead if entry[0] is not fill)
        return mine

    def _work(self, number: int) -> None:
        while True:
            with self._changed:
                while not (self._urgent or self._ahead or self._closing):
                    self._changed.wait()
                if self._closing:
                    return
                fill, read = (self._urgent or self._ahead).popleft()
            begin = time.perf_counter_ns()
            amount, error = Amount(0, 0), None
            try:
                amount = read()
            except BaseException as problem:
                error = problem
            end = time.perf_counter_ns()
            self.arrived.put(Arrival(fill, amount, number, begin, end, error))
