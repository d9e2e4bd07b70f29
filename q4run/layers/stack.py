"""The stack of layers: a stream of vectors in, the same stream after all layers."""

from collections.abc import Callable

import numpy as np

from q4run.cache.keys_values import KVCache
from q4run.kernels.threads.pool import Pool
from q4run.layers.layer import Layer
from q4run.layers.materials import Materials
from q4run.layers.rotary import RotaryEmbedding
from q4run.timeline import Timeline


class Stack:
    """All layers of a model, on one machine."""

    def __init__(
        self,
        materials: Materials,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Reads everything but the experts; ``progress`` is called with (layers done, in all)."""
        weights, config = materials.weights, materials.config
        self._rotary = RotaryEmbedding(config.ropes, weights.vector, str(weights.path))
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
        cache: KVCache,
        begin_layer: Callable[[int], None],
        timeline: Timeline | None = None,
    ) -> None:
        """Takes the stream x, float32 (n_tokens, n_embd), through all layers, in place.

        cache: what the conversation keeps; it takes the tokens, which follow those in it.
        ``begin_layer`` is called with each layer's number before it runs; what it raises ends the
        pass.
        """
        positions = self._rotary(cache.length, len(x), cache.context)
        for i, (layer, kept) in enumerate(zip(self._layers, cache.layers, strict=True)):
            begin_layer(i)
            layer(pool, x, kept, positions, timeline)
