"""Which expert leaves when a slot is wanted: policies, a file each, under its ``--cache`` name.

A file holds a function ``make_policy``. ``bench/measure/cache.py`` replays recorded routing against
all of them, with the optimum beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Protocol

from q4run.registry import Registry

Key = tuple[int, int]  # layer, expert


class Policy(Protocol):
    """Told of every request and of every expert that comes and goes; names the next to go."""

    def use(self, layer: int, experts: Sequence[int]) -> None:
        """A layer wants these experts now, in RAM or not: once per request, before its victims."""

    def add(self, key: Key) -> None:
        """An expert has got a slot, wanted or read ahead."""

    def remove(self, key: Key) -> None:
        """An expert has lost its slot: as a victim, or because its bytes did not arrive."""

    def victim(self, held: Set[Key]) -> Key | None:
        """Who is to go next, none of ``held``; None where all are. It stays until ``remove``."""


POLICIES: Mapping[str, Callable[[int, int], Policy]] = Registry(__name__, "make_policy")
"""By name: makes the policy of a model of so many layers, with so many experts in one at most."""
DEFAULT_CACHE = "layers"
