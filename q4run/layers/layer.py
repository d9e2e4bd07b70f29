"""A layer: a list of parts, each run by the class that `RUNNERS` has for its type."""

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from q4run.cache.state import LayerState
from q4run.kernels.threads.pool import Pool
from q4run.layers.attention import Attention
from q4run.layers.experts import MixtureOfExperts
from q4run.layers.feed_forward import DenseFeedForward
from q4run.layers.materials import Materials
from q4run.layers.rotary import Positions
from q4run.models import parts
from q4run.timeline import Timeline


class Runner(Protocol):
    """Runs one part of one layer."""

    span: str  # what the timeline calls it

    def __call__(self, pool: Pool, x: np.ndarray, kept: LayerState, positions: Positions) -> None:
        """Adds the part's work to the stream x, float32 (n_tokens, n_embd), in place.

        kept: what the conversation keeps for the layer; it takes the tokens.
        """
        ...


# Prepares a part of layer i: reads its weights and makes its records.
RUNNERS: dict[type, Callable[[Any, int, Materials], Runner]] = {
    parts.Attention: Attention,
    parts.DenseFeedForward: DenseFeedForward,
    parts.Experts: MixtureOfExperts,
}


class Layer:
    """The parts of one layer, run one after the other."""

    def __init__(self, layer: parts.Layer, i: int, materials: Materials) -> None:
        self._i = i
        self._runners = [RUNNERS[type(part)](part, i, materials) for part in layer.parts]

    @property
    def experts(self) -> MixtureOfExperts | None:
        """The layer's routed experts; None where it has none."""
        return next((part for part in self._runners if isinstance(part, MixtureOfExperts)), None)

    def __call__(
        self,
        pool: Pool,
        x: np.ndarray,
        kept: LayerState,
        positions: Positions,
        timeline: Timeline | None = None,
    ) -> None:
        """Adds the layer's work to the stream x, float32 (n_tokens, n_embd), in place."""
        for runner in self._runners:
            runner(pool, x, kept, positions)
            if timeline:
                timeline.lap(runner.span, self._i)
