"""Qwen1.5 and Qwen2 with experts in every layer, one of them shared."""

from q4run.convert.families.decoder import Draft, Plan, make_plan, read_sizes, start_metadata
from q4run.convert.families.experts import add_expert_keys, notes_on_norm, read_expert_counts
from q4run.convert.families.qwen3moe import refuse_dense_layers
from q4run.convert.families.windows import refuse_used_window
from q4run.convert.source.checkpoint import Checkpoint
from q4run.models.parts import Experts, Router, SharedExpert

ARCHITECTURES = ("Qwen2MoeForCausalLM",)
_DEFAULTS = {
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "max_position_embeddings": 32768,
    "moe_intermediate_size": 1408,
    "num_attention_heads": 16,
    "num_experts": 60,
    "num_experts_per_tok": 4,
    "num_hidden_layers": 24,
    "num_key_value_heads": 16,
    "shared_expert_intermediate_size": 5632,
    "vocab_size": 151936,
}


def plan(checkpoint: Checkpoint) -> Plan:
    """The GGUF of a Qwen2-MoE checkpoint (architecture ``qwen2moe``)."""
    config = checkpoint.config.with_defaults(_DEFAULTS)
    sizes = read_sizes(checkpoint, config, default_theta=10000.0)
    sizes = sizes.with_attention(qkv_bias=config.flag("qkv_bias", True))
    refuse_used_window(config)
    refuse_dense_layers(config)
    router = Router(renormalise=config.flag("norm_topk_prob", False))
    shared = SharedExpert(config.integer("shared_expert_intermediate_size"), gated=True)
    n_ff = config.integer("moe_intermediate_size")
    experts = Experts(*read_expert_counts(config, "num_experts"), n_ff, router, shared)
    metadata = start_metadata("qwen2moe", config, sizes, default_eps=1e-6)
    metadata.add_feed_forward_length(config.integer("intermediate_size"))
    add_expert_keys(metadata, experts)
    notes = notes_on_norm(metadata, router, in_llama_cpp=False)
    return make_plan(Draft(checkpoint, metadata, config, sizes), lambda _: experts, notes=notes)
