"""Granite 3 with experts in every layer."""

from gguf import MODEL_TENSOR

from q4run.convert.families.decoder import Draft, Plan, make_plan, read_sizes, start_metadata
from q4run.convert.families.experts import ExpertSource, add_expert_keys, read_expert_counts
from q4run.convert.families.granite import DEFAULTS, add_multipliers
from q4run.convert.source.checkpoint import Checkpoint
from q4run.models.parts import Experts, Router

ARCHITECTURES = ("GraniteMoeForCausalLM",)
_EXPERTS = ExpertSource(
    stacks=("block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight"),
    count_key="num_local_experts",
)
# What a state dict taken from transformers 5 calls experts and router.
_IN_MEMORY = ExpertSource(
    stacks=("block_sparse_moe.experts.gate_up_proj", "block_sparse_moe.experts.down_proj"),
    count_key=_EXPERTS.count_key,
)
_ROUTER = {MODEL_TENSOR.FFN_GATE_INP: "model.layers.{bid}.block_sparse_moe.router"}


def plan(checkpoint: Checkpoint) -> Plan:
    """The GGUF of a Granite checkpoint with experts (architecture ``granitemoe``)."""
    config = checkpoint.config.with_defaults(DEFAULTS)
    sizes = read_sizes(checkpoint, config, default_theta=10000.0)
    n_ff = config.integer("intermediate_size")
    counts = read_expert_counts(config, _EXPERTS.count_key, (8, 2))
    experts = Experts(*counts, n_ff, Router())
    metadata = start_metadata("granitemoe", config, sizes, default_eps=1e-6)
    metadata.add_feed_forward_length(n_ff)
    add_expert_keys(metadata, experts)
    add_multipliers(metadata, config)
    in_memory = checkpoint.has(f"model.layers.0.{_IN_MEMORY.stacks[0]}")
    return make_plan(
        Draft(checkpoint, metadata, config, sizes),
        lambda _: experts,
        pair_rows=True,
        experts=_IN_MEMORY if in_memory else _EXPERTS,
        more_names=_ROUTER,
    )
