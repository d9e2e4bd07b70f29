"""Llama 4 text: Scout, Maverick and models of their form.

Three layers of four rotate queries and keys (RoPE), normalise them and see one chunk of the
context; the fourth has no positions (NoPE), sees everything and warms its queries with position.
Routed experts get their input scaled by the router; a shared expert always runs.
llama.cpp takes the constants below for granted; a file that differs carries keys of our own.
"""

from q4run.errors import FormatError
from q4run.gguf_file import GGUFFile
from q4run.models.config import (
    AttentionConfig,
    Gating,
    LayerConfig,
    ModelConfig,
    Temperature,
    n_layers,
    read_decoder,
    read_moe,
    read_n_ff,
)

ARCHITECTURE = "llama4"

# What holds where a file has no key that says otherwise.
CHUNK_SIZE = 8192
TEMPERATURE_LENGTH = 8192
TEMPERATURE_SCALE = 0.1
NOPE_INTERVAL = 4
# The one released form without q/k norm, Maverick, is known by its number of experts.
N_EXPERT_WITHOUT_QK_NORM = 128


def read_config(file: GGUFFile) -> ModelConfig:
    """Raises FormatError where a per-layer list does not have one entry per layer."""
    n_ff = read_n_ff(file, "feed_forward_length")
    n_ff_exp = read_n_ff(file, "expert_feed_forward_length")
    n_ff_shared = read_n_ff(file, "expert_shared_feed_forward_length", n_ff_exp)
    moe = read_moe(file, n_ff_exp, n_ff_shared, Gating.SIGMOID_ON_INPUT)
    moe_step = file.get_int("llama4.interleave_moe_layer_step", minimum=1)

    count = n_layers(file)
    default_rope = [int((i + 1) % NOPE_INTERVAL != 0) for i in range(count)]
    rope = _per_layer(file, "no_rope_layers", default_rope)
    chunk_size = _chunk_size(file)
    chunked = _per_layer(file, "layer_chunked", rope if chunk_size else [0] * count)
    qk_norm = file.get_bool("llama4.attention.qk_norm", moe.n_expert != N_EXPERT_WITHOUT_QK_NORM)
    temperature = _temperature(file)

    def describe_layer(i: int) -> LayerConfig:
        attention = AttentionConfig(
            rope=bool(rope[i]),
            chunk_size=chunk_size if chunked[i] else None,
            qk_norm=qk_norm and bool(rope[i]),
            temperature=None if rope[i] else temperature,
        )
        if (i + 1) % moe_step == 0:
            return LayerConfig(attention, moe=moe)
        return LayerConfig(attention, n_ff=n_ff)

    return read_decoder(file, describe_layer)


def _chunk_size(file: GGUFFile) -> int | None:
    """The attention chunk, or None where no layer is chunked (a sliding window written as 0)."""
    if file.get_int("llama4.attention.sliding_window", 1) == 0:
        return None
    return file.get_int("llama4.attention.chunk_size", CHUNK_SIZE) or None


def _temperature(file: GGUFFile) -> Temperature | None:
    length = file.get_int("llama4.attention.temperature_length", TEMPERATURE_LENGTH, minimum=1)
    scale = file.get_float("llama4.attention.temperature_scale", TEMPERATURE_SCALE)
    return Temperature(length, scale) if scale else None


def _per_layer(file: GGUFFile, name: str, default: list[int]) -> list[int]:
    values = file.get_array(f"llama4.attention.{name}", int, default)
    if len(values) != len(default):
        raise FormatError(
            f"{file.path}: {name} has {len(values)} entries for {len(default)} layers"
        )
    return values
