"""Llama 4 text: Scout, Maverick and models of their form.

Three layers of four rotate queries and keys (RoPE), normalise them and see one chunk of the
context; the fourth has no positions (NoPE), sees everything and warms its queries with position.
Routed experts get their input scaled by the router; a shared expert always runs.
llama.cpp takes the constants below for granted; a file that differs carries keys of our own.
"""

from dataclasses import replace

from gguf import ExpertGatingFuncType

from q4run.gguf_file import GGUFFile
from q4run.models.config import (
    ModelConfig,
    n_layers,
    read_attention,
    read_decoder,
    read_experts,
    read_n_ff,
)
from q4run.models.keys import DECODER_KEYS, EXPERT_KEYS, FamilyKeys
from q4run.models.nope import ROPE_LAYERS, default_rope_layers, read_layer_flags
from q4run.models.parts import (
    DenseFeedForward,
    Layer,
    QKNorm,
    Router,
    Scores,
    SharedExpert,
    Temperature,
)

ARCHITECTURE = "llama4"

ROUTER = Router(Scores.SIGMOID, renormalise=False, on_input=True)

# What holds where a file has no key that says otherwise.
CHUNK_SIZE = 8192
TEMPERATURE_LENGTH = 8192
TEMPERATURE_SCALE = 0.1
CHUNKED_LAYERS = "attention.layer_chunked"
# The one released form without q/k norm, Maverick, is known by its number of experts.
N_EXPERT_WITHOUT_QK_NORM = 128

KEYS = FamilyKeys(
    applied=DECODER_KEYS
    | EXPERT_KEYS
    | {
        "attention.chunk_size",
        CHUNKED_LAYERS,
        ROPE_LAYERS,
        "attention.qk_norm",
        "attention.temperature_length",
        "attention.temperature_scale",
        "expert_shared_feed_forward_length",
        "feed_forward_length",
        "interleave_moe_layer_step",
    },
    fixed={
        # A 0 says that no layer is chunked, and is obeyed; of all else llama.cpp takes no notice.
        "attention.sliding_window": (CHUNK_SIZE,),
        "expert_gating_func": (ExpertGatingFuncType.SIGMOID,),
        "expert_shared_count": (1,),
    },
)


def read_config(file: GGUFFile) -> ModelConfig:
    """Raises FormatError where a per-layer list does not have one entry per layer."""
    dense = DenseFeedForward(read_n_ff(file, "feed_forward_length"))
    n_ff_exp = read_n_ff(file, "expert_feed_forward_length")
    shared = SharedExpert(read_n_ff(file, "expert_shared_feed_forward_length", n_ff_exp))
    experts = read_experts(file, n_ff_exp, ROUTER, shared)
    moe_step = file.get_int("llama4.interleave_moe_layer_step", minimum=1)

    count = n_layers(file)
    has_rope = read_layer_flags(file, ROPE_LAYERS, count, default_rope_layers(count))
    chunk_size = _chunk_size(file)
    default_chunked = has_rope if chunk_size else [0] * count
    chunked = read_layer_flags(file, CHUNKED_LAYERS, count, default_chunked)
    has_qk_norm = file.get_bool(
        "llama4.attention.qk_norm", experts.n_expert != N_EXPERT_WITHOUT_QK_NORM
    )
    rotating = read_attention(file)
    rotating = replace(rotating, qk_norm=QKNorm.PLAIN if has_qk_norm else QKNorm.NONE)
    still = replace(rotating, rope=None, qk_norm=QKNorm.NONE, temperature=_temperature(file))

    def describe_layer(i: int) -> Layer:
        attention = replace(
            rotating if has_rope[i] else still, chunk_size=chunk_size if chunked[i] else None
        )
        return Layer(attention, dense if (i + 1) % moe_step else experts)

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
