"""Llama 1 to 3 and, with experts, Mixtral (Touvron et al., arXiv:2302.13971; arXiv:2401.04088)."""

from q4run.gguf_file import GGUFFile
from q4run.models.config import (
    AttentionConfig,
    Gating,
    LayerConfig,
    ModelConfig,
    read_decoder,
    read_moe,
    read_n_ff,
)

ARCHITECTURE = "llama"


def read_config(file: GGUFFile) -> ModelConfig:
    """Every layer alike: full attention with RoPE, then one feed-forward or top-k experts."""
    n_ff = read_n_ff(file, "feed_forward_length")
    attention = AttentionConfig(rope=True)
    if file.get_int("llama.expert_count", 0):
        n_ff_exp = read_n_ff(file, "expert_feed_forward_length", n_ff)
        layer = LayerConfig(attention, moe=read_moe(file, n_ff_exp, 0, Gating.SOFTMAX))
    else:
        layer = LayerConfig(attention, n_ff=n_ff)
    return read_decoder(file, lambda _: layer)
