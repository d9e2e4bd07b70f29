"""BitNet b1.58 whose weights are stored as floats."""

from gguf import MODEL_TENSOR

from q4run.convert.families.decoder import Draft, Plan, make_plan, read_sizes, start_metadata
from q4run.convert.families.notes import ignored_by_llama_cpp, not_loaded_by_llama_cpp
from q4run.convert.source.checkpoint import Checkpoint
from q4run.errors import UnsupportedError
from q4run.models.bitnet import ACTIVATION_KEY, ACTIVATIONS
from q4run.models.parts import DenseFeedForward

ARCHITECTURES = ("BitNetForCausalLM",)
_MORE_NAMES = {
    MODEL_TENSOR.OUTPUT: "lm_head",
    MODEL_TENSOR.ATTN_SUB_NORM: "model.layers.{bid}.self_attn.attn_sub_norm",
    MODEL_TENSOR.FFN_SUB_NORM: "model.layers.{bid}.mlp.ffn_sub_norm",
}
_DEFAULTS = {
    "hidden_act": "relu2",
    "hidden_size": 2560,
    "intermediate_size": 6912,
    "max_position_embeddings": 2048,
    "num_attention_heads": 20,
    "num_hidden_layers": 30,
    "num_key_value_heads": 5,
    "vocab_size": 128256,
}


def plan(checkpoint: Checkpoint) -> Plan:
    """The GGUF of a BitNet checkpoint (architecture ``bitnet``)."""
    config = checkpoint.config.with_defaults(_DEFAULTS)
    sizes = read_sizes(checkpoint, config, default_theta=500000.0, known=("hidden_act",))
    sizes = sizes.with_attention(sub_norm=True)
    activation = config.text("hidden_act")
    if activation not in ACTIVATIONS:
        raise UnsupportedError(
            f"{config.where}: hidden_act '{activation[:40]}' is not supported"
            f" (known: {', '.join(ACTIVATIONS)})"
        )
    feed_forward = DenseFeedForward(config.integer("intermediate_size"), sub_norm=True)
    metadata = start_metadata("bitnet", config, sizes, default_eps=1e-5)
    metadata.add_feed_forward_length(feed_forward.n_ff)
    metadata.add_string(f"bitnet.{ACTIVATION_KEY}", activation)
    ignored = [] if activation == "silu" else [f"bitnet.{ACTIVATION_KEY}"]
    notes = ignored_by_llama_cpp(ignored)
    notes += not_loaded_by_llama_cpp("it takes the embeddings for the output", not sizes.tied)
    return make_plan(
        Draft(checkpoint, metadata, config, sizes),
        lambda _: feed_forward,
        more_names=_MORE_NAMES,
        notes=notes,
    )
