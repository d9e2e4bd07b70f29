"""Rotary embedding: what the configuration says, and the frequency factors GGUF wants."""

import math
from dataclasses import dataclass

import numpy as np

from q4run.convert.config import Config
from q4run.errors import UnsupportedError


@dataclass(frozen=True)
class Rope:
    """The base of the frequencies, and what each frequency is divided by (float32, head_dim/2)."""

    theta: float
    factors: np.ndarray | None


def read_rope(config: Config, head_dim: int, default_theta: float) -> Rope:
    """The RoPE of a configuration, in the form of ``transformers`` 4 or 5.

    Version 4 writes ``rope_theta`` and ``rope_scaling`` (null: none), version 5 one object
    ``rope_parameters``. Raises ``UnsupportedError`` for kinds of scaling other than ``llama3``.
    """
    # transformers 5 too lets an old-style rope_scaling win over rope_parameters.
    parameters = config.section("rope_scaling") or config.section("rope_parameters")
    if parameters is None or not parameters.values:
        parameters = Config({}, config.where)
    if any(isinstance(value, dict) for value in parameters.values.values()):
        raise UnsupportedError(f"{parameters.where}: RoPE that differs by layer is not supported")
    theta = parameters.number("rope_theta", config.number("rope_theta", default_theta))
    for section in (parameters, config):
        if section.number("partial_rotary_factor", 1.0) != 1.0:
            raise UnsupportedError(f"{section.where}: partial_rotary_factor is not supported")

    kind = parameters.text("rope_type", parameters.text("type", "default"))
    if kind == "default":
        return Rope(theta, None)
    if kind != "llama3":
        raise UnsupportedError(
            f"{parameters.where}: RoPE scaling of the type '{kind}' is not supported "
            "(known: default, llama3)"
        )
    return Rope(theta, _llama3_factors(parameters, config, head_dim, theta))


def _llama3_factors(parameters: Config, config: Config, head_dim: int, theta: float) -> np.ndarray:
    """Llama 3.1's scaling: long wavelengths slowed by ``factor``, short ones kept, between a ramp.

    In float32 throughout, as ``transformers`` computes it (``_compute_llama3_parameters``), so
    that a wavelength at a border falls on the same side.
    """
    factor = np.float32(parameters.number("factor"))
    low = np.float32(parameters.number("low_freq_factor"))
    high = np.float32(parameters.number("high_freq_factor"))
    context = np.float32(
        parameters.integer(
            "original_max_position_embeddings", config.integer("max_position_embeddings")
        )
    )
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = np.float32(1) / np.float32(theta) ** exponents
    wavelengths = np.float32(2 * math.pi) / frequencies

    slow = wavelengths > context / low
    ramp = ~slow & ~(wavelengths < context / high)
    factors = np.where(slow, factor, np.float32(1))
    if ramp.any() and high != low:
        share = (context / wavelengths[ramp] - low) / (high - low)
        factors[ramp] = 1 / ((1 - share) / factor + share)
    return factors.astype(np.float32)
