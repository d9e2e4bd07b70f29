"""The least recently used expert leaves."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence, Set

from q4run.experts.policies import Key


class LeastRecentlyUsed:
    """The baseline. Hits nothing where more experts are walked in a cycle than there are slots."""

    def __init__(self) -> None:
        self._order: OrderedDict[Key, None] = OrderedDict()  # least recently used first

    def use(self, layer: int, experts: Sequence[int]) -> None:
        for expert in experts:
            if (layer, expert) in self._order:
                self._order.move_to_end((layer, expert))

    def add(self, key: Key) -> None:
        self._order[key] = None

    def remove(self, key: Key) -> None:
        del self._order[key]

    def victim(self, held: Set[Key]) -> Key | None:
        return next((key for key in self._order if key not in held), None)


def make_policy(n_layer: int, n_expert: int) -> LeastRecentlyUsed:
    """Makes the policy, the same for models of all sizes."""
    return LeastRecentlyUsed()
