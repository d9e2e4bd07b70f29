"""What a model needs in RAM, and how a budget is shared out: dense weights, KV, scratch, slots."""

from dataclasses import dataclass

from q4run.cache.keys_values import cache_bytes
from q4run.disk.speed import MOST_READERS
from q4run.errors import BudgetError
from q4run.experts.filling import reader_bytes
from q4run.experts.layout import ExpertLayout
from q4run.gguf_file import GGUFFile
from q4run.kernels.formats import find_format
from q4run.kernels.products.strips import padded_rows
from q4run.layers.workspace import workspace_bytes
from q4run.machine.memory import available_memory, total_memory
from q4run.models.config import ModelConfig
from q4run.models.names import role_of
from q4run.models.parts import Role
from q4run.sizes import format_size
from q4run.weights import embedding_bytes

DEFAULT_CONTEXT = 4096
# The interpreter, numba, compiled kernels and thread stacks: not part of the budget. Measured: 170
# to 220 MB. Compiling takes more, in a process that is over before the budget is used.
INTERPRETER_ALLOWANCE = 250_000_000
# What of it is used as a rule, once all else is counted: what a forecast goes by, where the budget
# goes by the most. Measured with four models: 110 to 220 MB.
USUAL_INTERPRETER = 150_000_000
# The tokenizer's Python and Rust objects, for each token and each merge of two; where a file has no
# merges (SentencePiece), they are made from the tokens. Measured on five vocabularies.
_TOKEN_BYTES = 500
_MERGE_BYTES = 220
_USUAL_MERGES = 2  # for each token, in the vocabularies of Llama 3 and 4
_DEFAULT_SHARE = 0.75
_BATCH_SIZES = (512, 256, 128, 64, 32, 16, 8, 4, 2, 1)
# A longer batch reads experts less often, but takes RAM that slots could have.
_BATCH_SHARE = 0.2
# Where experts are streamed, prompts beyond the usual batch run in batches of this, for which slots
# lend their memory meanwhile, no larger share of them than so. Twice as long was slower.
_LONG_BATCH = 1024
_LENT_SHARE = 0.25


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by purpose; ``budget`` is what they stay within, the allowance not counted.

    Prompts longer than ``n_batch`` tokens run in batches of ``n_long_batch``, while the memory of
    ``n_lent_slots`` serves as scratch.
    """

    budget: int
    dense: int
    tokenizer: int
    kv: int
    scratch: int
    slot_bytes: int
    n_slots: int
    n_experts: int
    n_batch: int
    n_long_batch: int
    n_lent_slots: int

    def batch_for(self, n_tokens: int) -> int:
        """The longest batch that so many tokens run in."""
        return self.n_batch if n_tokens <= self.n_batch else self.n_long_batch

    @property
    def slots(self) -> int:
        return self.n_slots * self.slot_bytes

    @property
    def total(self) -> int:
        return self.dense + self.tokenizer + self.kv + self.scratch + self.slots

    @property
    def all_resident(self) -> bool:
        return self.n_slots == self.n_experts


def plan_memory(
    file: GGUFFile,
    config: ModelConfig,
    layout: ExpertLayout,
    *,
    ram_budget: int | None,
    context: int,
    kv_type: str,
    total_ram: int | None = None,
) -> MemoryPlan:
    """Shares out ``ram_budget`` bytes (None: ``default_budget`` of what is free).

    total_ram: what the machine has; None is this one. Raises BudgetError, with the least that
    works, if one expert at a time does not fit, and if the machine has less RAM than what the plan
    comes to.
    """
    budget = ram_budget or default_budget(available_memory())
    total_ram = total_memory() if total_ram is None else total_ram
    dense = _dense_bytes(file, config)
    tokenizer = _tokenizer_bytes(file, config)
    kv = cache_bytes(config, context, kv_type)
    fixed = dense + tokenizer + kv + _lasting_scratch_bytes(config, layout)
    least_slots = min(1, layout.n_experts)
    least = least_budget(file, config, layout, context=context, kv_type=kv_type)
    shrink = " or a shorter --context" if kv > least // 10 else ""
    if least + INTERPRETER_ALLOWANCE > total_ram:
        raise BudgetError(
            f"{file.path.name} needs at least {format_size(_round_up(least))}, which is more than"
            f" the {format_size(total_ram)} of RAM there are allow: take a smaller type{shrink}"
        )
    if budget < least:
        raise BudgetError(
            f"{file.path.name} does not fit into {format_size(max(0, budget))}: it needs at least"
            f" {format_size(_round_up(least))}; allow that with --ram-budget{shrink}"
        )
    room = budget - fixed
    n_batch = next(
        size
        for size in _BATCH_SIZES
        if size == _BATCH_SIZES[-1]
        or (
            _batch_bytes(config, size) <= _BATCH_SHARE * room
            and room - _batch_bytes(config, size) >= least_slots * layout.slot_bytes
        )
    )
    scratch = _lasting_scratch_bytes(config, layout) + _batch_bytes(config, n_batch)
    left = room - _batch_bytes(config, n_batch)
    n_slots = min(layout.n_experts, left // layout.slot_bytes) if layout.n_experts else 0
    n_lent = _lent_slots(config, layout, context, n_batch, n_slots)
    plan = MemoryPlan(
        budget=budget,
        dense=dense,
        tokenizer=tokenizer,
        kv=kv,
        scratch=scratch,
        slot_bytes=layout.slot_bytes,
        n_slots=n_slots,
        n_experts=layout.n_experts,
        n_batch=n_batch,
        n_long_batch=_LONG_BATCH if n_lent else n_batch,
        n_lent_slots=n_lent,
    )
    if plan.total + INTERPRETER_ALLOWANCE > total_ram:
        raise BudgetError(
            f"{file.path.name} would take {format_size(plan.total)} of this budget, more than the"
            f" {format_size(total_ram)} of RAM there are; lower --ram-budget"
        )
    return plan


def default_budget(free: int) -> int:
    """What is taken where nobody says: three quarters of the free bytes beside the allowance."""
    return int((free - INTERPRETER_ALLOWANCE) * _DEFAULT_SHARE)


def least_budget(
    file: GGUFFile, config: ModelConfig, layout: ExpertLayout, *, context: int, kv_type: str
) -> int:
    """The bytes with which one expert, and one token of a prompt, fit at a time."""
    fixed = _dense_bytes(file, config) + _tokenizer_bytes(file, config)
    fixed += cache_bytes(config, context, kv_type) + _lasting_scratch_bytes(config, layout)
    slots = min(1, layout.n_experts) * layout.slot_bytes
    return fixed + _batch_bytes(config, _BATCH_SIZES[-1]) + slots


def _tokenizer_bytes(file: GGUFFile, config: ModelConfig) -> int:
    if not file.array_length("tokenizer.ggml.tokens"):  # a shape that is no file yet
        n_merges = _USUAL_MERGES * config.n_vocab
    elif file.metadata.get("tokenizer.ggml.model") == "llama":
        n_merges = config.n_vocab
    else:
        n_merges = file.array_length("tokenizer.ggml.merges")
    return _TOKEN_BYTES * config.n_vocab + _MERGE_BYTES * n_merges


def _lent_slots(
    config: ModelConfig, layout: ExpertLayout, context: int, n_batch: int, n_slots: int
) -> int:
    """How many slots lend their memory to long batches; 0 where there are to be none."""
    if n_slots == layout.n_experts or n_batch < _BATCH_SIZES[0] or context <= n_batch:
        return 0
    more = _batch_bytes(config, _LONG_BATCH) - _batch_bytes(config, n_batch)
    n_lent = -(-more // layout.slot_bytes)
    return n_lent if n_lent <= _LENT_SHARE * n_slots else 0


def _round_up(n_bytes: int) -> int:
    """To three digits that are not below ``n_bytes``, so that what is printed works."""
    unit = int(10 ** max(0, len(str(n_bytes)) - 3))
    return -(-n_bytes // unit) * unit


def _dense_bytes(file: GGUFFile, config: ModelConfig) -> int:
    """The tensors that stay in RAM: no experts, no blocks of MTP, and the embedding only if it is
    the head too."""
    total = 0
    for name, tensor in file.tensors.items():
        fmt = find_format(tensor.type)
        if not config.is_resident(name) or fmt is None:
            continue
        if len(tensor.shape) < 2 or role_of(name, len(tensor.shape)) is Role.BIAS:
            total += 4 * tensor.n_elements  # held as float32 whatever their type
        else:
            n_rows = tensor.n_elements // tensor.shape[-1]
            total += fmt.in_ram.row_bytes(tensor.shape[-1]) * padded_rows(n_rows)
    return total


def _lasting_scratch_bytes(config: ModelConfig, layout: ExpertLayout) -> int:
    """Scratch whatever the batch: logits, the sampler's copies of them, and the readers'."""
    return 4 * 4 * config.n_vocab + MOST_READERS * reader_bytes(layout)


def _batch_bytes(config: ModelConfig, n_batch: int) -> int:
    """What a pass over ``n_batch`` tokens takes: workspace, the stream's beginning and RoPE."""
    # Angles with their sines and cosines, at the worst moment.
    angles = 12 * n_batch * sum(rope.dim for rope in config.ropes)
    return workspace_bytes(config, n_batch) + embedding_bytes(n_batch, config.n_embd) + angles
