"""The stack of layers: a stream of vectors in, the same stream after all layers."""

from collections.abc import Callable, Sequence

import numpy as np

from q4run.cache.state import LayerState
from q4run.errors import FormatError
from q4run.kernels.threads.pool import Pool
from q4run.layers.layer import Layer
from q4run.layers.materials import Materials
from q4run.layers.rotary import RotaryEmbedding
from q4run.models.config import ModelConfig
from q4run.timeline import Timeline
from q4run.weights import WeightReader


class Stack:
    """All layers of a model, on one machine."""

    def __init__(
        self,
        materials: Materials,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Reads everything but the experts; ``progress`` is called with (layers done, in all)."""
        weights, config = materials.weights, materials.config
        self._rotary = RotaryEmbedding(config.ropes, _rope_factors(weights, config))
        self._layers: list[Layer] = []
        # From the last on: experts know those of the next layer, to guess what these will want.
        for i in reversed(range(len(config.layers))):
            layer = Layer(config.layers[i], i, materials)
            materials = materials._replace(following=layer.experts or materials.following)
            self._layers.insert(0, layer)
            if progress:
                progress(len(self._layers), len(config.layers))

    def __call__(
        self,
        pool: Pool,
        x: np.ndarray,
        caches: Sequence[LayerState],
        first_position: int,
        begin_layer: Callable[[int], None],
        timeline: Timeline | None = None,
    ) -> None:
        """Takes the stream x, float32 (n_tokens, n_embd), through all layers, in place.

        caches: what the conversation keeps, a layer each; they take the tokens, which stand at
        ``first_position`` and after. ``begin_layer`` is called with each layer's number before it
        runs; what it raises ends the pass.
        """
        positions = self._rotary(first_position, len(x))
        for i, (layer, cache) in enumerate(zip(self._layers, caches, strict=True)):
            begin_layer(i)
            layer(pool, x, cache, positions, timeline)


def _rope_factors(weights: WeightReader, config: ModelConfig) -> np.ndarray | None:
    """What each RoPE frequency is divided by (rope_freqs), where the file has it."""
    if config.rope_factors is None:
        return None
    factors = weights.vector(config.rope_factors.tensors()[0]).astype(np.float64)
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        raise FormatError(f"{weights.path}: rope_freqs holds factors that are not positive numbers")
    return factors
