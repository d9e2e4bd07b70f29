"""Qwen2: Llama with biases of queries, keys and values (arXiv:2407.10671)."""

from q4run.gguf_file import GGUFFile
from q4run.models.config import ModelConfig, read_attention, read_decoder, read_n_ff
from q4run.models.keys import DECODER_KEYS, FamilyKeys
from q4run.models.parts import DenseFeedForward, Layer
from q4run.models.rope_keys import NEOX

ARCHITECTURE = "qwen2"
KEYS = FamilyKeys(applied=DECODER_KEYS | {"feed_forward_length"}, fixed={})


def read_config(file: GGUFFile) -> ModelConfig:
    """Every layer alike: full attention with RoPE over halves, then one feed-forward."""
    layer = Layer(
        read_attention(file, NEOX), DenseFeedForward(read_n_ff(file, "feed_forward_length"))
    )
    return read_decoder(file, lambda _: layer)
