"""Whether memory has become short while a model runs: a lowered limit, or other programs."""

from __future__ import annotations

import time
from collections.abc import Callable

from q4run.machine.memory import reclaimable_headroom, total_memory

_EVERY_S = 1.0
# What is left to others at the least.
_RESERVE_BYTES = 256_000_000
_RESERVE_SHARE = 0.02


class MemoryWatch:
    """How many slots there is memory for: fewer as it becomes short, one more a second after."""

    def __init__(
        self,
        n_slots: int,
        slot_bytes: int,
        headroom: Callable[[], int] = reclaimable_headroom,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """n_slots: as many as there may ever be; headroom: the bytes that could still be taken."""
        self._most = n_slots
        self._slot_bytes = max(1, slot_bytes)
        self._headroom = headroom
        self._clock = clock
        self._next_s = clock() + _EVERY_S
        self._reserve = min(_RESERVE_BYTES, int(_RESERVE_SHARE * total_memory()))

    def slots_allowed(self, n_slots: int) -> int:
        """Of ``n_slots`` that there are now: how many to have instead. Looks once a second."""
        now = self._clock()
        if now < self._next_s:
            return n_slots
        self._next_s = now + _EVERY_S
        spare = self._headroom() - self._reserve
        if spare < 0:
            return max(min(1, n_slots), n_slots + spare // self._slot_bytes)
        if n_slots < self._most and spare > 2 * self._slot_bytes:
            return n_slots + 1
        return n_slots
