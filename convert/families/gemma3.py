"""Gemma 3, the text part: norms stored less one, two rotations, windows."""

from dataclasses import replace

from q4run.convert.config import Config
from q4run.convert.families.decoder import (
    Draft,
    Plan,
    decoder_tensors,
    finish_plan,
    read_sizes,
    start_metadata,
)
from q4run.convert.families.names import SourceNames
from q4run.convert.families.notes import ignored_by_llama_cpp
from q4run.convert.families.rope import read_rope
from q4run.convert.families.windows import add_window_layers
from q4run.convert.source.checkpoint import Checkpoint
from q4run.convert.tensors import plus_one
from q4run.errors import UnsupportedError
from q4run.models.gemma3 import LOCAL_THETA, WINDOW_PERIOD, default_scale
from q4run.models.parts import DenseFeedForward, QKNorm, Role
from q4run.models.rope import RopeScaling

ARCHITECTURES = ("Gemma3ForCausalLM", "Gemma3ForConditionalGeneration")
VISION = r"^(model\.)?(vision_tower|multi_modal_projector)\."
_ACTIVATION = "gelu_pytorch_tanh"
_DEFAULTS = {
    "head_dim": 256,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "max_position_embeddings": 131072,
    "num_attention_heads": 8,
    "num_hidden_layers": 26,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
    "vocab_size": 262208,
}


def plan(checkpoint: Checkpoint) -> Plan:
    """The GGUF of a Gemma 3 checkpoint (architecture ``gemma3``).

    The vision tensors of ``Gemma3ForConditionalGeneration`` are left out, which a note says.
    """
    text = checkpoint.config.section("text_config") or checkpoint.config
    config = text.with_defaults(_DEFAULTS)
    _refuse_other_forms(config)
    sizes = read_sizes(
        checkpoint, config, 1000000.0, known=("hidden_act",), rope_layers="full_attention"
    )
    sizes = sizes.with_attention(qk_norm=QKNorm.WEIGHTED, post_norm=True)
    feed_forward = DenseFeedForward(config.integer("intermediate_size"), post_norm=True)
    metadata = start_metadata("gemma3", config, sizes, default_eps=1e-6)
    metadata.add_feed_forward_length(feed_forward.n_ff)
    add_window_layers(metadata, config, sizes.n_layer, WINDOW_PERIOD)
    local_theta = _local_theta(config, sizes.attention.key_dim)
    if local_theta != LOCAL_THETA:
        metadata.add_rope_freq_base_swa(local_theta)
    scale = config.number("query_pre_attn_scalar") ** -0.5
    attention, notes = sizes.attention, []
    if scale != default_scale(sizes.n_layer, sizes.n_embd, attention.n_head, attention.key_dim):
        metadata.add_attention_scale(scale)
        notes = ignored_by_llama_cpp(["gemma3.attention.scale"])
    if "final_logit_softcapping" in config:
        metadata.add_final_logit_softcapping(config.number("final_logit_softcapping"))
    names = SourceNames(checkpoint, "gemma3", sizes.n_layer)
    tensors = (
        replace(tensor, read=plus_one(tensor.read)) if tensor.role is Role.NORM else tensor
        for tensor in decoder_tensors(checkpoint, sizes, names, lambda _: feed_forward)
    )
    return finish_plan(
        Draft(checkpoint, metadata, config, sizes), tensors, notes=notes, vision=VISION
    )


def _refuse_other_forms(config: Config) -> None:
    activation = config.text("hidden_activation", config.text("hidden_act", _ACTIVATION))
    if activation != _ACTIVATION:
        raise UnsupportedError(
            f"{config.where}: hidden_activation '{activation[:40]}' is not supported"
            f" (known: {_ACTIVATION})"
        )
    for key in ("attn_logit_softcapping", "use_bidirectional_attention"):
        if config.values.get(key):
            raise UnsupportedError(f"{config.where}: {key} is not supported")


def _local_theta(config: Config, head_dim: int) -> float:
    """The base of the rotation in layers with a window, as transformers 4 or 5 writes it.

    Raises UnsupportedError where it is scaled.
    """
    rope = config.section("rope_parameters")
    if rope is None or "sliding_attention" not in rope:
        return config.number("rope_local_base_freq", LOCAL_THETA)
    local = read_rope(config, head_dim, LOCAL_THETA, "sliding_attention").rope
    if local.scaling != RopeScaling() or local.factors or local.dim != head_dim:
        raise UnsupportedError(
            f"{config.where}: RoPE scaling of sliding_attention is not supported"
        )
    return local.theta
