"""Mixtral: Llama with routed experts in every layer."""

from collections.abc import Sequence
from functools import partial

from gguf import MODEL_TENSOR

from q4run.convert.families.decoder import (
    Plan,
    Stacks,
    attention_tensors,
    read_sizes,
    start_metadata,
    start_tensors,
    with_experts,
)
from q4run.convert.families.llama import IGNORABLE, refuse_sliding_window
from q4run.convert.families.names import SourceNames
from q4run.convert.source.checkpoint import Checkpoint
from q4run.convert.tensors import ReadRows, rows_of, stack_of
from q4run.models.parts import Experts, Role, Router, Tensor

ARCHITECTURES = ("MixtralForCausalLM",)
_SOURCES = {
    MODEL_TENSOR.FFN_GATE_EXP: "w1",
    MODEL_TENSOR.FFN_UP_EXP: "w3",
    MODEL_TENSOR.FFN_DOWN_EXP: "w2",
}


def plan(checkpoint: Checkpoint) -> Plan:
    """The GGUF of a Mixtral checkpoint (architecture ``llama``, with experts)."""
    config = checkpoint.config
    sizes = read_sizes(checkpoint, config, default_theta=1e6)
    refuse_sliding_window(config)
    n_ff = config.integer("intermediate_size")
    n_expert = config.integer("num_local_experts", 8)
    n_used = config.integer("num_experts_per_tok", 2)
    if n_used > n_expert:
        raise config.bad("num_experts_per_tok", f"at most num_local_experts ({n_expert})")
    metadata = start_metadata("llama", config, sizes, default_eps=1e-5)
    metadata.add_feed_forward_length(n_ff)
    metadata.add_expert_count(n_expert)
    metadata.add_expert_used_count(n_used)

    names = SourceNames(checkpoint, "llama", sizes.n_layer)
    experts = Experts(n_expert, n_used, n_ff, Router())
    tensors = list(start_tensors(checkpoint, sizes, names))
    for layer in range(sizes.n_layer):
        base = f"model.layers.{layer}"
        tensors += attention_tensors(checkpoint, sizes, layer, names, pair_rows=True)
        # Files hold a matrix per expert; a state dict taken from transformers 5 holds stacks.
        if checkpoint.has(f"{base}.mlp.experts.gate_up_proj"):
            base += ".mlp.experts"
            claim = partial(_stacked_experts, checkpoint, experts, sizes.n_embd, base)
        else:
            checkpoint.check_count("num_local_experts", n_expert)
            stacks = [t for t in experts.tensors(sizes.n_embd, layer) if t.role is Role.EXPERT]
            base += ".block_sparse_moe.experts"
            claim = partial(_separate_experts, checkpoint, stacks, base)
        declared = experts.tensors(sizes.n_embd, layer)
        tensors += with_experts(checkpoint, declared, names, claim)
    checkpoint.check_all_claimed(IGNORABLE)
    return Plan(metadata, tensors, sizes.n_vocab, config, sizes.rope.notes("llama"))


def _separate_experts(checkpoint: Checkpoint, stacks: Sequence[Tensor], base: str) -> Stacks:
    """Claims a matrix per expert and projection."""
    reads = {
        stack.kind: stack_of(
            [
                checkpoint.claim(f"{base}.{expert}.{_SOURCES[stack.kind]}.weight", stack.shape[1:])
                for expert in range(stack.shape[0])
            ]
        )
        for stack in stacks
    }
    return Stacks(reads)


def _stacked_experts(checkpoint: Checkpoint, part: Experts, n_embd: int, base: str) -> Stacks:
    """Claims one stack of gate and up together, and one of down."""
    n_expert, n_ff = part.n_expert, part.n_ff
    gate_up = checkpoint.claim(f"{base}.gate_up_proj", (n_expert, 2 * n_ff, n_embd))
    down = checkpoint.claim(f"{base}.down_proj", (n_expert, n_embd, n_ff))
    reads: dict[MODEL_TENSOR, ReadRows] = {
        MODEL_TENSOR.FFN_GATE_EXP: rows_of(gate_up, rows_per_matrix=2 * n_ff),
        MODEL_TENSOR.FFN_UP_EXP: rows_of(gate_up, first_row=n_ff, rows_per_matrix=2 * n_ff),
        MODEL_TENSOR.FFN_DOWN_EXP: rows_of(down, rows_per_matrix=n_embd),
    }
    return Stacks(reads)
