"""Rotary positions as a GGUF file's keys and tensors tell them.

The keys mean what llama.cpp makes of them. Where it takes no notice of one that `transformers`
obeys (``yarn_attn_factor``, ``yarn_beta_fast`` in most families), the key is obeyed.
"""

import math
from dataclasses import dataclass

from gguf import MODEL_TENSOR

from q4run.errors import FormatError, UnsupportedError
from q4run.gguf_file import GGUFFile
from q4run.models.parts import tensor_name
from q4run.models.rope import (
    LONG_AND_SHORT,
    ONE_LIST,
    Rope,
    RopeForm,
    RopeScaling,
    Yarn,
    yarn_magnitude,
)

# A key of our own: whether the ends of YaRN's ramp are whole pairs. GGUF cannot say it.
YARN_TRUNCATE = "rope.scaling.yarn_truncate"

# The keys that `read_rope` obeys.
ROPE_KEYS = frozenset(
    {
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scale_linear",
        "rope.scaling.attn_factor",
        "rope.scaling.factor",
        "rope.scaling.original_context_length",
        "rope.scaling.type",
        "rope.scaling.yarn_attn_factor",
        "rope.scaling.yarn_beta_fast",
        "rope.scaling.yarn_beta_slow",
        "rope.scaling.yarn_ext_factor",
        "rope.scaling.yarn_log_multiplier",
        YARN_TRUNCATE,
    }
)

_LINEAR, _YARN, _LONGROPE = "linear", "yarn", "longrope"
_KINDS = ("none", _LINEAR, _YARN, _LONGROPE)


@dataclass(frozen=True)
class RopeDefaults:
    """What a family takes for granted where a file does not say; ``form`` no file says."""

    theta: float = 10000.0
    form: RopeForm = RopeForm.ADJACENT
    yarn_truncate: bool = True


ROPE_DEFAULTS = RopeDefaults()
NEOX = RopeDefaults(form=RopeForm.NEOX)


def read_rope(file: GGUFFile, key_dim: int, defaults: RopeDefaults) -> Rope:
    """Reads the rotation of heads of ``key_dim`` values.

    Raises FormatError for numbers that cannot be, UnsupportedError for a kind of scaling that is
    not known.
    """
    arch = file.architecture
    dim = file.get_int(f"{arch}.rope.dimension_count", key_dim, minimum=2)
    if dim > key_dim or dim % 2:
        raise FormatError(f"{file.path}: RoPE over {dim} of {key_dim} values of a head")
    theta = _positive(file, "rope.freq_base", defaults.theta)
    factors = _factors(file)
    kind = file.get_str(f"{arch}.rope.scaling.type", _LINEAR)
    if kind not in _KINDS:
        raise UnsupportedError(
            f"{file.path}: RoPE scaling of the type '{kind[:40]}' is not supported"
            f" (known: {', '.join(_KINDS)})"
        )
    if kind == _LONGROPE and not factors:
        raise FormatError(f"{file.path}: RoPE is scaled by long and short factors, but has none")
    scaling = _read_scaling(file, kind, defaults)
    if scaling.yarn and theta <= 1:
        raise FormatError(f"{file.path}: YaRN needs a {arch}.rope.freq_base above 1, not {theta}")
    return Rope(dim, theta, defaults.form, scaling, factors)


def _factors(file: GGUFFile) -> tuple[MODEL_TENSOR, ...]:
    """The tensors that divide the frequencies; as in llama.cpp, one list for all goes first."""
    for kinds in (ONE_LIST, LONG_AND_SHORT):
        if all(tensor_name(kind) in file.tensors for kind in kinds):
            return kinds
    return ()


def _read_scaling(file: GGUFFile, kind: str, defaults: RopeDefaults) -> RopeScaling:
    arch = file.architecture
    original = file.get_int(
        f"{arch}.rope.scaling.original_context_length", _context_length(file), minimum=1
    )
    # 0 says nothing, as in llama.cpp; scale_linear is the older name.
    factor = _at_least_0(file, "rope.scaling.factor", _at_least_0(file, "rope.scale_linear", 0.0))
    factor = 1.0 if kind == "none" else factor or 1.0
    attention_factor = _positive(file, "rope.scaling.attn_factor", 1.0)
    if kind != _YARN:
        return RopeScaling(factor, attention_factor, original)
    yarn = Yarn(
        _positive(file, "rope.scaling.yarn_beta_fast", Yarn.beta_fast),
        _positive(file, "rope.scaling.yarn_beta_slow", Yarn.beta_slow),
        file.get_float(f"{arch}.rope.scaling.yarn_ext_factor", Yarn.share),
        file.get_bool(f"{arch}.{YARN_TRUNCATE}", defaults.yarn_truncate),
    )
    magnitude = _yarn_magnitude(file, factor) if yarn.share else 1.0
    return RopeScaling(factor, magnitude * attention_factor, original, yarn)


def _yarn_magnitude(file: GGUFFile, factor: float) -> float:
    """What cos and sin are multiplied by: as the file says, or by YaRN's rule."""
    arch = file.architecture
    multiplier = file.get_float(f"{arch}.rope.scaling.yarn_log_multiplier", 0.0)
    magnitude = yarn_magnitude(factor)
    if multiplier:
        magnitude /= yarn_magnitude(factor, multiplier)
    return _positive(file, "rope.scaling.yarn_attn_factor", magnitude)


def _context_length(file: GGUFFile) -> int:
    return file.get_int(f"{file.architecture}.context_length", minimum=1)


def _positive(file: GGUFFile, key: str, default: float) -> float:
    value = file.get_float(f"{file.architecture}.{key}", default)
    if not (math.isfinite(value) and value > 0):
        raise FormatError(
            f"{file.path}: {file.architecture}.{key} is {value:g}, but must be positive"
        )
    return value


def _at_least_0(file: GGUFFile, key: str, default: float) -> float:
    value = file.get_float(f"{file.architecture}.{key}", default)
    if value < 0:
        raise FormatError(
            f"{file.path}: {file.architecture}.{key} is {value:g}, but must not be negative"
        )
    return value
