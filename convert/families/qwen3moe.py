"""Qwen3 with experts in every layer."""

from q4run.convert.config import Config
from q4run.convert.families.decoder import Draft, Plan, make_plan, read_sizes, start_metadata
from q4run.convert.families.experts import add_expert_keys, notes_on_norm, read_expert_counts
from q4run.convert.families.windows import refuse_used_window
from q4run.convert.source.checkpoint import Checkpoint
from q4run.errors import UnsupportedError
from q4run.models.parts import Experts, QKNorm, Router

ARCHITECTURES = ("Qwen3MoeForCausalLM",)
# Released checkpoints have the first, what transformers 5 saves the second.
_COUNT_KEYS = ("num_experts", "num_local_experts")
_DEFAULTS = {
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "max_position_embeddings": 32768,
    "moe_intermediate_size": 768,
    "num_attention_heads": 32,
    "num_hidden_layers": 24,
    "num_key_value_heads": 4,
    "vocab_size": 151936,
}


def plan(checkpoint: Checkpoint) -> Plan:
    """The GGUF of a Qwen3-MoE checkpoint (architecture ``qwen3moe``)."""
    config = checkpoint.config.with_defaults(_DEFAULTS)
    sizes = read_sizes(checkpoint, config, default_theta=10000.0)
    sizes = sizes.with_attention(qk_norm=QKNorm.WEIGHTED)
    refuse_used_window(config)
    refuse_dense_layers(config)
    router = Router(renormalise=config.flag("norm_topk_prob", False))
    n_ff = config.integer("moe_intermediate_size")
    counts = read_expert_counts(config, config.key_of(*_COUNT_KEYS), (128, 8))
    experts = Experts(*counts, n_ff, router)
    metadata = start_metadata("qwen3moe", config, sizes, default_eps=1e-6)
    metadata.add_feed_forward_length(config.integer("intermediate_size"))
    add_expert_keys(metadata, experts)
    notes = notes_on_norm(metadata, router, in_llama_cpp=True)
    return make_plan(Draft(checkpoint, metadata, config, sizes), lambda _: experts, notes=notes)


def refuse_dense_layers(config: Config) -> None:
    """Raises UnsupportedError where some layers of a Qwen with experts have none: GGUF cannot say
    which."""
    if config.integer("decoder_sparse_step", 1) != 1 or config.items("mlp_only_layers", int):
        raise UnsupportedError(f"{config.where}: layers without experts are not supported")
