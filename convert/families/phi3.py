"""Phi-3 and Phi-4: queries, keys and values in one matrix, gate and up in another."""

from q4run.convert.families.decoder import Draft, Plan, make_plan, read_sizes, start_metadata
from q4run.convert.families.notes import ignored_by_llama_cpp
from q4run.convert.source.checkpoint import Checkpoint
from q4run.models.parts import DenseFeedForward

ARCHITECTURES = ("Phi3ForCausalLM",)
_DEFAULTS = {
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "max_position_embeddings": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "original_max_position_embeddings": 4096,
    "vocab_size": 32064,
}


def plan(checkpoint: Checkpoint) -> Plan:
    """The GGUF of a Phi-3 checkpoint (architecture ``phi3``)."""
    config = checkpoint.config.with_defaults(_DEFAULTS)
    sizes = read_sizes(checkpoint, config, default_theta=10000.0, partial_rotary=True)
    sizes = sizes.with_attention(fused_qkv=True)
    feed_forward = DenseFeedForward(config.integer("intermediate_size"), fused_gate_up=True)
    metadata = start_metadata("phi3", config, sizes, default_eps=1e-5)
    metadata.add_feed_forward_length(feed_forward.n_ff)
    window = config.integer("sliding_window", 0, low=0)
    metadata.add_sliding_window(window)
    is_short = 0 < window < config.integer("max_position_embeddings")
    notes = ignored_by_llama_cpp(["phi3.attention.sliding_window"] if is_short else [])
    return make_plan(
        Draft(checkpoint, metadata, config, sizes), lambda _: feed_forward, notes=notes
    )
