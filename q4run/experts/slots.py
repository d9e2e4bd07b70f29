"""A bounded slab of RAM, cut into slots of one expert each, reused least-recently-used first."""

from collections import OrderedDict

import numpy as np

from q4run.huge_pages import empty_bytes

Key = tuple[int, int]  # layer, expert


class Slots:
    """Which expert is in which slot. Pinned slots are in use or being filled, and stay."""

    def __init__(self, n_slots: int, slot_bytes: int, n_layer: int, n_expert: int) -> None:
        self.n_slots = n_slots
        self._slot_bytes = slot_bytes
        self._bytes = empty_bytes(n_slots * slot_bytes)
        self._free = list(range(n_slots))[::-1]
        self._slot_of: OrderedDict[Key, int] = OrderedDict()  # least recently used first
        self._pinned: set[Key] = set()
        # For kernels: where each expert is that can be computed with, 0 for the others.
        self.addresses = np.zeros((n_layer, n_expert), np.int64)

    def pin(self, key: Key) -> bool:
        """Holds an expert in its slot and makes it the most recently used; False if it has none."""
        if key not in self._slot_of:
            return False
        self.touch(key)
        self._pinned.add(key)
        return True

    def touch(self, key: Key) -> None:
        """Makes a present expert the most recently used."""
        self._slot_of.move_to_end(key)

    def claim(self, key: Key) -> bool:
        """Gives an absent expert a slot, pinned; False while every slot is pinned."""
        if self._free:
            slot = self._free.pop()
        else:
            victim = next((held for held in self._slot_of if held not in self._pinned), None)
            if victim is None:
                return False
            slot = self._slot_of.pop(victim)
            self.addresses[victim] = 0
        self._slot_of[key] = slot
        self._pinned.add(key)
        return True

    def filled(self, key: Key) -> None:
        """The bytes of a claimed expert have all arrived."""
        self.addresses[key] = self._bytes.ctypes.data + self._slot_of[key] * self._slot_bytes

    def unpin(self, key: Key) -> None:
        """The expert may be evicted again."""
        self._pinned.discard(key)

    def discard(self, key: Key) -> None:
        """Frees the slot of an expert whose bytes did not arrive."""
        self._pinned.discard(key)
        self.addresses[key] = 0
        self._free.append(self._slot_of.pop(key))

    def bytes_of(self, key: Key) -> np.ndarray:
        """The slot of a present expert: uint8 (slot_bytes,)."""
        first = self._slot_of[key] * self._slot_bytes
        return self._bytes[first : first + self._slot_bytes]
