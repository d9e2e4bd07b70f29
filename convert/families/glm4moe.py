"""GLM-4.5 to 4.7: DeepSeek-V3's router, dense feed-forwards in the first layers."""

from gguf import MODEL_TENSOR

from q4run.convert.families.decoder import (
    Draft,
    Plan,
    make_plan,
    mtp_layers,
    read_sizes,
    start_metadata,
)
from q4run.convert.families.experts import add_expert_keys, read_expert_counts, read_v3_router
from q4run.convert.source.checkpoint import Checkpoint
from q4run.models.parts import DenseFeedForward, Experts, QKNorm, SharedExpert

ARCHITECTURES = ("Glm4MoeForCausalLM",)
_DEFAULTS = {
    "first_k_dense_replace": 1,
    "hidden_size": 4096,
    "intermediate_size": 10944,
    "max_position_embeddings": 131072,
    "moe_intermediate_size": 1408,
    "n_shared_experts": 1,
    "num_attention_heads": 96,
    "num_hidden_layers": 46,
    "num_key_value_heads": 8,
    "partial_rotary_factor": 0.5,
    "vocab_size": 151552,
}


def plan(checkpoint: Checkpoint) -> Plan:
    """The GGUF of a GLM-4.5 checkpoint (architecture ``glm4moe``), without the blocks that predict
    further tokens (MTP)."""
    config = checkpoint.config.with_defaults(_DEFAULTS)
    sizes = read_sizes(
        checkpoint, config, default_theta=10000.0, partial_rotary=True, known=("attention_bias",)
    )
    sizes = sizes.with_attention(
        qkv_bias=config.flag("attention_bias", False),
        qk_norm=QKNorm.WEIGHTED if config.flag("use_qk_norm", False) else QKNorm.NONE,
    )
    n_ff = config.integer("moe_intermediate_size")
    n_shared = config.integer("n_shared_experts", low=0)
    experts = Experts(
        *read_expert_counts(
            config, config.key_of("n_routed_experts", "num_local_experts"), (128, 8)
        ),
        n_ff,
        read_v3_router(config),
        SharedExpert(n_shared * n_ff) if n_shared else None,
        norm=MODEL_TENSOR.ATTN_POST_NORM,
    )
    dense = DenseFeedForward(config.integer("intermediate_size"), norm=experts.norm)
    n_leading_dense = config.integer("first_k_dense_replace", low=0)
    metadata = start_metadata("glm4moe", config, sizes, default_eps=1e-5)
    metadata.add_feed_forward_length(dense.n_ff)
    metadata.add_leading_dense_block_count(n_leading_dense)
    add_expert_keys(metadata, experts)
    return make_plan(
        Draft(checkpoint, metadata, config, sizes),
        lambda i: dense if i < n_leading_dense else experts,
        mtp=mtp_layers(config, sizes.n_layer),
    )
