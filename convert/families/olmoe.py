"""OLMoE: queries and keys normed over all heads, experts in every layer."""

from q4run.convert.families.decoder import Draft, Plan, make_plan, read_sizes, start_metadata
from q4run.convert.families.experts import add_expert_keys, notes_on_norm, read_expert_counts
from q4run.convert.families.notes import notes_on_heads
from q4run.convert.source.checkpoint import Checkpoint
from q4run.errors import UnsupportedError
from q4run.models.parts import Experts, QKNorm, Router

ARCHITECTURES = ("OlmoeForCausalLM",)
_DEFAULTS = {
    "hidden_size": 2048,
    "intermediate_size": 2048,
    "max_position_embeddings": 4096,
    "num_attention_heads": 16,
    "num_experts": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 16,
    "vocab_size": 50304,
}


def plan(checkpoint: Checkpoint) -> Plan:
    """The GGUF of an OLMoE checkpoint (architecture ``olmoe``)."""
    config = checkpoint.config.with_defaults(_DEFAULTS)
    sizes = read_sizes(checkpoint, config, default_theta=10000.0)
    sizes = sizes.with_attention(qk_norm=QKNorm.WHOLE)
    if "clip_qkv" in config:
        raise UnsupportedError(f"{config.where}: clip_qkv is not supported")
    router = Router(renormalise=config.flag("norm_topk_prob", False))
    n_ff = config.integer("intermediate_size")
    experts = Experts(*read_expert_counts(config, "num_experts"), n_ff, router)
    metadata = start_metadata("olmoe", config, sizes, default_eps=1e-5)
    metadata.add_feed_forward_length(n_ff)
    add_expert_keys(metadata, experts)
    notes = notes_on_norm(metadata, router, in_llama_cpp=False) + notes_on_heads(sizes.attention)
    return make_plan(Draft(checkpoint, metadata, config, sizes), lambda _: experts, notes=notes)
