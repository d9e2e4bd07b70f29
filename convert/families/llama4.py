"""Llama 4, the text part: Scout and Maverick forms, also within the image-and-text checkpoint."""

from functools import partial

import gguf

from q4run.convert.config import Config
from q4run.convert.families.decoder import (
    Draft,
    Plan,
    attention_tensors,
    finish_plan,
    read_sizes,
    start_metadata,
    start_tensors,
)
from q4run.convert.families.experts import (
    STACKS,
    Stacks,
    read_expert_counts,
    row_stacks,
    separate_experts,
    with_experts,
)
from q4run.convert.families.names import SourceNames, stored
from q4run.convert.families.nope import read_rope_layers
from q4run.convert.families.notes import ignored_by_llama_cpp
from q4run.convert.source.checkpoint import Checkpoint
from q4run.convert.tensors import columns_of
from q4run.errors import FormatError, UnsupportedError
from q4run.models.llama4 import (
    CHUNK_SIZE,
    CHUNKED_LAYERS,
    N_EXPERT_WITHOUT_QK_NORM,
    ROUTER,
    TEMPERATURE_LENGTH,
    TEMPERATURE_SCALE,
)
from q4run.models.nope import ROPE_LAYERS, default_rope_layers
from q4run.models.parts import DenseFeedForward, Experts, SharedExpert

VISION = r"^(model\.)?(vision_model|multi_modal_projector)\."
ARCHITECTURES = ("Llama4ForCausalLM", "Llama4ForConditionalGeneration")


def plan(checkpoint: Checkpoint) -> Plan:
    """The GGUF of a Llama 4 checkpoint (architecture ``llama4``).

    The vision tensors of ``Llama4ForConditionalGeneration`` are left out, which a note says.
    """
    text_config = checkpoint.config.section("text_config")
    config = text_config or checkpoint.config
    sizes = read_sizes(checkpoint, config, default_theta=500000.0)
    n_expert, n_used = read_expert_counts(config, "num_local_experts", (16, 1))
    n_ff_expert = config.integer("intermediate_size")
    n_ff_dense = config.integer("intermediate_size_mlp")
    moe_step = _moe_layer_step(config, sizes.n_layer)

    metadata = start_metadata("llama4", config, sizes, default_eps=1e-5)
    metadata.add_feed_forward_length(n_ff_dense)
    metadata.add_expert_feed_forward_length(n_ff_expert)
    metadata.add_expert_count(n_expert)
    metadata.add_expert_used_count(n_used)
    metadata.add_interleave_moe_layer_step(moe_step)
    notes = _add_own_keys(metadata, config, sizes.n_layer, n_expert)

    names = SourceNames(checkpoint, "llama4", sizes.n_layer)
    dense = DenseFeedForward(n_ff_dense)
    experts = Experts(n_expert, n_used, n_ff_expert, ROUTER, SharedExpert(n_ff_expert))
    tensors = list(start_tensors(checkpoint, sizes, names))
    for layer in range(sizes.n_layer):
        tensors += attention_tensors(checkpoint, sizes, layer, names, pair_rows=False)
        if (layer + 1) % moe_step:
            declared = dense.tensors(sizes.n_embd, layer)
            tensors += [stored(checkpoint, tensor, names) for tensor in declared]
        else:
            base = f"model.layers.{layer}.feed_forward.experts"
            claim = partial(_experts, checkpoint, experts, sizes.n_embd, base)
            declared = experts.tensors(sizes.n_embd, layer)
            tensors += with_experts(checkpoint, declared, names, claim)
    return finish_plan(
        Draft(checkpoint, metadata, config, sizes), tensors, notes=notes, vision=VISION
    )


def _moe_layer_step(config: Config, n_layer: int) -> int:
    """Every how many layers the experts come: the last of each group has them."""
    step = config.integer("interleave_moe_layer_step", 1, low=0)
    listed = config.items("moe_layers", int)
    expected = list(range(step - 1, n_layer, step)) if step else []
    if not expected:
        raise UnsupportedError(f"{config.where}: a Llama 4 without expert layers is not supported")
    if listed is not None and sorted(listed) != expected:
        raise UnsupportedError(
            f"{config.where}: moe_layers does not follow interleave_moe_layer_step ({step}), "
            "which is all that GGUF can tell"
        )
    return step


def _add_own_keys(
    metadata: gguf.GGUFWriter, config: Config, n_layer: int, n_expert: int
) -> list[str]:
    """Keys of our own for what standard GGUF leaves unsaid, only where it differs from Scout's.

    Returns a note that says so, if any were needed.
    """
    n_keys = len(metadata.kv_data[0])
    chunk_size = config.integer("attention_chunk_size", 0, low=0)
    if "attention_chunk_size" not in config.values:
        chunk_size = CHUNK_SIZE
    if chunk_size != CHUNK_SIZE:
        metadata.add_uint32("llama4.attention.chunk_size", chunk_size)

    tuning = config.flag("attn_temperature_tuning", True)
    length = config.integer("floor_scale", TEMPERATURE_LENGTH)
    scale = config.number("attn_scale", TEMPERATURE_SCALE) if tuning else 0.0
    if (length, scale) != (TEMPERATURE_LENGTH, TEMPERATURE_SCALE):
        metadata.add_uint32("llama4.attention.temperature_length", length)
        metadata.add_float32("llama4.attention.temperature_scale", scale)

    qk_norm = config.flag("use_qk_norm", True)
    if qk_norm != (n_expert != N_EXPERT_WITHOUT_QK_NORM):
        metadata.add_bool("llama4.attention.qk_norm", qk_norm)

    rope_layers = read_rope_layers(config, n_layer)
    if rope_layers != default_rope_layers(n_layer):
        metadata.add_array(f"llama4.{ROPE_LAYERS}", rope_layers)
    chunked_layers = _chunked_layers(config, rope_layers)
    if chunked_layers != rope_layers:
        metadata.add_array(f"llama4.{CHUNKED_LAYERS}", chunked_layers)

    own = list(metadata.kv_data[0])[n_keys:]
    return ignored_by_llama_cpp(own)


def _chunked_layers(config: Config, rope_layers: list[int]) -> list[int]:
    """1 for each layer whose attention is chunked, 0 for one that sees everything."""
    kinds = config.items("layer_types", str)
    if kinds is None:
        return rope_layers
    unknown = set(kinds) - {"chunked_attention", "full_attention"}
    if unknown:
        raise UnsupportedError(f"{config.where}: unknown layer_types: {sorted(unknown)[0][:60]}")
    if len(kinds) != len(rope_layers):
        raise FormatError(
            f"{config.where}: layer_types has {len(kinds)} entries for {len(rope_layers)} layers"
        )
    return [int(kind == "chunked_attention") for kind in kinds]


def _experts(checkpoint: Checkpoint, part: Experts, n_embd: int, base: str) -> Stacks:
    """Claims the stacks of routed experts.

    A checkpoint in bf16 has stacks stored input-major. One in fp8, as Maverick's is, has a matrix
    per expert and projection; one in mxfp4 has stacks stored output-major, as all matrices are in
    blocks.
    """
    if checkpoint.has(f"{base}.0.gate_proj.weight"):
        checkpoint.check_count("num_local_experts", part.n_expert)
        return separate_experts(checkpoint, part, n_embd, base)
    if f"{base}.gate_up_proj_blocks" in checkpoint.tensors:
        return row_stacks(checkpoint, part, n_embd, f"{base}.gate_up_proj", f"{base}.down_proj")
    n_expert, n_ff = part.n_expert, part.n_ff
    gate_up = checkpoint.claim(f"{base}.gate_up_proj", (n_expert, n_embd, 2 * n_ff))
    down = checkpoint.claim(f"{base}.down_proj", (n_expert, n_ff, n_embd))
    reads = (columns_of(gate_up), columns_of(gate_up, first_column=n_ff), columns_of(down))
    return Stacks(dict(zip(STACKS, reads, strict=True)), whole=True)
