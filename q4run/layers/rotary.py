"""What positions do: the angles of rotary embedding, once for layers that rotate alike, and what
queries grow by."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import numpy as np

from q4run.errors import FormatError
from q4run.kernels.attention.heads import NO_ANGLES
from q4run.models.parts import Temperature, Tensor, rope_tensors
from q4run.models.rope import Rope, Yarn

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
    """RoPE angles: position times frequency, the frequencies scaled as each rotation says."""

    def __init__(
        self, ropes: Iterable[Rope], read_vector: Callable[[Tensor], np.ndarray], source: str
    ) -> None:
        """read_vector: gives the values of a tensor, float32; source: whose they are, for errors.

        Raises FormatError where they are no factors of frequencies.
        """
        self._frequencies = {
            rope: [_scaled(rope, factors) for factors in _factors(rope, read_vector, source)]
            for rope in ropes
        }

    def __call__(self, first_position: int, n_tokens: int, context: int) -> Positions:
        """Returns the positions of ``n_tokens`` tokens from ``first_position`` on.

        context: how many tokens the conversation has room for. As in llama.cpp it chooses between
        long and short factors, so that keys in the cache and new queries are rotated alike;
        `transformers` chooses by the tokens so far.
        """
        positions = np.arange(first_position, first_position + n_tokens, dtype=np.float64)
        angles = {}
        for rope, lists in self._frequencies.items():
            is_short = context <= rope.scaling.original_context
            frequencies = lists[-1] if is_short else lists[0]
            angles[rope] = _angles(positions, frequencies, rope.scaling.attention_factor)
        return Positions(first_position, angles)


def _factors(
    rope: Rope, read_vector: Callable[[Tensor], np.ndarray], source: str
) -> list[np.ndarray | None]:
    """What frequencies are divided by, float64 (dim / 2,): the long and the short, the same for
    all contexts, or nothing."""
    lists: list[np.ndarray | None] = []
    for tensor in rope_tensors(rope):
        factors = read_vector(tensor).astype(np.float64)
        if not (np.isfinite(factors).all() and (factors > 0).all()):
            raise FormatError(
                f"{source}: {tensor.name} holds factors that are not positive numbers"
            )
        lists.append(factors)
    return lists or [None]


def _scaled(rope: Rope, factors: np.ndarray | None) -> np.ndarray:
    """The frequencies of a rotation, float64 (dim / 2,), in radians a token."""
    exponents = np.arange(0, rope.dim, 2, dtype=np.float64) / rope.dim
    frequencies: np.ndarray = rope.theta**-exponents
    if factors is not None:
        frequencies = frequencies / factors
    kept = _kept(rope, rope.scaling.yarn) if rope.scaling.yarn else 0.0
    return frequencies * ((1 - kept) / rope.scaling.factor + kept)


def _kept(rope: Rope, yarn: Yarn) -> np.ndarray:
    """How much of each frequency's speed YaRN keeps, float64 (dim / 2,), from 0 to 1."""
    low, high = (
        # The pair, or the fraction of one, that turns so often within the original context.
        rope.dim
        * math.log(rope.scaling.original_context / (2 * math.pi * turns))
        / (2 * math.log(rope.theta))
        for turns in (yarn.beta_fast, yarn.beta_slow)
    )
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    ramp = (np.arange(rope.dim // 2) - low) / max(high - low, 0.001)
    kept: np.ndarray = yarn.share * (1 - np.clip(ramp, 0, 1))
    return kept


def _angles(positions: np.ndarray, frequencies: np.ndarray, magnitude: float) -> Angles:
    angles = np.outer(positions, frequencies)
    rotation: Angles = np.empty((2, *angles.shape), np.float32)
    # One at a time, and scaled in place: what is held meanwhile counts in the budget.
    for function, out in ((np.cos, rotation[0]), (np.sin, rotation[1])):
        turned = function(angles)
        turned *= magnitude
        out[:] = turned
        del turned
    return rotation


def temperatures(temperature: Temperature, first_position: int, n_tokens: int) -> np.ndarray:
    """Returns what each token's queries are multiplied by, float32 (n_tokens,)."""
    positions = np.arange(first_position, first_position + n_tokens) + temperature.offset
    growth = np.log1p(positions // temperature.length)
    factors: np.ndarray = (1 + temperature.scale * growth).astype(np.float32)
    return factors
