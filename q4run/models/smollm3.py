"""SmolLM3: Llama whose every fourth layer knows no positions (arXiv:2501.18795, NoPE)."""

from dataclasses import replace

from q4run.gguf_file import GGUFFile
from q4run.models.config import (
    ModelConfig,
    n_layers,
    read_attention,
    read_decoder,
    read_n_ff,
)
from q4run.models.keys import DECODER_KEYS, FamilyKeys
from q4run.models.nope import ROPE_LAYERS, default_rope_layers, read_layer_flags
from q4run.models.parts import DenseFeedForward, Layer

ARCHITECTURE = "smollm3"
KEYS = FamilyKeys(applied=DECODER_KEYS | {"feed_forward_length", ROPE_LAYERS}, fixed={})


def read_config(file: GGUFFile) -> ModelConfig:
    """Raises FormatError where the list of layers does not have one entry per layer."""
    feed_forward = DenseFeedForward(read_n_ff(file, "feed_forward_length"))
    rotating = read_attention(file)
    still = replace(rotating, rope=None)
    n_layer = n_layers(file)
    has_rope = read_layer_flags(file, ROPE_LAYERS, n_layer, default_rope_layers(n_layer))
    return read_decoder(file, lambda i: Layer(rotating if has_rope[i] else still, feed_forward))
