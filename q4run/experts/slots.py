"""A bounded slab of RAM, cut into slots of one expert each, given anew as a policy says."""

from collections.abc import Set

import numpy as np

from q4run.experts.policies import Key, Policy
from q4run.machine.huge_pages import empty_bytes, give_back


class Slots:
    """Which expert is in which slot. What is in use (pinned) or being filled stays."""

    def __init__(
        self, n_slots: int, slot_bytes: int, n_layer: int, n_expert: int, policy: Policy
    ) -> None:
        self.n_slots = n_slots
        self._slot_bytes = slot_bytes
        self._bytes = empty_bytes(n_slots * slot_bytes)
        self._free = list(range(n_slots))[::-1]
        self._given_back: list[int] = []
        self._policy = policy
        self._slot_of: dict[Key, int] = {}
        self._pinned: set[Key] = set()
        self._filling: set[Key] = set()
        # For kernels: where each expert is that can be computed with, 0 for the others.
        self.addresses = np.zeros((n_layer, n_expert), np.int64)

    def resize(self, n_slots: int) -> None:
        """Gives memory of slots back, or takes it again, until there are ``n_slots``, or as few
        as experts in use and on their way allow; no more than there were at first."""
        while self.n_slots > n_slots:
            if not self._free and not self._evict(self._pinned | self._filling):
                return
            slot = self._free.pop()
            first = slot * self._slot_bytes
            give_back(self._bytes, first, first + self._slot_bytes)
            self._given_back.append(slot)
            self.n_slots -= 1
        while self.n_slots < n_slots and self._given_back:
            self._free.append(self._given_back.pop())
            self.n_slots += 1

    def __contains__(self, key: Key) -> bool:
        """Whether the expert has a slot, be it there or on its way."""
        return key in self._slot_of

    def pin(self, key: Key) -> None:
        """Holds an expert in its slot."""
        self._pinned.add(key)

    def claim(self, key: Key, keep: Set[Key] = frozenset()) -> bool:
        """Gives an absent expert a slot, to be filled; False while there is none, other than those
        of the experts in ``keep``."""
        if not self._free and not self._evict(
            self._pinned | self._filling | (keep & self._slot_of.keys())
        ):
            return False
        self._policy.add(key)
        self._slot_of[key] = self._free.pop()
        self._filling.add(key)
        return True

    def filled(self, key: Key) -> None:
        """The bytes of a claimed expert have all arrived."""
        self._filling.discard(key)
        self.addresses[key] = self._bytes.ctypes.data + self._slot_of[key] * self._slot_bytes

    def unpin(self, key: Key) -> None:
        """The expert may be evicted again."""
        self._pinned.discard(key)

    def discard(self, key: Key) -> None:
        """Frees the slot of an expert whose bytes did not arrive."""
        self._pinned.discard(key)
        self._filling.discard(key)
        self._policy.remove(key)
        self.addresses[key] = 0
        self._free.append(self._slot_of.pop(key))

    def _evict(self, held: Set[Key]) -> bool:
        """Frees the slot of the expert that the policy names, none of ``held``; False without."""
        victim = self._policy.victim(held)
        if victim is None:
            return False
        self._policy.remove(victim)
        self.addresses[victim] = 0
        self._free.append(self._slot_of.pop(victim))
        return True

    def bytes_of(self, key: Key) -> np.ndarray:
        """The slot of a present expert: uint8 (slot_bytes,)."""
        first = self._slot_of[key] * self._slot_bytes
        return self._bytes[first : first + self._slot_bytes]
