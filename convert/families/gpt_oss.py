"""gpt-oss: experts in MXFP4 or as floats, gate and up in turns; biases, sinks and windows."""

from collections.abc import Iterator

from gguf import MODEL_TENSOR

from q4run.convert.families.decoder import (
    Draft,
    Plan,
    attention_tensors,
    finish_plan,
    read_sizes,
    start_metadata,
    start_tensors,
)
from q4run.convert.families.experts import STACKS, add_expert_keys, read_expert_counts
from q4run.convert.families.names import SourceNames, output_tensor, stored
from q4run.convert.families.windows import add_window_layers
from q4run.convert.source.checkpoint import Checkpoint
from q4run.convert.tensors import (
    OutputTensor,
    columns_of,
    every_second_row,
    every_second_value,
    rows_of,
)
from q4run.errors import UnsupportedError
from q4run.models.gpt_oss import ROUTER, WINDOW_PERIOD
from q4run.models.parts import BIAS, Experts, Role
from q4run.models.rope_keys import YARN_TRUNCATE

ARCHITECTURES = ("GptOssForCausalLM",)
_DEFAULTS = {
    "attention_bias": True,
    "head_dim": 64,
    "hidden_size": 2880,
    "intermediate_size": 2880,
    "max_position_embeddings": 131072,
    "num_attention_heads": 64,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "sliding_window": 128,
    "vocab_size": 201088,
}
_ROPE = {
    "rope_type": "yarn",
    "factor": 32.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
    "original_max_position_embeddings": 4096,
}


def plan(checkpoint: Checkpoint) -> Plan:
    """The GGUF of a gpt-oss checkpoint (architecture ``gpt-oss``)."""
    config = checkpoint.config.with_defaults(_DEFAULTS)
    if "rope_scaling" not in config:
        config = config.with_defaults({"rope_parameters": _ROPE})
    sizes = read_sizes(checkpoint, config, default_theta=150000.0, known=("attention_bias",))
    has_bias = config.flag("attention_bias", True)
    sizes = sizes.with_attention(qkv_bias=has_bias, out_bias=has_bias, sinks=True)
    for key, known in (("swiglu_alpha", 1.702), ("swiglu_limit", 7.0)):
        if config.number(key, known) != known:
            raise UnsupportedError(f"{config.where}: {key} must be {known}")
    n_ff = config.integer("intermediate_size")
    counts = read_expert_counts(config, config.key_of("num_local_experts", "num_experts"), (128, 4))
    experts = Experts(*counts, n_ff, ROUTER, biases=True, norm=MODEL_TENSOR.ATTN_POST_NORM)
    metadata = start_metadata("gpt-oss", config, sizes, default_eps=1e-5)
    metadata.add_feed_forward_length(n_ff)
    add_expert_keys(metadata, experts)
    yarn = sizes.rope.rope.scaling.yarn
    if yarn and yarn.truncate:  # a runtime takes the other for granted in this family
        metadata.add_bool(f"gpt-oss.{YARN_TRUNCATE}", True)
    add_window_layers(metadata, config, sizes.n_layer, WINDOW_PERIOD)
    names = SourceNames(checkpoint, "gpt-oss", sizes.n_layer)
    tensors = list(start_tensors(checkpoint, sizes, names))
    for layer in range(sizes.n_layer):
        tensors += attention_tensors(checkpoint, sizes, layer, names, pair_rows=False)
        tensors += _expert_tensors(checkpoint, experts, sizes.n_embd, layer, names)
    return finish_plan(Draft(checkpoint, metadata, config, sizes), tensors)


def _expert_tensors(
    checkpoint: Checkpoint, part: Experts, n_embd: int, layer: int, names: SourceNames
) -> Iterator[OutputTensor]:
    """Yields a layer's experts: of stacks of gate and up together, whose rows take turns."""
    base, n_expert, n_ff = f"model.layers.{layer}.mlp.experts", part.n_expert, part.n_ff
    in_blocks = f"{base}.gate_up_proj_blocks" in checkpoint.tensors
    if in_blocks:
        gate_up = checkpoint.claim(f"{base}.gate_up_proj", (n_expert, 2 * n_ff, n_embd))
        down = checkpoint.claim(f"{base}.down_proj", (n_expert, n_embd, n_ff))
        both = rows_of(gate_up, rows_per_matrix=2 * n_ff)
        down_rows = rows_of(down, rows_per_matrix=n_embd)
    else:  # inputs first, as floats are stored
        both = columns_of(checkpoint.claim(f"{base}.gate_up_proj", (n_expert, n_embd, 2 * n_ff)))
        down_rows = columns_of(checkpoint.claim(f"{base}.down_proj", (n_expert, n_ff, n_embd)))
    biases = checkpoint.claim(f"{base}.gate_up_proj_bias", (n_expert, 2 * n_ff))
    gate, up, down_kind = STACKS
    stacks = {gate: every_second_row(both, 0), up: every_second_row(both, 1), down_kind: down_rows}
    halves = {gate: every_second_value(biases, 0), up: every_second_value(biases, 1)}
    for tensor in part.tensors(n_embd, layer):
        if tensor.role is Role.EXPERT:
            yield output_tensor(tensor, stacks[tensor.kind], whole=not in_blocks)
        elif tensor.suffix == BIAS and tensor.kind in halves:
            yield output_tensor(tensor, halves[tensor.kind])
        else:
            yield stored(checkpoint, tensor, names)
