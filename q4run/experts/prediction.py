"""Guesses of the next layer's experts, and whether reading them early is worth it.

The next layer's router, applied to the stream before this layer's experts are added to it, names
most of what that layer will want (A. Eliseev, D. Mazur, arXiv 2312.17238). A guess is read while
the disk has nothing better to do; a wrong one costs what of it is under way when the layer decides.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import numpy as np

# A guess is read if those like it were right at least this often.
_LIKELY = 0.5
# How far, in standard deviations of the logits, a guess leads what would not be used: the classes
# in which guesses are like each other.
_LEADS = np.array([0.1, 0.2, 0.4, 0.8])
# As if so many guesses had been right and made before the first, and the count beyond which old
# ones fade.
_RIGHT_BEFORE, _MADE_BEFORE = 2.0, 3.0
_MOST_COUNTED = 256.0

# Tokens for which it is done or left, so many times each at first; of later turns, every so many
# one is for what looked slower. How much the latest turn counts.
_TURN = 8
_FIRST_TURNS = 3
_EVERY = 16
_LATEST = 0.25


class Trial:
    """Whether something is faster done than left: tries both by turns, then mostly the better."""

    def __init__(self) -> None:
        self._seconds: dict[bool, float] = {}
        self._turns = 0
        self._tokens = 0
        self._spent = 0.0
        self.does_it = True

    def add(self, seconds: float) -> None:
        """What a token took as ``does_it`` said."""
        self._spent += seconds
        self._tokens += 1
        if self._tokens < _TURN:
            return
        latest = self._spent / self._tokens
        before = self._seconds.get(self.does_it, latest)
        self._seconds[self.does_it] = before + _LATEST * (latest - before)
        self._spent, self._tokens = 0.0, 0
        self._turns += 1
        self.does_it = self._next()

    def _next(self) -> bool:
        if self._turns < 2 * _FIRST_TURNS:
            return not self.does_it
        better = self._seconds[True] <= self._seconds[False]
        return better if self._turns % _EVERY else not better


class Prediction:
    """For a model's decoding: what is guessed of each layer, and how often that was right."""

    def __init__(
        self, mode: str, n_layer: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        """mode: ``always``, ``never``, or ``auto``, which goes by what a token takes with guesses
        and without."""
        self._mode = mode
        self._clock = clock
        self._trial = Trial()
        self._right = np.full((n_layer, len(_LEADS) + 1), _RIGHT_BEFORE)
        self._made = np.full((n_layer, len(_LEADS) + 1), _MADE_BEFORE)
        self._guesses: dict[int, list[tuple[int, int]]] = {}  # layer: expert and class of its lead
        self._began = 0.0
        self.is_on = False

    def begin_pass(self, n_tokens: int) -> None:
        """A pass begins: ``is_on`` tells whether to guess in it. Prompts need no guesses."""
        wanted = self._mode == "always" or (self._mode == "auto" and self._trial.does_it)
        self.is_on = wanted and n_tokens == 1
        self._guesses = {}
        self._began = self._clock()

    def end_pass(self, n_tokens: int) -> None:
        """The pass is over, with all its layers."""
        if self._mode == "auto" and n_tokens == 1:
            self._trial.add(self._clock() - self._began)

    def guess(self, layer: int, logits: np.ndarray, n_used: int) -> list[int]:
        """The experts of a layer that are likely enough to be read, the likeliest first.

        logits: float32 (n_expert,), of its router on an earlier state; n_used: of how many it uses.
        """
        order = np.argsort(-logits, kind="stable")
        chosen, next_best = order[:n_used], order[n_used : n_used + 1]
        spread = float(logits.std()) or 1.0
        leads = (logits[chosen] - logits[next_best]) / spread if len(next_best) else np.inf
        classes = np.searchsorted(_LEADS, np.broadcast_to(leads, chosen.shape))
        self._guesses[layer] = list(zip(chosen.tolist(), classes.tolist(), strict=True))
        chances = self._right[layer] / self._made[layer]
        return [expert for expert, lead in self._guesses[layer] if chances[lead] >= _LIKELY]

    def tell(self, layer: int, experts: Iterable[int]) -> None:
        """What a layer wants in fact."""
        wanted = set(experts)
        for expert, lead in self._guesses.pop(layer, ()):
            self._made[layer, lead] += 1
            self._right[layer, lead] += expert in wanted
            if self._made[layer, lead] > _MOST_COUNTED:
                self._made[layer, lead] /= 2
                self._right[layer, lead] /= 2
