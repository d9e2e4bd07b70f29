"""Ministral 3 and its like, the text part: Llama whose queries grow with position."""

from q4run.convert.config import Config
from q4run.convert.families.decoder import Draft, Plan, finish_plan, read_sizes, start_metadata
from q4run.convert.families.llama import dense_tensors
from q4run.convert.families.names import SourceNames
from q4run.convert.families.windows import refuse_sliding_window
from q4run.convert.source.checkpoint import Checkpoint
from q4run.errors import FormatError, UnsupportedError

ARCHITECTURES = ("Ministral3ForCausalLM", "Mistral3ForConditionalGeneration")
VISION = r"^(model\.)?(vision_tower|multi_modal_projector)\."
_DEFAULTS = {
    "head_dim": 128,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 262144,
    "num_attention_heads": 32,
    "num_hidden_layers": 34,
    "num_key_value_heads": 8,
    "vocab_size": 131072,
}
_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}


def plan(checkpoint: Checkpoint) -> Plan:
    """The GGUF of a Ministral 3 checkpoint (architecture ``mistral3``).

    The vision tensors of ``Mistral3ForConditionalGeneration`` are left out, which a note says.
    """
    config = _text_config(checkpoint.config)
    sizes = read_sizes(checkpoint, config, default_theta=1000000.0)
    refuse_sliding_window(config)
    n_ff = config.integer("intermediate_size")
    metadata = start_metadata("mistral3", config, sizes, default_eps=1e-5)
    metadata.add_feed_forward_length(n_ff)
    rope = config.section("rope_parameters")
    if rope is not None and "llama_4_scaling_beta" in rope:
        metadata.add_attn_temperature_scale(rope.number("llama_4_scaling_beta"))
        length = rope.integer("original_max_position_embeddings")
        stored = sizes.rope.rope.scaling.original_context
        if stored not in (0, length):
            raise FormatError(
                f"{config.where}: original_max_position_embeddings is both {stored} and {length}"
            )
        if stored == 0:
            metadata.add_rope_scaling_orig_ctx_len(length)
    names = SourceNames(checkpoint, "mistral3", sizes.n_layer)
    tensors = dense_tensors(checkpoint, sizes, n_ff, names)
    return finish_plan(Draft(checkpoint, metadata, config, sizes), tensors, vision=VISION)


def _text_config(config: Config) -> Config:
    """The language model's part, with what its class in `transformers` has by default."""
    text = config.section("text_config")
    if text is not None and text.text("model_type", "mistral") != "ministral3":
        raise UnsupportedError(
            f"{text.where}: a language model of the type"
            f" '{text.text('model_type', 'mistral')[:40]}' is not supported (known: ministral3)"
        )
    text = text or config
    scaled = text if "rope_scaling" in text else text.with_defaults({"rope_parameters": _ROPE})
    return scaled.with_defaults(_DEFAULTS)
