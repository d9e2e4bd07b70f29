"""Routed experts in a checkpoint: a matrix for each, or stacks of them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import gguf
from gguf import MODEL_TENSOR

from q4run.convert.config import Config
from q4run.convert.families.names import SourceNames, output_tensor, stored
from q4run.convert.families.notes import ignored_by_llama_cpp
from q4run.convert.source.checkpoint import Checkpoint
from q4run.convert.tensors import OutputTensor, ReadRows, rows_of, stack_of
from q4run.models.parts import Experts, Role, Router, Scores, Tensor
from q4run.models.readers import SOFTMAX_WEIGHT

STACKS = (MODEL_TENSOR.FFN_GATE_EXP, MODEL_TENSOR.FFN_UP_EXP, MODEL_TENSOR.FFN_DOWN_EXP)
_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
# Where MLX keeps the experts of a layer: its SwitchGLU.
_MLX_MODULES = ("mlp.switch_mlp", "block_sparse_moe.switch_mlp", "feed_forward.experts")


class ExpertSource(NamedTuple):
    """What a checkpoint calls the experts of a layer, within the layer.

    module: where each matrix is a tensor, and projections: gate, up and down there; stacks: where
    there are two, gate with up, and down; count_key: what config.json calls their number.
    """

    module: str = "mlp.experts"
    projections: tuple[str, str, str] = _PROJECTIONS
    stacks: tuple[str, str] = ("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
    count_key: str = "num_experts"


_GATING = {
    Scores.SOFTMAX: gguf.ExpertGatingFuncType.SOFTMAX,
    Scores.SIGMOID: gguf.ExpertGatingFuncType.SIGMOID,
    Scores.CHOSEN_SOFTMAX: SOFTMAX_WEIGHT,
}
USUAL_EXPERTS = ExpertSource()


class Stacks(NamedTuple):
    """How the stacks of routed experts are read; ``whole`` is as `OutputTensor` has it."""

    reads: Mapping[MODEL_TENSOR, ReadRows]
    whole: bool = False


def read_expert_counts(
    config: Config,
    key: str,
    defaults: tuple[int | None, int | None] = (None, None),
    used_key: str = "num_experts_per_tok",
) -> tuple[int, int]:
    """Reads how many experts there are and how many a token uses, checked; ``key``: of the first.

    ``defaults``: of the family's class in `transformers`.
    """
    n_expert = config.integer(key, defaults[0])
    n_used = config.integer(used_key, defaults[1])
    if n_used > n_expert:
        raise config.bad(used_key, f"at most {key} ({n_expert})")
    return n_expert, n_used


def read_v3_router(config: Config) -> Router:
    """Reads the router of DeepSeek-V3 and its heirs, and checks its groups."""
    n_group = config.integer("n_group", 1)
    n_group_used = config.integer("topk_group", 1)
    if n_group_used > n_group:
        raise config.bad("topk_group", f"at most n_group ({n_group})")
    return Router(
        Scores.SIGMOID,
        renormalise=config.flag("norm_topk_prob", True),
        scale=config.number("routed_scaling_factor", 1.0),
        selection_bias=True,
        n_group=n_group,
        n_group_used=n_group_used,
    )


def add_expert_keys(metadata: gguf.GGUFWriter, part: Experts) -> None:
    """Writes the keys that tell of a part all that is not so in every family."""
    metadata.add_expert_count(part.n_expert)
    metadata.add_expert_used_count(part.n_expert_used)
    metadata.add_expert_feed_forward_length(part.n_ff)
    if part.shared:
        metadata.add_expert_shared_feed_forward_length(part.shared.n_ff)
        if part.shared.n_ff % part.n_ff == 0:
            metadata.add_expert_shared_count(part.shared.n_ff // part.n_ff)
    router = part.router
    metadata.add_uint32(f"{metadata.arch}.expert_gating_func", _GATING[router.scores])
    metadata.add_expert_weights_norm(router.renormalise)
    if router.scale != 1:
        metadata.add_expert_weights_scale(router.scale)
    if router.n_group > 1:
        metadata.add_expert_group_count(router.n_group)
        metadata.add_expert_group_used_count(router.n_group_used)


def notes_on_norm(metadata: gguf.GGUFWriter, router: Router, in_llama_cpp: bool) -> list[str]:
    """Returns a line where llama.cpp, whatever the file says, renormalises weights of this family
    (``in_llama_cpp``) and the checkpoint does not, or the other way round."""
    if router.renormalise == in_llama_cpp:
        return []
    return ignored_by_llama_cpp([f"{metadata.arch}.expert_weights_norm"])


def with_experts(
    checkpoint: Checkpoint,
    tensors: Iterable[Tensor],
    names: SourceNames,
    claim_experts: Callable[[], Stacks],
) -> Iterator[OutputTensor]:
    """Yields a part's tensors: stacks of experts as ``claim_experts`` reads them, the others as
    stored. It is called once, where the first stack comes; not where MLX has stacked the experts,
    which it does in one way for all families."""
    declared = list(tensors)
    stacks: Stacks | None = None
    for tensor in declared:
        if tensor.role is Role.EXPERT:
            stacks = stacks or _mlx_stacks(checkpoint, declared) or claim_experts()
            yield output_tensor(tensor, stacks.reads[tensor.kind], whole=stacks.whole)
        else:
            yield stored(checkpoint, tensor, names)


def claim_experts(
    checkpoint: Checkpoint, part: Experts, n_embd: int, layer: int, source: ExpertSource
) -> Stacks:
    """Claims a layer's experts: a matrix each, or gate and up in one stack and down in another, as
    a state dict taken from transformers 5 has them."""
    base = f"model.layers.{layer}"
    gate_up, down = (f"{base}.{stack}" for stack in source.stacks)
    if checkpoint.has(gate_up):
        return row_stacks(checkpoint, part, n_embd, gate_up, down)
    checkpoint.check_count(source.count_key, part.n_expert)
    return separate_experts(checkpoint, part, n_embd, f"{base}.{source.module}", source.projections)


def separate_experts(
    checkpoint: Checkpoint,
    part: Experts,
    n_embd: int,
    base: str,
    projections: Sequence[str] = _PROJECTIONS,
) -> Stacks:
    """Claims a matrix for each expert and projection: gate, up and down."""
    shapes = ((part.n_ff, n_embd), (part.n_ff, n_embd), (n_embd, part.n_ff))
    reads = {
        kind: stack_of(
            [
                checkpoint.claim(f"{base}.{expert}.{projection}.weight", shape)
                for expert in range(part.n_expert)
            ]
        )
        for kind, projection, shape in zip(STACKS, projections, shapes, strict=True)
    }
    return Stacks(reads)


def row_stacks(
    checkpoint: Checkpoint, part: Experts, n_embd: int, gate_up_name: str, down_name: str
) -> Stacks:
    """Claims one stack of gate and up together, and one of down, rows first."""
    n_expert, n_ff = part.n_expert, part.n_ff
    gate_up = checkpoint.claim(gate_up_name, (n_expert, 2 * n_ff, n_embd))
    down = checkpoint.claim(down_name, (n_expert, n_embd, n_ff))
    reads = (
        rows_of(gate_up, rows_per_matrix=2 * n_ff),
        rows_of(gate_up, first_row=n_ff, rows_per_matrix=2 * n_ff),
        rows_of(down, rows_per_matrix=n_embd),
    )
    return Stacks(dict(zip(STACKS, reads, strict=True)))


def _mlx_stacks(checkpoint: Checkpoint, tensors: Sequence[Tensor]) -> Stacks | None:
    """Claims a stack for each projection, rows first; None where the checkpoint has none."""
    stacks = [tensor for tensor in tensors if tensor.role is Role.EXPERT]
    for module in _MLX_MODULES:
        base = f"model.layers.{stacks[0].layer}.{module}"
        names = [f"{base}.{projection}.weight" for projection in _PROJECTIONS]
        if checkpoint.has(names[0]):
            reads = {
                stack.kind: rows_of(
                    checkpoint.claim(name, stack.shape), rows_per_matrix=stack.shape[1]
                )
                for name, stack in zip(names, stacks, strict=True)
            }
            return Stacks(reads)
    return None
