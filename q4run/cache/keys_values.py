"""The keys and values of the conversation so far, layer by layer."""

import math

import numpy as np

from q4run.errors import UnsupportedError
from q4run.kernels.attention.attend import MAX_HEAD_DIM
from q4run.kernels.attention.kv_values import row_length
from q4run.models.config import ModelConfig
from q4run.models.parts import Attention

# What the rows are made of: f16 as bit patterns, q8_0 as the bytes of GGUF's blocks.
KV_TYPES = {"f16": np.uint16, "f32": np.float32, "q8_0": np.uint8}
_CACHE_LINE = 64


def cache_bytes(config: ModelConfig, context: int, kv_type: str) -> int:
    """What a cache for ``context`` positions takes."""
    dtype = np.dtype(KV_TYPES[kv_type])
    kept = (layer.attention.kept(context) for layer in config.layers)
    n_values = sum(
        rows.n_positions
        * rows.n_head_kv
        * (row_length(rows.key_dim, dtype) + row_length(rows.value_dim, dtype))
        for rows in kept
    )
    return n_values * dtype.itemsize


class LayerCache:
    """One layer's keys and values: (n_head_kv, capacity, row) each, a row as long as
    ``row_length`` says."""

    def __init__(self, part: Attention, context: int, kv_type: str) -> None:
        if part.key_dim > MAX_HEAD_DIM:
            raise UnsupportedError(
                f"the model's heads have {part.key_dim} channels; q4run's attention takes at"
                f" most {MAX_HEAD_DIM}"
            )
        dtype = np.dtype(KV_TYPES[kv_type])
        kept = part.kept(context)
        shape = (kept.n_head_kv, kept.n_positions, row_length(kept.key_dim, dtype))
        self.keys = _aligned_zeros(shape, dtype)
        self.values = _aligned_zeros(shape, dtype)
        self._chunk_size = part.chunk_size

    def place(self, position: int) -> int:
        """The index in a head's rows at which a pass writes that begins at ``position``.

        Its first token sees the rows up to and with its own. The pass must not cross a border
        between two chunks.
        """
        return position % self._chunk_size if self._chunk_size else position


def _aligned_zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros that begin at a cache line, so that few loads touch two of them."""
    n_bytes = math.prod(shape) * dtype.itemsize
    memory = np.zeros(n_bytes + _CACHE_LINE, np.uint8)
    begin = -memory.ctypes.data % _CACHE_LINE
    return memory[begin : begin + n_bytes].view(dtype).reshape(shape)


class KVCache:
    """The caches of all layers, and how many tokens they hold."""

    def __init__(self, config: ModelConfig, context: int, kv_type: str) -> None:
        self.context = context
        self.layers = [LayerCache(layer.attention, context, kv_type) for layer in config.layers]
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
