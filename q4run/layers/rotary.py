"""Rotary position embedding: the angles of a pass, once for all layers that rotate alike."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from q4run.kernels.attention.heads import NO_ANGLES
from q4run.models.parts import Rope

# cos and sin of each angle, float32 (2, n_tokens, dim / 2).
Angles = np.ndarray


class Positions(NamedTuple):
    """The positions of a pass, and the angles of each rotation there."""

    first: int
    angles: Mapping[Rope, Angles]

    def rotation(self, rope: Rope | None) -> Angles:
        """Returns the angles of ``rope``, or ``NO_ANGLES`` where there is none."""
        return NO_ANGLES if rope is None else self.angles[rope]


class RotaryEmbedding:
    """RoPE angles: position / theta^(2i / dim), divided by the file's factor for each i."""

    def __init__(self, ropes: Iterable[Rope], factors: np.ndarray | None) -> None:
        """factors: float64 (dim / 2,), or None where the file has none."""
        self._frequencies = {rope: _frequencies(rope, factors) for rope in ropes}

    def __call__(self, first_position: int, n_tokens: int) -> Positions:
        """Returns the positions of ``n_tokens`` tokens from ``first_position`` on."""
        positions = np.arange(first_position, first_position + n_tokens, dtype=np.float64)
        angles = {rope: _angles(positions, f) for rope, f in self._frequencies.items()}
        return Positions(first_position, angles)


def _frequencies(rope: Rope, factors: np.ndarray | None) -> np.ndarray:
    exponents = np.arange(0, rope.dim, 2, dtype=np.float64) / rope.dim
    frequencies = rope.theta**-exponents
    return frequencies if factors is None else frequencies / factors


def _angles(positions: np.ndarray, frequencies: np.ndarray) -> Angles:
    angles = np.outer(positions, frequencies)
    rotation: Angles = np.empty((2, *angles.shape), np.float32)
    rotation[0], rotation[1] = np.cos(angles), np.sin(angles)
    return rotation
