"""Experts that are read before they are asked for, and how they make way for those that are."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable

from q4run.experts.counters import ExpertCounters
from q4run.experts.layout import ExpertLayout
from q4run.experts.policies import Key
from q4run.experts.slots import Slots
from q4run.experts.transfers import Transfers

# How many experts may be read before they are asked for: these, twice as many where there are slots
# enough, and of small ones as many as keep a fast disk busy while a layer is computed. The other
# slots hold what is used again.
_FEW_AHEAD = 4
_AHEAD_BYTES = 256 << 20


class ReadAhead:
    """What is expected, what of it has a slot, and who gets the next slot."""

    def __init__(
        self, layout: ExpertLayout, slots: Slots, transfers: Transfers, counters: ExpertCounters
    ) -> None:
        self._layout = layout
        self._slots = slots
        self._transfers = transfers
        self._counters = counters
        self._expected: deque[Key] = deque()  # likely to be asked for, and still without a slot
        self._unused: set[Key] = set()  # read ahead, and not asked for so far

    def expect(self, keys: Iterable[Key]) -> None:
        """Experts that are likely to be asked for, the likeliest or next first. They are read
        once a request has slots for all that it misses: after all that is waited for, and into
        slots that nothing expected or in use is in."""
        self._expected = deque(keys)

    def expect_layers_after(self, layer: int) -> None:
        """Expects every expert of the layers after one, as a long prompt wants them."""
        later = [n for n in self._layout.layers if n > layer]
        self.expect((n, e) for n in later for e in range(self._layout.layers[n][0].n_expert))

    @property
    def is_short_of_slots(self) -> bool:
        """Whether more is expected than may be read so far: slots are wanted back soon."""
        return bool(self._expected)

    def go_on(self) -> None:
        """Goes on with what is expected, as far as there are slots."""
        self._transfers.take_arrived()
        self._unused = {key for key in self._unused if key in self._slots}
        while self._expected:
            key = self._expected[0]
            if key not in self._slots:
                if len(self._unused) >= self._most:
                    return
                if not self._slots.claim(key, keep=self._unused):
                    return
                self._unused.add(key)
                self._counters.begun_ahead += 1
                self._transfers.begin(key, urgent=False)
            self._expected.popleft()

    def forget(self, layer: int, wanted: Collection[Key]) -> None:
        """A layer has said what it wants: what else was expected of it is not read any more, and
        what has been read of it leaves like any other."""
        self._transfers.take_arrived()
        self._expected = deque(key for key in self._expected if key[0] != layer)
        self._unused = {key for key in self._unused if key[0] != layer or key in wanted}
        self._transfers.abandon(layer, wanted)

    def begin_wanted(self, key: Key) -> bool:
        """Begins to read an absent expert that is wanted now; False while there is no slot."""
        while not self._slots.claim(key, keep=self._unused):
            if self._transfers.cancel_one():
                continue
            if not self._slots.claim(key):
                return False
            break
        self._unused.discard(key)
        self._transfers.begin(key, urgent=True)
        return True

    def take(self, key: Key) -> bool:
        """Whether an expert that is used now was read ahead for this."""
        if key not in self._unused:
            return False
        self._unused.discard(key)
        return True

    @property
    def _most(self) -> int:
        """How many experts may be read and still unused at once."""
        n_slots = self._slots.n_slots
        by_bytes = _AHEAD_BYTES // max(self._layout.slot_bytes, 1)
        enough = max(2 * _FEW_AHEAD, min(by_bytes, n_slots // 8))
        return max(_FEW_AHEAD, min(enough, n_slots // 3))
