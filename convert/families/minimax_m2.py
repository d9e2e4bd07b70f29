"""MiniMax-M2: queries and keys normed over all heads, a part of each rotates."""

from q4run.convert.config import Config
from q4run.convert.families.decoder import Draft, Plan, make_plan, read_sizes, start_metadata
from q4run.convert.families.experts import ExpertSource, add_expert_keys, read_expert_counts
from q4run.convert.source.checkpoint import Checkpoint
from q4run.models.parts import Experts, QKNorm, Router, Scores

ARCHITECTURES = ("MiniMaxM2ForCausalLM",)
_EXPERTS = ExpertSource(
    "block_sparse_moe.experts", ("w1", "w3", "w2"), count_key="num_local_experts"
)
_ROUTER = Router(Scores.SIGMOID, selection_bias=True)
_DEFAULTS = {
    "head_dim": 128,
    "hidden_size": 3072,
    "intermediate_size": 1536,
    "max_position_embeddings": 196608,
    "num_attention_heads": 48,
    "num_hidden_layers": 62,
    "num_key_value_heads": 8,
    "vocab_size": 200064,
}


def plan(checkpoint: Checkpoint) -> Plan:
    """The GGUF of a MiniMax-M2 checkpoint (architecture ``minimax-m2``)."""
    config = _with_rotary_share(checkpoint.config.with_defaults(_DEFAULTS))
    sizes = read_sizes(checkpoint, config, default_theta=5000000.0, partial_rotary=True)
    sizes = sizes.with_attention(qk_norm=QKNorm.WHOLE)
    n_ff = config.integer("intermediate_size")
    counts = read_expert_counts(config, config.key_of(_EXPERTS.count_key, "num_experts"), (256, 8))
    experts = Experts(*counts, n_ff, _ROUTER)
    metadata = start_metadata("minimax-m2", config, sizes, default_eps=1e-6)
    metadata.add_feed_forward_length(n_ff)
    add_expert_keys(metadata, experts)
    return make_plan(
        Draft(checkpoint, metadata, config, sizes), lambda _: experts, experts=_EXPERTS
    )


def _with_rotary_share(config: Config) -> Config:
    """The same with ``rotary_dim``, as the released checkpoints have it, in the usual words."""
    if "rotary_dim" not in config:
        return config
    share = config.integer("rotary_dim") / config.integer("head_dim")
    return config.with_defaults({"partial_rotary_factor": share})
