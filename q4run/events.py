"""What a model tells while it works: waits for the disk, memory that becomes short, spans of time.

One object for a model. It is made first and given to the parts, which call it; whoever watches the
model registers here, at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from q4run.machine.interrupts import safe_points
from q4run.timeline import Timeline


class Events:
    """For one computing thread: all is called on it."""

    def __init__(self) -> None:
        self._on_wait: Callable[[float], None] = lambda seconds: None
        self._on_resize: Callable[[int], None] = lambda n_slots: None
        self._check_interrupt: Callable[[], None] = lambda: None
        self._timeline: Timeline | None = None

    @property
    def timeline(self) -> Timeline | None:
        """Where spans go; None unless someone records."""
        return self._timeline

    @contextmanager
    def recording(self) -> Iterator[Timeline]:
        """Records where the time goes, as long as the context lasts."""
        timeline = self._timeline = Timeline()
        try:
            yield timeline
        finally:
            self._timeline = None

    def tell_of_waits(self, listener: Callable[[float], None]) -> None:
        """Calls ``listener`` ten times a second during a wait for a read, with the seconds so far.

        An exception that it raises ends the wait.
        """
        self._on_wait = listener

    def tell_of_slots(self, listener: Callable[[int], None]) -> None:
        """Calls ``listener`` with the number of experts that memory has room for: when it falls,
        and when it is back at what was planned."""
        self._on_resize = listener

    @contextmanager
    def safe_points(self) -> Iterator[Callable[[], None]]:
        """Holds Ctrl-C back as ``machine.interrupts.safe_points`` does; each look up from a wait
        for the disk is a safe point too."""
        with safe_points() as check:
            self._check_interrupt = check
            try:
                yield check
            finally:
                self._check_interrupt = lambda: None

    def waiting(self, seconds: float) -> None:
        """Says that a read has been waited for that long. Raises what ends the wait."""
        self._check_interrupt()
        self._on_wait(seconds)

    def resized(self, n_slots: int) -> None:
        """Says that memory has room for that many experts now."""
        self._on_resize(n_slots)
