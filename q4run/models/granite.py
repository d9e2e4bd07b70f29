"""Granite 3 and 4 without experts or Mamba: Llama, each part times a number (ibm.com)."""

from dataclasses import replace

from q4run.gguf_file import GGUFFile
from q4run.models.config import ModelConfig, read_attention, read_n_ff
from q4run.models.keys import DECODER_KEYS, MULTIPLIER_KEYS, FamilyKeys
from q4run.models.parts import DenseFeedForward, Layer
from q4run.models.readers import read_multiplied

ARCHITECTURE = "granite"
KEYS = FamilyKeys(
    applied=DECODER_KEYS | MULTIPLIER_KEYS | {"feed_forward_length"},
    fixed={},
    refused=frozenset({"expert_count", "rope.scaling.finetuned"}),
)


def read_config(file: GGUFFile) -> ModelConfig:
    """Every layer alike: full attention with RoPE, then one feed-forward."""
    attention, n_ff = read_attention(file), read_n_ff(file, "feed_forward_length")
    return read_multiplied(
        file,
        lambda scale: Layer(
            replace(attention, residual_scale=scale), DenseFeedForward(n_ff, residual_scale=scale)
        ),
    )
