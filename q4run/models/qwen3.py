"""Qwen3: Llama whose queries and keys are normed head by head (arXiv:2505.09388)."""

from dataclasses import replace

from q4run.gguf_file import GGUFFile
from q4run.models.config import ModelConfig, read_attention, read_decoder, read_n_ff
from q4run.models.keys import DECODER_KEYS, FamilyKeys
from q4run.models.parts import DenseFeedForward, Layer, QKNorm
from q4run.models.rope_keys import NEOX

ARCHITECTURE = "qwen3"
KEYS = FamilyKeys(applied=DECODER_KEYS | {"feed_forward_length"}, fixed={})


def read_config(file: GGUFFile) -> ModelConfig:
    """Every layer alike: full attention with RoPE over halves, then one feed-forward."""
    attention = replace(read_attention(file, NEOX), qk_norm=QKNorm.WEIGHTED)
    layer = Layer(attention, DenseFeedForward(read_n_ff(file, "feed_forward_length")))
    return read_decoder(file, lambda _: layer)
