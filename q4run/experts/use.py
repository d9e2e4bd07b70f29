"""How often each expert was used, and which are in RAM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from q4run.experts.store import ExpertStore


@dataclass(frozen=True)
class ExpertUse:
    """How often each expert was used, -1 where a layer has no such expert, and which are in RAM:
    int64 and bool, (len(layers), most experts of a layer)."""

    layers: Sequence[int]
    counts: np.ndarray
    in_ram: np.ndarray

    def since(self, earlier: ExpertUse) -> ExpertUse:
        """Counts only what was used after ``earlier``, of the same model."""
        counts = np.where(self.counts < 0, -1, self.counts - earlier.counts)
        return ExpertUse(self.layers, counts, self.in_ram)


def expert_use(store: ExpertStore) -> ExpertUse | None:
    """What a store has seen so far and holds now; None without experts."""
    layers = list(store.uses)
    if not layers:
        return None
    in_ram = np.stack([store.addresses(layer) != 0 for layer in layers])
    return ExpertUse(layers, _padded(store.uses), in_ram)


def _padded(uses: Mapping[int, Sequence[int]]) -> np.ndarray:
    longest = max(map(len, uses.values()))
    rows = [[*counts, *[-1] * (longest - len(counts))] for counts in uses.values()]
    return np.array(rows, np.int64).reshape(len(rows), longest)
