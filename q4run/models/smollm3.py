"""SmolLM3: Llama whose every fourth layer knows no positions (arXiv:2501.18795, NoPE)."""

from dataclasses import replace

from q4run.errors import FormatError
from q4run.gguf_file import GGUFFile
from q4run.models.config import (
    ModelConfig,
    n_layers,
    read_attention,
    read_decoder,
    read_n_ff,
)
from q4run.models.keys import DECODER_KEYS, FamilyKeys
from q4run.models.parts import DenseFeedForward, Layer

ARCHITECTURE = "smollm3"
# A key of our own: 1 for each layer that rotates. llama.cpp takes the interval for granted.
ROPE_LAYERS = "attention.no_rope_layers"
NOPE_INTERVAL = 4
KEYS = FamilyKeys(applied=DECODER_KEYS | {"feed_forward_length", ROPE_LAYERS}, fixed={})


def default_rope_layers(n_layer: int) -> list[int]:
    """Returns 1 for each layer that rotates where a file does not say, and 0 for the others."""
    return [int((i + 1) % NOPE_INTERVAL != 0) for i in range(n_layer)]


def read_config(file: GGUFFile) -> ModelConfig:
    """Raises FormatError where the list of layers does not have one entry per layer."""
    feed_forward = DenseFeedForward(read_n_ff(file, "feed_forward_length"))
    rotating = read_attention(file)
    still = replace(rotating, rope=None)
    n_layer, key = n_layers(file), f"smollm3.{ROPE_LAYERS}"
    has_rope = file.get_array(key, int, default_rope_layers(n_layer))
    if len(has_rope) != n_layer:
        raise FormatError(f"{file.path}: {key} has {len(has_rope)} entries for {n_layer} layers")
    return read_decoder(file, lambda i: Layer(rotating if has_rope[i] else still, feed_forward))
