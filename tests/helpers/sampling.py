"""A sampler in plain numpy, which sorts: what the compiled one is compared with."""

import math
from collections.abc import Sequence

import numpy as np

from q4run.generation.sampler import SamplingParameters


class PlainSampler:
    """Chooses as ``Sampler`` does: the same seed, the same tokens."""

    def __init__(self, parameters: SamplingParameters) -> None:
        self.parameters = parameters
        self._random = np.random.default_rng(parameters.seed)

    def sample(self, logits: np.ndarray, history: Sequence[int]) -> int:
        """A token id; None can be chosen where the largest logit, penalised, is not finite."""
        parameters = self.parameters
        logits = penalised(logits, history, parameters)
        best = int(np.argmax(logits))
        assert math.isfinite(logits[best])
        if parameters.temperature == 0:
            return best
        ids = np.arange(len(logits))
        if 0 < parameters.top_k < len(ids):
            ids = np.sort(np.argsort(-logits, kind="stable")[: parameters.top_k])
        if parameters.top_p < 1:
            ids = ids[_top_p(logits[ids], parameters.top_p)]
        if parameters.min_p > 0:
            ids = ids[logits[ids] >= np.float32(float(logits[best]) + math.log(parameters.min_p))]
        return int(ids[self._draw(logits[ids])])

    def _draw(self, logits: np.ndarray) -> int:
        differences = logits.astype(np.float64) - logits.max()
        with np.errstate(over="ignore"):
            weights = np.exp(differences / self.parameters.temperature)
        sums = np.cumsum(weights)
        drawn = min(self._random.random() * sums[-1], np.nextafter(sums[-1], 0.0))
        return int(np.searchsorted(sums, drawn, side="right"))


def penalised(
    logits: np.ndarray, history: Sequence[int], parameters: SamplingParameters
) -> np.ndarray:
    """A copy of the logits, each token of the window's punished once."""
    logits = logits.copy()
    window = parameters.repetition_window
    penalty = np.float32(parameters.repetition_penalty)
    with np.errstate(over="ignore"):
        for id in set(history[-window:] if window else ()):
            logits[id] = logits[id] / penalty if logits[id] > 0 else logits[id] * penalty
    return logits


def _top_p(logits: np.ndarray, p: float) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64) - logits.max())
    order = np.argsort(-logits, kind="stable")
    sums = np.cumsum(weights[order])
    return np.sort(order[: np.searchsorted(sums, p * weights.sum()) + 1])
