"""Mixtral: Llama with routed experts in every layer."""

from q4run.convert.families.decoder import Draft, Plan, make_plan, read_sizes, start_metadata
from q4run.convert.families.experts import ExpertSource, read_expert_counts
from q4run.convert.families.windows import refuse_sliding_window
from q4run.convert.source.checkpoint import Checkpoint
from q4run.models.parts import Experts, Router

ARCHITECTURES = ("MixtralForCausalLM",)
_EXPERTS = ExpertSource(
    "block_sparse_moe.experts", ("w1", "w3", "w2"), count_key="num_local_experts"
)


def plan(checkpoint: Checkpoint) -> Plan:
    """The GGUF of a Mixtral checkpoint (architecture ``llama``, with experts)."""
    config = checkpoint.config
    sizes = read_sizes(checkpoint, config, default_theta=1e6)
    refuse_sliding_window(config)
    n_ff = config.integer("intermediate_size")
    n_expert, n_used = read_expert_counts(config, _EXPERTS.count_key, (8, 2))
    metadata = start_metadata("llama", config, sizes, default_eps=1e-5)
    metadata.add_feed_forward_length(n_ff)
    metadata.add_expert_count(n_expert)
    metadata.add_expert_used_count(n_used)
    experts = Experts(n_expert, n_used, n_ff, Router())
    return make_plan(
        Draft(checkpoint, metadata, config, sizes),
        lambda _: experts,
        pair_rows=True,
        experts=_EXPERTS,
    )
