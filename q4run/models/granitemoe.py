"""Granite 3 with experts in every layer: Granite's multipliers, Mixtral's router (ibm.com)."""

from dataclasses import replace

from q4run.gguf_file import GGUFFile
from q4run.models.config import ModelConfig, read_attention, read_experts, read_n_ff
from q4run.models.keys import (
    DECODER_KEYS,
    EXPERT_KEYS,
    MULTIPLIER_KEYS,
    ROUTER_KEYS,
    SHARED_KEYS,
    FamilyKeys,
)
from q4run.models.parts import Layer, Router
from q4run.models.readers import read_multiplied, read_router, read_shared

ARCHITECTURE = "granitemoe"
KEYS = FamilyKeys(
    applied=DECODER_KEYS
    | EXPERT_KEYS
    | ROUTER_KEYS
    | SHARED_KEYS
    | MULTIPLIER_KEYS
    | {"feed_forward_length"},
    fixed={},
    refused=frozenset({"rope.scaling.finetuned"}),
)


def read_config(file: GGUFFile) -> ModelConfig:
    """Every layer alike: full attention with RoPE, then experts."""
    attention, n_ff = read_attention(file), read_n_ff(file, "feed_forward_length")
    n_ff = read_n_ff(file, "expert_feed_forward_length", n_ff)
    experts = read_experts(file, n_ff, read_router(file, Router()), read_shared(file, n_ff))
    return read_multiplied(
        file,
        lambda scale: Layer(
            replace(attention, residual_scale=scale), replace(experts, residual_scale=scale)
        ),
    )
