"""Rotary position embedding: the angles of a pass."""

from typing import NamedTuple

import numpy as np

from q4run.models.config import ModelConfig


class Rotation(NamedTuple):
    """The positions of a pass: cos and sin of each RoPE angle, float32 (n_tokens, rope_dim / 2)."""

    first_position: int
    cos: np.ndarray
    sin: np.ndarray


class RotaryEmbedding:
    """RoPE angles: position / theta^(2i / rope_dim), divided by the file's factor for each i."""

    def __init__(self, config: ModelConfig, factors: np.ndarray | None) -> None:
        exponents = np.arange(0, config.rope_dim, 2, dtype=np.float64) / config.rope_dim
        self._frequencies = config.rope_theta**-exponents
        if factors is not None:
            self._frequencies /= factors

    def __call__(self, first_position: int, n_tokens: int) -> Rotation:
        positions = np.arange(first_position, first_position + n_tokens, dtype=np.float64)
        angles = np.outer(positions, self._frequencies)
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        return Rotation(first_position, cos, sin)


# Of layers without RoPE.
NO_ROTATION = (np.empty((1, 0), np.float32),) * 2
