"""ERNIE 4.5 with experts: a softmax router whose choice a bias corrects."""

from gguf import MODEL_TENSOR

from q4run.convert.families.decoder import Draft, Plan, make_plan, read_sizes, start_metadata
from q4run.convert.families.experts import add_expert_keys, read_expert_counts
from q4run.convert.families.notes import not_loaded_by_llama_cpp
from q4run.convert.source.checkpoint import Checkpoint
from q4run.errors import UnsupportedError
from q4run.models.parts import DenseFeedForward, Experts, Router, SharedExpert

ARCHITECTURES = ("Ernie4_5_MoeForCausalLM",)
_ROUTER = Router(selection_bias=True)
# With `_bias` behind it, as a state dict taken from transformers 5 has it.
_SELECTION_BIAS = {
    MODEL_TENSOR.FFN_EXP_PROBS_B: "model.layers.{bid}.mlp.gate.moe_statics.e_score_correction"
}
_DEFAULTS = {
    "hidden_size": 2560,
    "intermediate_size": 12288,
    "max_position_embeddings": 131072,
    "moe_intermediate_size": 1536,
    "num_attention_heads": 20,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": True,
    "vocab_size": 103424,
}


def plan(checkpoint: Checkpoint) -> Plan:
    """The GGUF of an ERNIE 4.5 checkpoint with experts (architecture ``ernie4_5-moe``)."""
    config = checkpoint.config.with_defaults(_DEFAULTS)
    sizes = read_sizes(checkpoint, config, default_theta=500000.0)
    if config.flag("use_bias", False):
        raise UnsupportedError(f"{config.where}: use_bias is not supported")
    n_leading_dense = config.integer("moe_layer_start_index", 1, low=0)
    step = config.integer("moe_layer_interval", 1)
    last = config.integer("moe_layer_end_index", -1, low=-1)
    if last not in (-1, sizes.n_layer - 1):
        raise UnsupportedError(f"{config.where}: dense layers after those with experts")
    n_ff = config.integer("moe_intermediate_size")
    n_shared = config.integer("moe_num_shared_experts", 2, low=0)
    counts = read_expert_counts(config, "moe_num_experts", (64, 6), "moe_k")
    shared = SharedExpert(n_shared * n_ff) if n_shared else None
    experts = Experts(*counts, n_ff, _ROUTER, shared)
    dense = DenseFeedForward(config.integer("intermediate_size"))
    metadata = start_metadata("ernie4_5-moe", config, sizes, default_eps=1e-5)
    metadata.add_feed_forward_length(dense.n_ff)
    metadata.add_leading_dense_block_count(n_leading_dense)
    metadata.add_interleave_moe_layer_step(step)
    add_expert_keys(metadata, experts)
    return make_plan(
        Draft(checkpoint, metadata, config, sizes),
        lambda i: dense if i < n_leading_dense or (i + 1) % step else experts,
        more_names=_SELECTION_BIAS,
        notes=not_loaded_by_llama_cpp("it takes every layer to have experts", step != 1),
        mtp=r"^model\.mtp_",
    )
