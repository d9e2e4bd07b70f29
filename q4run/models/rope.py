"""Rotary positions as a family declares them: the form, the base, and how they are scaled."""

import math
from dataclasses import dataclass
from enum import Enum

from gguf import MODEL_TENSOR


class RopeForm(Enum):
    """Which values of a head are a pair that one angle rotates."""

    ADJACENT = "2i and 2i + 1 (llama.cpp's NORM)"
    NEOX = "i and i + dim / 2 (NEOX)"


@dataclass(frozen=True)
class Yarn:
    """Which frequencies YaRN leaves as they are (Peng et al., arXiv:2309.00071).

    One that turns more than ``beta_fast`` times within the original context keeps its speed, one
    that turns less than ``beta_slow`` times is divided by the whole factor; a ramp lies between.
    ``share``: how much of its speed is kept, 1 in every published model. ``truncate``: the ends of
    the ramp are whole pairs.
    """

    beta_fast: float = 32.0
    beta_slow: float = 1.0
    share: float = 1.0
    truncate: bool = True


@dataclass(frozen=True)
class RopeScaling:
    """How frequencies are stretched for contexts longer than those first trained on.

    Frequencies are divided by ``factor``, with ``yarn`` not all of them; cos and sin are multiplied
    by ``attention_factor``. ``original_context``: how many tokens those first contexts had; where
    there are long and short factors, the longest for which the short ones hold.
    """

    factor: float = 1.0
    attention_factor: float = 1.0
    original_context: int = 0
    yarn: Yarn | None = None


# What frequencies are divided by, one for each pair: one list, or one for long contexts and one
# for short ones.
ONE_LIST = (MODEL_TENSOR.ROPE_FREQS,)
LONG_AND_SHORT = (MODEL_TENSOR.ROPE_FACTORS_LONG, MODEL_TENSOR.ROPE_FACTORS_SHORT)


@dataclass(frozen=True)
class Rope:
    """Rotary positions: the first ``dim`` values of each head, angles of base ``theta``.

    ``factors``: the tensors that divide the frequencies: none, ``ONE_LIST`` or ``LONG_AND_SHORT``.
    """

    dim: int
    theta: float
    form: RopeForm = RopeForm.ADJACENT
    scaling: RopeScaling = RopeScaling()
    factors: tuple[MODEL_TENSOR, ...] = ()


def yarn_magnitude(factor: float, multiplier: float = 1.0) -> float:
    """Returns what YaRN multiplies cos and sin by: 1 + 0.1 * multiplier * ln(factor), or 1 where
    nothing is stretched."""
    return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1.0
