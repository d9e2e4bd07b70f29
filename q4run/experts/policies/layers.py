"""The expert leaves that the layers' order and its own habits say is needed again last."""

from __future__ import annotations

from collections.abc import Sequence, Set

import numpy as np

from q4run.experts.policies import Key

# Measured on the routing of a trained Llama 4 (tiny) and on generated traces: passes that the
# averages go back, the share of the short one, and how much more a certain pass of waiting counts
# than an estimated one.
_LONG = 64.0
_SHORT = 2.0
_LENGTHS = np.array([[_LONG], [_SHORT]])
_KEPT, _ADDED = 1 - 1 / _LENGTHS, 1 / _LENGTHS
_RECENCY = 0.15
_CERTAINTY = 10.0
_MOST_PASSES = 1e9


class LayerOrder:
    """Evicts what is needed again last, by the layers' known order and each expert's habits.

    Layers run in a fixed order, so the one just run comes again last: Belady's rule with the part
    of the future that is certain. Prompts, which walk all experts in a cycle, thus keep a fixed
    part of them. What is uncertain, how many passes an expert will be left out, is estimated from
    two exponential averages of its use, a long one (frequency) and a short one (recency), as LRFU
    joins the two (D. Lee et al., IEEE Transactions on Computers 50(12), 2001).
    """

    def __init__(self, n_layer: int, n_expert: int) -> None:
        self._n_layer = n_layer
        self._layers = np.arange(n_layer)
        self._layer = n_layer - 1
        self._averages = np.zeros((n_layer, 2, n_expert))  # the long ones, the short ones
        self._passes_out = np.full((n_layer, n_expert), _MOST_PASSES)
        self._used_since: set[int] = set()  # layers whose passes out are not known any more
        self._is_resident = np.zeros((n_layer, n_expert), np.bool_)

    def use(self, layer: int, experts: Sequence[int]) -> None:
        self._layer = layer
        averages = self._averages[layer]
        averages *= _KEPT
        averages[:, experts] += _ADDED
        self._used_since.add(layer)

    def add(self, key: Key) -> None:
        self._is_resident[key] = True

    def remove(self, key: Key) -> None:
        self._is_resident[key] = False

    def victim(self, held: Set[Key]) -> Key | None:
        self._estimate_passes_out()
        layers_away = (self._layers - self._layer - 1) % self._n_layer + 1
        wait = self._passes_out + (_CERTAINTY / self._n_layer * layers_away)[:, np.newaxis]
        wait = np.where(self._is_resident, wait, -1.0)
        if held:
            layers, experts = zip(*held, strict=True)
            wait[layers, experts] = -1.0
        place = int(wait.argmax())
        if wait.flat[place] < 0:
            return None
        layer, expert = divmod(place, int(wait.shape[1]))
        return layer, expert

    def _estimate_passes_out(self) -> None:
        used = list(self._used_since)
        often, lately = self._averages[used].swapaxes(0, 1)
        chance = (1 - _RECENCY) * often + _RECENCY * lately
        self._passes_out[used] = 1 / np.maximum(chance, 1 / _MOST_PASSES) - 1
        self._used_since.clear()


make_policy = LayerOrder
