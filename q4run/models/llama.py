"""Llama 1 to 3 and, with experts, Mixtral (Touvron et al., arXiv:2302.13971; arXiv:2401.04088)."""

from gguf import ExpertGatingFuncType

from q4run.gguf_file import GGUFFile
from q4run.models.config import ModelConfig, read_attention, read_decoder, read_experts, read_n_ff
from q4run.models.keys import DECODER_KEYS, EXPERT_KEYS, FamilyKeys
from q4run.models.parts import DenseFeedForward, FeedForward, Layer, Router

ARCHITECTURE = "llama"
KEYS = FamilyKeys(
    applied=DECODER_KEYS | EXPERT_KEYS | {"feed_forward_length"},
    fixed={"expert_gating_func": (ExpertGatingFuncType.SOFTMAX,), "expert_weights_norm": (True,)},
)


def read_config(file: GGUFFile) -> ModelConfig:
    """Every layer alike: full attention with RoPE, then one feed-forward or top-k experts."""
    n_ff = read_n_ff(file, "feed_forward_length")
    feed_forward: FeedForward = DenseFeedForward(n_ff)
    if file.get_int("llama.expert_count", 0):
        n_ff_exp = read_n_ff(file, "expert_feed_forward_length", n_ff)
        feed_forward = read_experts(file, n_ff_exp, Router())
    attention = read_attention(file)
    return read_decoder(file, lambda _: Layer(attention, feed_forward))
