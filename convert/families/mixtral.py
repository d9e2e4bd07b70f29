"""Mixtral: Llama with routed experts in every layer."""

from collections.abc import Iterator

from q4run.convert.families.decoder import (
    Plan,
    Sizes,
    attention_tensors,
    read_sizes,
    router,
    start_metadata,
    start_tensors,
)
from q4run.convert.families.llama import IGNORABLE, refuse_sliding_window
from q4run.convert.source.checkpoint import Checkpoint
from q4run.convert.tensors import OutputTensor, ReadRows, Role, rows_of, stack_of


def plan_mixtral(checkpoint: Checkpoint) -> Plan:
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

    tensors = list(start_tensors(checkpoint, sizes))
    for layer in range(sizes.n_layer):
        base = f"model.layers.{layer}"
        tensors += attention_tensors(checkpoint, sizes, layer, base, pair_rows=True)
        # Files hold a matrix per expert; a state dict taken from transformers 5 holds stacks.
        if checkpoint.has(f"{base}.mlp.experts.gate_up_proj"):
            tensors += _stacked_experts(checkpoint, sizes, layer, n_ff, n_expert)
        else:
            checkpoint.check_count("num_local_experts", n_expert)
            tensors += _separate_experts(checkpoint, sizes, layer, n_ff, n_expert)
    checkpoint.check_all_claimed(IGNORABLE)
    return Plan(metadata, tensors, sizes.n_vocab, config)


def _separate_experts(
    checkpoint: Checkpoint, sizes: Sizes, layer: int, n_ff: int, n_expert: int
) -> Iterator[OutputTensor]:
    base = f"model.layers.{layer}.block_sparse_moe"
    yield router(checkpoint, layer, f"{base}.gate.weight", n_expert, sizes.n_embd)
    for name, source, shape in (
        ("gate", "w1", (n_ff, sizes.n_embd)),
        ("up", "w3", (n_ff, sizes.n_embd)),
        ("down", "w2", (sizes.n_embd, n_ff)),
    ):
        experts = [
            checkpoint.claim(f"{base}.experts.{expert}.{source}.weight", shape)
            for expert in range(n_expert)
        ]
        yield _experts(layer, name, (n_expert, *shape), stack_of(experts))


def _stacked_experts(
    checkpoint: Checkpoint, sizes: Sizes, layer: int, n_ff: int, n_expert: int
) -> Iterator[OutputTensor]:
    base = f"model.layers.{layer}.mlp"
    yield router(checkpoint, layer, f"{base}.gate.weight", n_expert, sizes.n_embd)
    gate_up = checkpoint.claim(f"{base}.experts.gate_up_proj", (n_expert, 2 * n_ff, sizes.n_embd))
    shape = (n_expert, n_ff, sizes.n_embd)
    for name, first_row in (("gate", 0), ("up", n_ff)):
        read = rows_of(gate_up, first_row=first_row, rows_per_matrix=2 * n_ff)
        yield _experts(layer, name, shape, read)
    shape = (n_expert, sizes.n_embd, n_ff)
    down = checkpoint.claim(f"{base}.experts.down_proj", shape)
    yield _experts(layer, "down", shape, rows_of(down, rows_per_matrix=sizes.n_embd))


def _experts(layer: int, name: str, shape: tuple[int, int, int], read: ReadRows) -> OutputTensor:
    return OutputTensor(f"blk.{layer}.ffn_{name}_exps.weight", shape, Role.EXPERT, read)
