"""dots.llm1: Qwen3's attention, DeepSeek-V3's router, dense feed-forwards in the first layers."""

from q4run.convert.families.decoder import Draft, Plan, make_plan, read_sizes, start_metadata
from q4run.convert.families.experts import add_expert_keys, read_expert_counts, read_v3_router
from q4run.convert.families.notes import notes_on_heads
from q4run.convert.families.windows import refuse_window_layers
from q4run.convert.source.checkpoint import Checkpoint
from q4run.models.parts import DenseFeedForward, Experts, QKNorm, SharedExpert

ARCHITECTURES = ("Dots1ForCausalLM",)
_DEFAULTS = {
    "first_k_dense_replace": 0,
    "hidden_size": 4608,
    "intermediate_size": 10944,
    "max_position_embeddings": 2048,
    "moe_intermediate_size": 1408,
    "n_shared_experts": 0,
    "norm_topk_prob": False,
    "num_attention_heads": 32,
    "num_hidden_layers": 62,
    "num_key_value_heads": 32,
    "vocab_size": 152064,
}


def plan(checkpoint: Checkpoint) -> Plan:
    """The GGUF of a dots.llm1 checkpoint (architecture ``dots1``)."""
    config = checkpoint.config.with_defaults(_DEFAULTS)
    sizes = read_sizes(checkpoint, config, default_theta=10000.0)
    sizes = sizes.with_attention(qk_norm=QKNorm.WEIGHTED)
    refuse_window_layers(config)
    n_ff = config.integer("moe_intermediate_size")
    n_shared = config.integer("n_shared_experts", low=0)
    experts = Experts(
        *read_expert_counts(config, config.key_of("n_routed_experts", "num_local_experts")),
        n_ff,
        read_v3_router(config),
        SharedExpert(n_shared * n_ff) if n_shared else None,
    )
    dense = DenseFeedForward(config.integer("intermediate_size"))
    n_leading_dense = config.integer("first_k_dense_replace", low=0)
    metadata = start_metadata("dots1", config, sizes, default_eps=1e-6)
    metadata.add_feed_forward_length(dense.n_ff)
    metadata.add_leading_dense_block_count(n_leading_dense)
    add_expert_keys(metadata, experts)
    return make_plan(
        Draft(checkpoint, metadata, config, sizes),
        lambda i: dense if i < n_leading_dense else experts,
        notes=notes_on_heads(sizes.attention),
    )
