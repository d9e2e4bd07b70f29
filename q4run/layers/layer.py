"""A layer: attention and a feed-forward, dense or of experts."""

import numpy as np

from q4run.cache.keys_values import LayerCache
from q4run.experts.store import ExpertStore
from q4run.kernels.threads.pool import Pool
from q4run.layers.attention import Attention
from q4run.layers.experts import MixtureOfExperts
from q4run.layers.feed_forward import DenseFeedForward
from q4run.layers.rotary import Positions
from q4run.layers.workspace import Workspace
from q4run.models import parts
from q4run.models.config import ModelConfig
from q4run.timeline import ATTENTION, EXPERTS, FEED_FORWARD, Timeline
from q4run.weights import WeightReader


class Layer:
    """Attention and feed-forward, each on the normed stream and added back to it."""

    def __init__(
        self,
        weights: WeightReader,
        i: int,
        config: ModelConfig,
        layer: parts.Layer,
        store: ExpertStore,
        workspace: Workspace,
    ) -> None:
        self._i = i
        self._kind = EXPERTS if layer.experts else FEED_FORWARD
        self._attention = Attention(weights, i, config, layer.attention, workspace)
        feed_forward = layer.feed_forward
        self.feed_forward = (
            MixtureOfExperts(weights, i, config, feed_forward, store, workspace)
            if isinstance(feed_forward, parts.Experts)
            else DenseFeedForward(weights, i, config, feed_forward, workspace)
        )

    def __call__(
        self,
        pool: Pool,
        x: np.ndarray,
        cache: LayerCache,
        positions: Positions,
        timeline: Timeline | None = None,
    ) -> None:
        """Adds the layer's work to the stream x, float32 (n_tokens, n_embd), in place."""
        self._attention(pool, x, cache, positions)
        if timeline:
            timeline.lap(ATTENTION, self._i)
        self.feed_forward(pool, x)
        if timeline:
            timeline.lap(self._kind, self._i)
