"""Rotary embedding: what the configuration says, as GGUF keys and factors of the frequencies."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import gguf
import numpy as np
from gguf import MODEL_TENSOR, RopeScalingType

from q4run.convert.config import Config
from q4run.convert.families.notes import ignored_by_llama_cpp
from q4run.errors import FormatError, UnsupportedError
from q4run.models.parts import Tensor, rope_tensors
from q4run.models.rope import (
    LONG_AND_SHORT,
    ONE_LIST,
    Rope,
    RopeScaling,
    Yarn,
    yarn_magnitude,
)
from q4run.models.rope_keys import YARN_TRUNCATE

# The architectures in which llama.cpp reads where YaRN's ramp begins and ends.
_BETAS_READ_BY_LLAMA_CPP = {"grok", "laguna", "mistral3", "mistral4"}


@dataclass(frozen=True)
class StoredRope:
    """A rotation; the kind of scaling that GGUF calls it; and the values of its factors, float32
    (dim / 2,)."""

    rope: Rope
    kind: RopeScalingType | None = None
    factors: dict[MODEL_TENSOR, np.ndarray] = field(default_factory=dict)

    @property
    def tensors(self) -> list[tuple[Tensor, np.ndarray]]:
        """What a file stores of it beside the keys."""
        return [(tensor, self.factors[tensor.kind]) for tensor in rope_tensors(self.rope)]

    def add_keys(self, metadata: gguf.GGUFWriter) -> None:
        """Writes the keys that say it, none for what is so by default."""
        rope, scaling = self.rope, self.rope.scaling
        metadata.add_rope_dimension_count(rope.dim)
        metadata.add_rope_freq_base(rope.theta)
        if self.kind is None:
            return
        metadata.add_rope_scaling_type(self.kind)
        if self.kind is not RopeScalingType.LONGROPE:
            metadata.add_rope_scaling_factor(scaling.factor)
        if self.kind is not RopeScalingType.LINEAR:
            metadata.add_rope_scaling_orig_ctx_len(scaling.original_context)
        # With YaRN, readers multiply by its own magnitude as well.
        magnitude = yarn_magnitude(scaling.factor) if scaling.yarn else 1.0
        if not math.isclose(scaling.attention_factor, magnitude):
            metadata.add_rope_scaling_attn_factors(scaling.attention_factor / magnitude)
        if scaling.yarn:
            _add_yarn_keys(metadata, scaling.yarn)

    def notes(self, architecture: str) -> list[str]:
        """Returns a line where llama.cpp takes no notice of a key that was written."""
        yarn = self.rope.scaling.yarn
        if yarn is None:
            return []
        ignored = [YARN_TRUNCATE] if yarn.truncate != Yarn.truncate else []
        if architecture not in _BETAS_READ_BY_LLAMA_CPP:
            ignored += ["rope.scaling.yarn_beta_fast"] * (yarn.beta_fast != Yarn.beta_fast)
            ignored += ["rope.scaling.yarn_beta_slow"] * (yarn.beta_slow != Yarn.beta_slow)
        return ignored_by_llama_cpp(ignored)


def _add_yarn_keys(metadata: gguf.GGUFWriter, yarn: Yarn) -> None:
    if yarn.beta_fast != Yarn.beta_fast:
        metadata.add_rope_scaling_yarn_beta_fast(yarn.beta_fast)
    if yarn.beta_slow != Yarn.beta_slow:
        metadata.add_rope_scaling_yarn_beta_slow(yarn.beta_slow)
    if yarn.truncate != Yarn.truncate:
        metadata.add_bool(f"{metadata.arch}.{YARN_TRUNCATE}", yarn.truncate)


def read_rope(
    config: Config, head_dim: int, default_theta: float, layer_type: str | None = None
) -> StoredRope:
    """The RoPE of a configuration, in the form of ``transformers`` 4 or 5.

    Version 4 writes ``rope_theta`` and ``rope_scaling`` (null: none), version 5 one object
    ``rope_parameters``, or one for each ``layer_type``. Raises ``UnsupportedError`` for kinds of
    scaling that GGUF cannot say, ``FormatError`` for numbers that cannot be.
    """
    parameters = _parameters(config, layer_type)
    theta = parameters.number("rope_theta", config.number("rope_theta", default_theta))
    share = parameters.number("partial_rotary_factor", config.number("partial_rotary_factor", 1.0))
    dim = int(head_dim * share)
    if not 2 <= dim <= head_dim or dim % 2:
        raise FormatError(
            f"{config.where}: partial_rotary_factor {share:g} makes {dim} of {head_dim} values"
            " of a head rotate"
        )
    plain = Rope(dim, theta)
    kind = parameters.text("rope_type", parameters.text("type", "default"))
    if kind not in _KINDS:
        raise UnsupportedError(
            f"{parameters.where}: RoPE scaling of the type '{kind[:40]}' is not supported "
            f"(known: {', '.join(sorted(_KINDS))})"
        )
    return _KINDS[kind](plain, parameters, config)


def _parameters(config: Config, layer_type: str | None) -> Config:
    # transformers 5 too lets an old-style rope_scaling win over rope_parameters.
    parameters = config.section("rope_scaling") or config.section("rope_parameters")
    if parameters is None or not parameters.values:
        return Config({}, config.where)
    if layer_type is not None and layer_type in parameters:
        parameters = parameters.section(layer_type) or parameters
    if any(isinstance(value, dict) for value in parameters.values.values()):
        raise UnsupportedError(f"{parameters.where}: RoPE that differs by layer is not supported")
    return parameters


def _default(rope: Rope, parameters: Config, config: Config) -> StoredRope:
    return StoredRope(rope)


def _linear(rope: Rope, parameters: Config, config: Config) -> StoredRope:
    scaling = RopeScaling(parameters.number("factor"))
    return StoredRope(_with(rope, scaling), RopeScalingType.LINEAR)


def _yarn(rope: Rope, parameters: Config, config: Config) -> StoredRope:
    """As ``transformers`` reads it: a 0 or null is as good as no number."""
    if rope.theta <= 1:
        raise FormatError(f"{parameters.where}: YaRN needs a rope_theta above 1, not {rope.theta}")
    original = _original_context(parameters, config)
    factor = _factor(parameters, config, original)
    multipliers = [_number_or_0(parameters, key) for key in ("mscale", "mscale_all_dim")]
    magnitude = yarn_magnitude(factor)
    if all(multipliers):
        own, all_dim = multipliers
        magnitude = yarn_magnitude(factor, own) / yarn_magnitude(factor, all_dim)
    yarn = Yarn(
        beta_fast=_number_or_0(parameters, "beta_fast") or Yarn.beta_fast,
        beta_slow=_number_or_0(parameters, "beta_slow") or Yarn.beta_slow,
        truncate=parameters.flag("truncate", Yarn.truncate),
    )
    attention_factor = parameters.number("attention_factor", magnitude)
    scaling = RopeScaling(factor, attention_factor, original, yarn)
    return StoredRope(_with(rope, scaling), RopeScalingType.YARN)


def _longrope(rope: Rope, parameters: Config, config: Config) -> StoredRope:
    original = _original_context(parameters, config)
    factor = _factor(parameters, config, original)
    magnitude = 1.0
    if factor > 1 and original > 1:
        magnitude = math.sqrt(1 + math.log(factor) / math.log(original))
    attention_factor = parameters.number("attention_factor", magnitude)
    factors = {
        kind: _list_of_factors(parameters, key, rope.dim // 2)
        for kind, key in zip(LONG_AND_SHORT, ("long_factor", "short_factor"), strict=True)
    }
    scaling = RopeScaling(1.0, attention_factor, original)
    return StoredRope(_with(rope, scaling, tuple(factors)), RopeScalingType.LONGROPE, factors)


def _llama3(rope: Rope, parameters: Config, config: Config) -> StoredRope:
    """Llama 3.1's scaling: long wavelengths slowed by ``factor``, short ones kept, between a ramp.

    In float32 throughout, as ``transformers`` computes it (``_compute_llama3_parameters``), so
    that a wavelength at a border falls on the same side.
    """
    factor = np.float32(parameters.number("factor"))
    low = np.float32(parameters.number("low_freq_factor"))
    high = np.float32(parameters.number("high_freq_factor"))
    context = np.float32(_original_context(parameters, config))
    exponents = np.arange(0, rope.dim, 2, dtype=np.float32) / np.float32(rope.dim)
    frequencies = np.float32(1) / np.float32(rope.theta) ** exponents
    wavelengths = np.float32(2 * math.pi) / frequencies

    slow = wavelengths > context / low
    ramp = ~slow & ~(wavelengths < context / high)
    factors = np.where(slow, factor, np.float32(1))
    if ramp.any() and high != low:
        share = (context / wavelengths[ramp] - low) / (high - low)
        factors[ramp] = 1 / ((1 - share) / factor + share)
    return StoredRope(
        _with(rope, RopeScaling(), ONE_LIST),
        factors={MODEL_TENSOR.ROPE_FREQS: factors.astype(np.float32)},
    )


def _with(rope: Rope, scaling: RopeScaling, factors: tuple[MODEL_TENSOR, ...] = ()) -> Rope:
    return Rope(rope.dim, rope.theta, rope.form, scaling, factors)


def _original_context(parameters: Config, config: Config) -> int:
    """How long the first contexts were; the model's own key wins, as in ``transformers``."""
    key = "original_max_position_embeddings"
    longest = config.integer("max_position_embeddings")
    return config.integer(key, parameters.integer(key, longest))


def _factor(parameters: Config, config: Config, original_context: int) -> float:
    longest = config.integer("max_position_embeddings")
    return parameters.number("factor", longest / original_context)


def _number_or_0(parameters: Config, key: str) -> float:
    return parameters.number(key) if parameters.values.get(key) else 0.0


def _list_of_factors(parameters: Config, key: str, n_pairs: int) -> np.ndarray:
    values = parameters.values.get(key)
    if isinstance(values, list) and len(values) == n_pairs and all(map(_is_positive, values)):
        return np.array(values, np.float32)
    raise parameters.bad(key, f"a list of {n_pairs} positive numbers")


def _is_positive(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return 0 < value < float(np.finfo(np.float32).max)


_KINDS: dict[str, Callable[[Rope, Config, Config], StoredRope]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _longrope,
    "su": _longrope,  # its name in the first Phi-3 checkpoints
}
