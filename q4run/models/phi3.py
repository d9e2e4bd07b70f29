"""Phi-3 and Phi-4: matrices in one that Llama has apart, factors for long contexts
(arXiv:2404.14219)."""

from dataclasses import replace

from q4run.gguf_file import GGUFFile
from q4run.models.config import ModelConfig, read_attention, read_decoder, read_n_ff
from q4run.models.keys import DECODER_KEYS, WINDOW_KEYS, FamilyKeys
from q4run.models.parts import DenseFeedForward, Layer
from q4run.models.readers import read_window
from q4run.models.rope_keys import NEOX

ARCHITECTURE = "phi3"
KEYS = FamilyKeys(
    applied=DECODER_KEYS | WINDOW_KEYS | {"feed_forward_length"},
    fixed={},
    refused=frozenset({"expert_count"}),
)


def read_config(file: GGUFFile) -> ModelConfig:
    """Every layer alike: attention, perhaps in a window, then one feed-forward."""
    attention = replace(read_attention(file, NEOX), window=read_window(file))
    feed_forward = DenseFeedForward(read_n_ff(file, "feed_forward_length"), fused_gate_up=True)
    return read_decoder(file, lambda _: Layer(attention, feed_forward))
