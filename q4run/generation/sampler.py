"""The next token from the logits: penalty, filters, temperature, draw.

The order is llama.cpp's default (``common/common.h``): repetition penalty, top-k, top-p, min-p,
then temperature. So top-p and min-p judge the model's own probabilities, and a high temperature
only flattens what they left. At temperature 0 the best token after the penalty is taken.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral, Real

import numpy as np

from q4run.errors import Error
from q4run.kernels.sampling.choose import choose
from q4run.kernels.sampling.weights import weight_bits


@dataclass(frozen=True)
class SamplingParameters:
    """How to choose; every default but the temperature's leaves its filter off.

    ``top_k``: only the k best tokens (0: all). ``top_p``: only the best tokens whose
    probabilities together reach p (1: all). ``min_p``: only tokens at least this share of the
    best one's probability (0: all). ``repetition_penalty`` divides positive logits, and multiplies
    negative ones, of the tokens among the last ``repetition_window`` (1, or a window of 0: off).
    ``seed`` None draws differently every time. Raises ``Error`` for values that make no sense.
    """

    temperature: float = 0.8
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    repetition_window: int = 64
    seed: int | None = None

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0.0, math.inf)
        _check("top_k", self.top_k, 0, math.inf, whole=True)
        _check("top_p", self.top_p, 0.0, 1.0)
        _check("min_p", self.min_p, 0.0, 1.0)
        _check("repetition_penalty", self.repetition_penalty, 0.0, math.inf)
        if self.repetition_penalty == 0:
            raise Error("repetition_penalty is 0; it divides, so give more than 0 (1 is off)")
        _check("repetition_window", self.repetition_window, 0, math.inf, whole=True)
        if self.seed is not None:
            _check("seed", self.seed, 0, math.inf, whole=True)


def _check(name: str, value: float, least: float, most: float, *, whole: bool = False) -> None:
    """``Error`` unless ``value`` is a finite number, ``whole`` if asked, from least to most."""
    kinds = Integral if whole else Real
    bounds = f"from {least} to {most}" if most < math.inf else f"{least} or more"
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise Error(f"{name} is {value!r}; give a {'whole ' if whole else ''}number, {bounds}")
    if not (least <= value <= most and math.isfinite(value)):
        raise Error(f"{name} is {value}; give {bounds}")


class NotFiniteError(Error):
    """Logits that are no numbers."""


class Sampler:
    """Chooses tokens one after the other; the same seed makes the same choices."""

    def __init__(self, parameters: SamplingParameters) -> None:
        self.parameters = parameters
        self._random = np.random.default_rng(parameters.seed)
        self._room = _Room(0)

    def sample(self, logits: np.ndarray, history: Sequence[int]) -> int:
        """A token id, given float32 ``logits`` (n_vocab,), which stay as they are.

        ``history`` are the tokens so far, the last one last; its end is what the repetition
        penalty looks at. Among equal logits the lowest id comes first. Raises ``Error`` for logits
        that are no numbers, or that leave no token.
        """
        if logits.ndim != 1 or not len(logits):
            raise Error(f"no token can be chosen: logits of shape {logits.shape}")
        if len(logits) != len(self._room.logits):
            self._room = _Room(len(logits))
        own = self._room.logits
        own[:] = logits
        self._penalise(own, history)
        best = int(np.argmax(own))  # NaN counts as the largest, so one look finds it
        if not math.isfinite(own[best]):
            raise NotFiniteError(
                f"no token can be chosen: the largest logit is {own[best]}; the model file is"
                " damaged, convert or download it again"
            )
        return best if self.parameters.temperature == 0 else self._draw(float(own[best]))

    def _draw(self, largest: float) -> int:
        """A token that the filters leave, as likely as its softmax at the temperature says."""
        parameters, room = self.parameters, self._room
        min_p = parameters.min_p
        min_logit = largest + math.log(min_p) if min_p > 0 else -math.inf
        token = choose(
            room.logits,
            np.float32(largest),
            min(int(parameters.top_k), len(room.logits)),
            float(parameters.top_p),
            np.float32(min_logit),
            float(parameters.temperature),
            self._random.random(),
            weight_bits(len(room.logits)),
            room.ids,
            room.weights,
        )
        return int(token)

    def _penalise(self, logits: np.ndarray, history: Sequence[int]) -> None:
        """Applies the repetition penalty to the logits of the tokens concerned."""
        parameters = self.parameters
        recent = history[-parameters.repetition_window :] if parameters.repetition_window else ()
        if parameters.repetition_penalty == 1 or not len(recent):
            return
        ids = np.unique(np.asarray(recent, np.int64))
        if ids[0] < 0 or ids[-1] >= len(logits):
            raise Error(f"the history has tokens outside the vocabulary of {len(logits)}")
        seen = logits[ids]
        penalty = np.float32(parameters.repetition_penalty)
        with np.errstate(over="ignore"):  # what is infinite then is refused, or never drawn
            logits[ids] = np.where(seen > 0, seen / penalty, seen * penalty)


class _Room:
    """What choosing from ``n`` tokens writes to, 16 bytes for each."""

    def __init__(self, n: int) -> None:
        self.logits: np.ndarray = np.empty(n, np.float32)
        self.ids: np.ndarray = np.empty(n, np.int32)
        self.weights: np.ndarray = np.empty(n, np.int64)
