"""The keys and values of the conversation so far, layer by layer."""

import numpy as np

from q4run.kernels.attention import write_cache
from q4run.models.config import LayerConfig, ModelConfig

KV_TYPES = {"f16": np.uint16, "f32": np.float32}  # f16 is held as bit patterns


def padded_head_dim(config: ModelConfig) -> int:
    """The kernels read heads in steps of 8 values."""
    return (config.head_dim + 7) // 8 * 8


def layer_capacity(layer: LayerConfig, context: int) -> int:
    """Positions a layer stores: a chunked layer never needs more than its current chunk."""
    return min(context, layer.attention.chunk_size or context)


def cache_bytes(config: ModelConfig, context: int, kv_type: str) -> int:
    """What a cache for ``context`` positions takes."""
    position = 2 * config.n_head_kv * padded_head_dim(config) * np.dtype(KV_TYPES[kv_type]).itemsize
    return position * sum(layer_capacity(layer, context) for layer in config.layers)


class LayerCache:
    """One layer's keys and values: (n_head_kv, capacity, padded head_dim) each."""

    def __init__(self, config: ModelConfig, layer: LayerConfig, context: int, kv_type: str) -> None:
        shape = (config.n_head_kv, layer_capacity(layer, context), padded_head_dim(config))
        self.keys = np.zeros(shape, KV_TYPES[kv_type])
        self.values = np.zeros(shape, KV_TYPES[kv_type])
        self._chunk_size = layer.attention.chunk_size

    def append(self, keys: np.ndarray, values: np.ndarray, position: int) -> int:
        """Stores new tokens from ``position`` on; returns how many keys the first of them sees.

        keys, values: float32 (n_tokens, n_head_kv, head_dim). The tokens must not cross a border
        between two chunks.
        """
        first = position % self._chunk_size if self._chunk_size else position
        write_cache(keys, self.keys, first)
        write_cache(values, self.values, first)
        return first + 1


class KVCache:
    """The caches of all layers, and how many tokens they hold."""

    def __init__(self, config: ModelConfig, context: int, kv_type: str) -> None:
        self.context = context
        self.layers = [LayerCache(config, layer, context, kv_type) for layer in config.layers]
        self.length = 0
        self._last_written = -1
        chunk_sizes = {layer.attention.chunk_size for layer in config.layers} - {None}
        self._chunk_sizes = sorted(size for size in chunk_sizes if size)

    def begin(self, n_tokens: int) -> int:
        """Announces the next tokens, at most ``n_tokens``; returns how many one pass may take.

        A pass stays inside one chunk, so that no key it still needs is overwritten.
        """
        for size in self._chunk_sizes:
            n_tokens = min(n_tokens, size - self.length % size)
        self._last_written = self.length + n_tokens - 1
        return n_tokens

    def commit(self, n_tokens: int) -> None:
        """The announced tokens are in every layer now."""
        self.length += n_tokens

    def rewind(self, length: int) -> None:
        """Forgets all tokens from ``length`` on, and more where chunked layers have to.

        A chunked layer holds only the chunk that was written last, committed or not. A ``length``
        inside another one goes back to its border, from which on nothing older is needed.
        """
        length = min(length, self.length)
        while (border := self._border_needed(length)) != length:
            length = border
        self.length = length

    def _border_needed(self, length: int) -> int:
        for size in self._chunk_sizes:
            if length % size and self._last_written // size != length // size:
                return length // size * size
        return length
