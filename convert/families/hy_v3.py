"""Hy3: queries and keys normed head by head, DeepSeek-V3's router, a dense first layer."""

from gguf import MODEL_TENSOR

from q4run.convert.config import Config
from q4run.convert.families.decoder import (
    Draft,
    Plan,
    make_plan,
    mtp_layers,
    read_sizes,
    start_metadata,
)
from q4run.convert.families.experts import add_expert_keys, read_expert_counts
from q4run.convert.source.checkpoint import Checkpoint
from q4run.errors import UnsupportedError
from q4run.models.parts import DenseFeedForward, Experts, QKNorm, Router, Scores, SharedExpert

ARCHITECTURES = ("HYV3ForCausalLM",)
# With `_bias` behind it, as released; what transformers calls it, gguf's table has.
_SELECTION_BIAS = {MODEL_TENSOR.FFN_EXP_PROBS_B: "model.layers.{bid}.mlp.expert"}
# What every Hy3 has in transformers, whatever these keys of released checkpoints say.
_ALWAYS = ("moe_router_enable_expert_bias", "moe_router_use_sigmoid", "qk_norm", "route_norm")
_DEFAULTS = {
    "head_dim": 128,
    "hidden_size": 4096,
    "intermediate_size": 13312,
    "max_position_embeddings": 131072,
    "moe_intermediate_size": 1536,
    "num_attention_heads": 64,
    "num_hidden_layers": 80,
    "num_key_value_heads": 8,
    "num_shared_experts": 1,
    "router_scaling_factor": 2.826,
    "vocab_size": 120832,
}


def plan(checkpoint: Checkpoint) -> Plan:
    """The GGUF of a Hy3 checkpoint (architecture ``hy_v3``), without the blocks that predict
    further tokens (MTP)."""
    config = checkpoint.config.with_defaults(_DEFAULTS)
    sizes = read_sizes(checkpoint, config, default_theta=11158840.0)
    sizes = sizes.with_attention(qk_norm=QKNorm.WEIGHTED)
    for key in _ALWAYS:
        if not config.flag(key, True):
            raise UnsupportedError(f"{config.where}: a model without {key} is not supported")
    n_ff = config.integer("moe_intermediate_size")
    experts = Experts(
        *read_expert_counts(config, config.key_of("num_experts", "num_local_experts"), (192, 8)),
        n_ff,
        Router(
            Scores.SIGMOID,
            scale=config.number("router_scaling_factor"),
            selection_bias=True,
            bare_selection_bias=True,
        ),
        SharedExpert(config.integer("num_shared_experts") * n_ff),
    )
    dense = DenseFeedForward(config.integer("intermediate_size"))
    n_leading_dense = _read_leading_dense(config, sizes.n_layer)
    metadata = start_metadata("hy_v3", config, sizes, default_eps=1e-5)
    metadata.add_feed_forward_length(dense.n_ff)
    metadata.add_leading_dense_block_count(n_leading_dense)
    add_expert_keys(metadata, experts)
    return make_plan(
        Draft(checkpoint, metadata, config, sizes),
        lambda i: dense if i < n_leading_dense else experts,
        more_names=_SELECTION_BIAS,
        mtp=mtp_layers(config, sizes.n_layer),
    )


def _read_leading_dense(config: Config, n_layer: int) -> int:
    """Reads how many layers come before the first with experts.

    Raises UnsupportedError where dense ones follow it.
    """
    kinds = config.items("mlp_layer_types", str)
    if kinds is None:
        return min(n_layer, config.integer("first_k_dense_replace", 1, low=0))
    if len(kinds) != n_layer or not set(kinds) <= {"dense", "sparse"}:
        raise config.bad("mlp_layer_types", f"dense or sparse for each of {n_layer} layers")
    n_dense = kinds.count("dense")
    if "dense" in kinds[n_dense:]:
        raise UnsupportedError(f"{config.where}: dense layers after those with experts")
    return n_dense
