"""Ministral 3 and its like: Llama whose queries grow with position (docs.mistral.ai)."""

from dataclasses import replace

from q4run.gguf_file import GGUFFile
from q4run.models.config import ModelConfig, read_attention, read_decoder, read_n_ff
from q4run.models.keys import DECODER_KEYS, FamilyKeys
from q4run.models.parts import DenseFeedForward, Layer, Temperature

ARCHITECTURE = "mistral3"
KEYS = FamilyKeys(
    applied=DECODER_KEYS | {"attention.temperature_scale", "feed_forward_length"},
    fixed={},
    refused=frozenset({"expert_count"}),
)


def read_config(file: GGUFFile) -> ModelConfig:
    """Every layer alike: full attention with RoPE, then one feed-forward."""
    attention = read_attention(file)
    assert attention.rope is not None
    scale = file.get_float("mistral3.attention.temperature_scale", 0.0)
    if scale:
        length = attention.rope.scaling.original_context
        attention = replace(attention, temperature=Temperature(length, scale, offset=0))
    layer = Layer(attention, DenseFeedForward(read_n_ff(file, "feed_forward_length")))
    return read_decoder(file, lambda _: layer)
