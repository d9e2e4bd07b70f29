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

# How many of the best tokens top-p looks at first; a model is rarely so unsure as to need more.
_FIRST_LOOK = 256


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

    def sample(self, logits: np.ndarray, history: Sequence[int]) -> int:
        """A token id, given float32 ``logits`` (n_vocab,), which stay as they are.

        ``history`` are the tokens so far, the last one last; its end is what the repetition
        penalty looks at. Among equal logits the lowest id comes first. Raises ``Error`` for logits
        that are no numbers, or that leave no token.
        """
        parameters = self.parameters
        if logits.ndim != 1 or not len(logits):
            raise Error(f"no token can be chosen: logits of shape {logits.shape}")
        logits = self._penalised(logits, history)
        best = int(np.argmax(logits))  # NaN counts as the largest, so one look finds it
        if not math.isfinite(logits[best]):
            raise NotFiniteError(
                f"no token can be chosen: the largest logit is {logits[best]}; the model file is"
                " damaged, convert or download it again"
            )
        if parameters.temperature == 0:
            return best

        ids = np.arange(len(logits))
        if 0 < parameters.top_k < len(ids):
            ids = _top_k(logits, parameters.top_k)
        if parameters.top_p < 1:
            ids = ids[_top_p(logits[ids], parameters.top_p)]
        if parameters.min_p > 0:
            ids = ids[logits[ids] >= float(logits[best]) + math.log(parameters.min_p)]
        return int(ids[self._draw(logits[ids])])

    def _draw(self, logits: np.ndarray) -> int:
        """An index into ``logits``, each as likely as its softmax at the temperature says."""
        differences = logits.astype(np.float64) - logits.max()
        with np.errstate(over="ignore"):  # far below the best at a tiny temperature: never drawn
            weights = np.exp(differences / self.parameters.temperature)
        sums = np.cumsum(weights)
        drawn = min(self._random.random() * sums[-1], np.nextafter(sums[-1], 0.0))
        return int(np.searchsorted(sums, drawn, side="right"))

    def _penalised(self, logits: np.ndarray, history: Sequence[int]) -> np.ndarray:
        """The logits after the repetition penalty; the very array given where there is none."""
        parameters = self.parameters
        recent = history[-parameters.repetition_window :] if parameters.repetition_window else ()
        if parameters.repetition_penalty == 1 or not len(recent):
            return logits
        ids = np.unique(np.asarray(recent, np.int64))
        if ids[0] < 0 or ids[-1] >= len(logits):
            raise Error(f"the history has tokens outside the vocabulary of {len(logits)}")
        logits = logits.copy()
        seen = logits[ids]
        penalty = np.float32(parameters.repetition_penalty)
        logits[ids] = np.where(seen > 0, seen / penalty, seen * penalty)
        return logits


def _top_k(logits: np.ndarray, k: int) -> np.ndarray:
    """The indices of the ``k`` largest logits, ascending; the first ones where equals compete."""
    smallest = np.partition(logits, len(logits) - k)[len(logits) - k]
    larger = np.flatnonzero(logits > smallest)
    equal = np.flatnonzero(logits == smallest)[: k - len(larger)]
    return np.sort(np.concatenate((larger, equal)))


def _top_p(logits: np.ndarray, p: float) -> np.ndarray:
    """The indices, ascending, of the fewest largest logits whose softmax reaches ``p``."""
    weights = np.exp(logits.astype(np.float64) - logits.max())
    wanted = p * weights.sum()
    n_seen = _FIRST_LOOK
    while True:
        n_seen = min(n_seen, len(logits))
        best = _top_k(logits, n_seen)
        best = best[np.argsort(-logits[best], kind="stable")]
        sums = np.cumsum(weights[best])
        if sums[-1] >= wanted or n_seen == len(logits):
            return np.sort(best[: np.searchsorted(sums, wanted) + 1])
        n_seen *= 16
