"""Qwen2 and Qwen2.5: Llama with biases of queries, keys and values."""

from q4run.convert.families.decoder import Draft, Plan, make_plan, read_sizes, start_metadata
from q4run.convert.families.windows import refuse_used_window
from q4run.convert.source.checkpoint import Checkpoint
from q4run.models.parts import DenseFeedForward

ARCHITECTURES = ("Qwen2ForCausalLM",)
_DEFAULTS = {
    "hidden_size": 4096,
    "intermediate_size": 22016,
    "max_position_embeddings": 32768,
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 32,
    "vocab_size": 151936,
}


def plan(checkpoint: Checkpoint) -> Plan:
    """The GGUF of a Qwen2 checkpoint (architecture ``qwen2``)."""
    config = checkpoint.config.with_defaults(_DEFAULTS)
    sizes = read_sizes(checkpoint, config, default_theta=10000.0).with_attention(qkv_bias=True)
    refuse_used_window(config)
    feed_forward = DenseFeedForward(config.integer("intermediate_size"))
    metadata = start_metadata("qwen2", config, sizes, default_eps=1e-6)
    metadata.add_feed_forward_length(feed_forward.n_ff)
    return make_plan(Draft(checkpoint, metadata, config, sizes), lambda _: feed_forward)
