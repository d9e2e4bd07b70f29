"""The RAM budget: what a plan promises, what its errors say, and that the promises hold."""

import re
import tracemalloc
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import gguf
import numpy as np
import pytest

from q4run import budget as budget_module
from q4run.bench.models.synthetic import Geometry, write_model
from q4run.budget import INTERPRETER_ALLOWANCE, MemoryPlan, plan_memory
from q4run.cache.keys_values import KVCache
from q4run.disk.methods import METHODS
from q4run.disk.speed import N_READERS
from q4run.errors import BudgetError
from q4run.experts.filling import buffer_bytes
from q4run.experts.layout import ExpertLayout, read_layout
from q4run.experts.store import ExpertStore
from q4run.gguf_file import GGUFFile, TensorInfo, open_gguf
from q4run.kernels.formats import find_format_named
from q4run.layers import workspace as workspace_module
from q4run.layers.decoder import Transformer
from q4run.layers.workspace import workspace_bytes
from q4run.machine.huge_pages import Blocks
from q4run.models import read_config
from q4run.models.config import ModelConfig
from q4run.planning.work import Work, count_work
from q4run.sizes import parse_size

N_VOCAB, N_EMBD, N_FF, N_LAYERS = 320, 256, 512, 3


def write_llama(
    path: Path, *, n_expert: int = 0, tied: bool = False, n_vocab: int = N_VOCAB
) -> None:
    """A random Llama in q8_0 or, with experts, a Mixtral; ``tied``: the embedding is the head."""
    rng = np.random.default_rng(0)
    fmt = find_format_named("q8_0")
    assert fmt is not None
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(N_LAYERS)
    writer.add_context_length(512)
    writer.add_embedding_length(N_EMBD)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    if n_expert:
        writer.add_expert_count(n_expert)
        writer.add_expert_used_count(2)

    def add(name: str, *shape: int) -> None:
        values = rng.standard_normal(shape, dtype=np.float32) / np.float32(shape[-1] ** 0.5)
        if len(shape) == 1 or "ffn_gate_inp" in name:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, fmt.quantize(values), raw_dtype=fmt.ggml_type)

    add("token_embd.weight", n_vocab, N_EMBD)
    experts, suffix = ((n_expert,), "_exps") if n_expert else ((), "")
    for i in range(N_LAYERS):
        add(f"blk.{i}.attn_norm.weight", N_EMBD)
        add(f"blk.{i}.ffn_norm.weight", N_EMBD)
        for name, n_rows in (("q", N_EMBD), ("k", N_EMBD // 2), ("v", N_EMBD // 2)):
            add(f"blk.{i}.attn_{name}.weight", n_rows, N_EMBD)
        add(f"blk.{i}.attn_output.weight", N_EMBD, N_EMBD)
        if n_expert:
            add(f"blk.{i}.ffn_gate_inp.weight", n_expert, N_EMBD)
        add(f"blk.{i}.ffn_gate{suffix}.weight", *experts, N_FF, N_EMBD)
        add(f"blk.{i}.ffn_up{suffix}.weight", *experts, N_FF, N_EMBD)
        add(f"blk.{i}.ffn_down{suffix}.weight", *experts, N_EMBD, N_FF)
    add("output_norm.weight", N_EMBD)
    if not tied:
        add("output.weight", n_vocab, N_EMBD)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


WRITERS: dict[str, Callable[[Path], None]] = {
    "llama4": lambda path: write_model(
        path,
        Geometry(
            n_layers=3,
            n_embd=N_EMBD,
            n_head=4,
            n_head_kv=2,
            head_dim=64,
            n_ff=N_FF,
            n_expert=8,
            n_vocab=N_VOCAB,
        ),
        "q8_0",
    ),
    "mixtral": lambda path: write_llama(path, n_expert=8),
    "dense": write_llama,
    # No whole number of strips of rows.
    "dense_tied": lambda path: write_llama(path, tied=True, n_vocab=N_VOCAB + 3),
}


class Opened:
    """A model's file and what is read from it before any weight."""

    def __init__(self, path: Path) -> None:
        self.file: GGUFFile = open_gguf(path)
        self.config: ModelConfig = read_config(self.file)
        self.layout: ExpertLayout = read_layout(self.file, self.config)

    def plan(self, ram_budget: int | None, context: int = 64, kv_type: str = "f16") -> MemoryPlan:
        return plan_memory(
            self.file,
            self.config,
            self.layout,
            ram_budget=ram_budget,
            context=context,
            kv_type=kv_type,
        )

    def work(self) -> Work:
        return count_work(self.file, self.config, self.layout, "f16")

    def works(self, ram_budget: int, context: int = 64) -> bool:
        try:
            self.plan(ram_budget, context)
        except BudgetError:
            return False
        return True

    def least(self, context: int = 64) -> int:
        """The smallest budget that is not refused, by bisection."""
        low, high = 0, 2_000_000_000  # never works, always works
        assert self.works(high, context)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.works(middle, context) else (middle, high)
        return high


@pytest.fixture(scope="module", params=WRITERS)
def model(request, tmp_path_factory) -> Opened:
    path = tmp_path_factory.mktemp("budget") / f"{request.param}.gguf"
    WRITERS[request.param](path)
    return Opened(path)


@pytest.fixture
def machine(monkeypatch) -> Callable[[int, int], None]:
    """Sets how much RAM there seems to be, in all and free."""

    def set_memory(total: int, available: int) -> None:
        monkeypatch.setattr(budget_module, "total_memory", lambda: total)
        monkeypatch.setattr(budget_module, "available_memory", lambda: available)

    set_memory(64 * 10**9, 50 * 10**9)
    return set_memory


def budgets(model: Opened, context: int = 64) -> list[int]:
    """From the least that works to far more than all of the model, in small steps."""
    least = model.least(context)
    return sorted({int(least * 1.02**step) for step in range(400)})


# Sharing out.


@pytest.mark.parametrize("context", [1, 64, 5000])
def test_a_plan_stays_within_its_budget(model, machine, context):
    for ram_budget in budgets(model, context):
        plan = model.plan(ram_budget, context)
        assert plan.budget == ram_budget
        assert plan.total <= ram_budget
        assert plan.total == plan.dense + plan.tokenizer + plan.kv + plan.scratch + plan.slots
        assert plan.n_slots * plan.slot_bytes == plan.slots
        assert plan.n_experts == model.layout.n_experts
        assert min(1, plan.n_experts) <= plan.n_slots <= plan.n_experts
        assert plan.n_batch >= 1


def test_more_budget_never_takes_away(model, machine):
    """Batches only grow; slots only grow while the batch stays as it is."""
    plans = [model.plan(ram_budget) for ram_budget in budgets(model)]
    for smaller, larger in pairwise(plans):
        assert larger.n_batch >= smaller.n_batch
        if larger.n_batch == smaller.n_batch:
            assert larger.n_slots >= smaller.n_slots
        assert (larger.dense, larger.kv) == (smaller.dense, smaller.kv)


def test_with_room_enough_everything_is_resident(model, machine):
    plan = model.plan(10**9)
    assert plan.all_resident
    assert plan.n_slots == model.layout.n_experts
    assert plan.n_batch == 512


def test_the_least_budget_holds_one_expert(model, machine):
    plan = model.plan(model.least())
    assert plan.n_slots == min(1, model.layout.n_experts)
    assert plan.n_batch == 1
    assert plan.all_resident == (model.layout.n_experts == 0)


def test_a_little_more_than_the_least_buys_batches(model, machine):
    """Logits and read buffers, which any batch needs, are no reason to run token by token."""
    plan = model.plan(model.least() + 2 * 3 * N_FF * N_EMBD * 34 // 32)  # two experts more
    assert 8 <= plan.n_batch <= 64
    if model.layout.n_experts:
        assert plan.n_slots == 2
    assert plan.scratch >= N_READERS * buffer_bytes(model.layout) + 16 * N_VOCAB


def test_a_longer_context_takes_room_from_the_slots(model, machine):
    ram_budget = model.least(2000) + 2 * model.layout.slot_bytes
    short, long = (model.plan(ram_budget, context) for context in (16, 2000))
    assert long.kv > short.kv
    if model.layout.n_experts:
        assert 1 <= long.n_slots < short.n_slots
    assert model.plan(10**9, 2000, "f32").kv == 2 * long.kv


# What the errors say.


@pytest.mark.parametrize("context", [16, 64, 333, 5000])
def test_the_figure_in_the_message_works(model, machine, context):
    least = model.least(context)
    with pytest.raises(BudgetError) as caught:
        model.plan(least - 1, context)
    message = str(caught.value)
    match = re.search(r"does not fit into .*: it needs at least ([\d.]+ [kMG]?B); ", message)
    assert match, message
    assert message.startswith(model.file.path.name)
    assert "\n" not in message
    assert "--ram-budget" in message
    named = parse_size(match[1])
    assert least <= named <= 1.01 * least
    model.plan(named, context)
    # The same figure however small the budget was.
    with pytest.raises(BudgetError, match=f"it needs at least {re.escape(match[1])};"):
        model.plan(1, context)


def test_every_printed_size_is_enough():
    """Rounded up to what format_size prints, and read back, no figure becomes smaller."""
    rng = np.random.default_rng(1)
    figures = (10 ** rng.uniform(0, 13, 20_000)).astype(np.int64).tolist()
    for figure in [*figures, *range(1, 3000), 999_500, 999_499, 9_995_000_000]:
        printed = budget_module.format_size(budget_module._round_up(figure))
        assert figure <= parse_size(printed) <= 1.01 * figure + 1


def test_a_shorter_context_is_proposed_where_it_helps(model, machine):
    with pytest.raises(BudgetError, match=r"with --ram-budget or a shorter --context$"):
        model.plan(1, 5000)
    with pytest.raises(BudgetError, match=r"with --ram-budget$"):
        model.plan(1, 1)


def test_a_budget_beyond_the_machine_is_refused_only_when_it_would_be_used(model, machine):
    needed = model.plan(10**9).total
    machine(needed + INTERPRETER_ALLOWANCE, 10**9)
    assert model.plan(10**12).all_resident  # the budget is larger than the machine, the plan is not
    machine(needed + INTERPRETER_ALLOWANCE - 1, 10**9)
    with pytest.raises(BudgetError, match="of RAM there are; lower --ram-budget"):
        model.plan(10**12)


def test_what_no_budget_helps_is_not_called_one(model, machine):
    """Advice to raise a budget, and then to lower it, would lead nowhere."""
    least = model.least(64)
    machine(least + INTERPRETER_ALLOWANCE - 1, 10**9)
    for budget in (1, least, 10**12):
        with pytest.raises(BudgetError, match=r"more than the .* of RAM there are allow") as caught:
            model.plan(budget, 64)
        assert "--ram-budget" not in str(caught.value)


# Without a budget.


def test_without_a_budget_a_share_of_what_is_free_is_taken(model, machine):
    machine(64 * 10**9, INTERPRETER_ALLOWANCE + 40 * 10**6)
    plan = model.plan(None)
    assert plan.budget == 30 * 10**6
    assert plan.total <= plan.budget


@pytest.mark.parametrize("available", [0, INTERPRETER_ALLOWANCE, INTERPRETER_ALLOWANCE + 1000])
def test_without_a_budget_and_without_memory_the_least_is_named(model, machine, available):
    machine(10**9, available)
    with pytest.raises(BudgetError, match=r"does not fit into \d+ B: it needs at least"):
        model.plan(None)


# Whether the promises hold: what numpy really allocates, against the plan.


@pytest.fixture(scope="module")
def store(model) -> Iterator[ExpertStore]:
    store = ExpertStore(model.layout, model.layout.n_experts, METHODS["pread"](model.file.parts))
    yield store
    store.close()


def allocated(work: Callable[[], object]) -> tuple[int, int]:
    """Bytes of Python and numpy memory that ``work`` left behind, and the most it held."""
    tracemalloc.start()
    try:
        result = work()
        left, most = tracemalloc.get_traced_memory()
        del result
    finally:
        tracemalloc.stop()
    return left, most


def test_weights_and_cache_take_what_is_planned(model, machine, store, monkeypatch):
    # Memory maps are not traced: the same pieces from numpy are.
    monkeypatch.setattr(workspace_module, "empty_bytes", lambda n, huge: np.empty(n, np.uint8))

    def take(blocks: Blocks, n_rows: int, row_bytes: int) -> np.ndarray:
        return np.empty((n_rows, row_bytes), np.uint8)

    monkeypatch.setattr(Blocks, "take", take)
    plan = model.plan(10**9, context=200)
    planned = plan.dense + workspace_bytes(model.config, 16)
    Transformer(model.file, model.config, store, 16, 1).close()  # compiles what is not compiled yet
    left, most = allocated(lambda: Transformer(model.file, model.config, store, 16, 1))
    assert 0.99 * planned <= left <= planned + 60_000  # Python's own objects
    largest = max(tensor.n_bytes for tensor in model.file.tensors.values())
    assert most <= planned + min(largest, 1 << 20) + 60_000  # what a matrix is read into
    left, _ = allocated(lambda: KVCache(model.config, 200, "f16"))
    assert plan.kv <= left <= plan.kv + 10_000


@pytest.mark.parametrize("routing", ["as it comes", "all to one expert"])
@pytest.mark.parametrize("n_batch", [1, 64, 128, 256])
def test_a_pass_allocates_no_more_than_planned(model, store, n_batch, routing):
    transformer = Transformer(model.file, model.config, store, n_batch, 1)
    if routing == "all to one expert":
        for layer in transformer._stack._layers:
            if layer.experts:
                layer.experts._router._strips[:] = 0
    cache = KVCache(model.config, 256, "f16")
    ids = np.random.default_rng(2).integers(0, N_VOCAB, min(256, 4 * n_batch)).tolist()
    transformer.forward(ids, cache)  # fills the slots, and compiles what is not compiled yet
    for token in ids[:1] * 64:  # fills what Python keeps of small objects for the next ones
        cache.rewind(0)
        transformer.forward([token], cache)
    cache.rewind(0)
    _, most = allocated(lambda: transformer.forward(ids, cache))
    workspace = workspace_bytes(model.config, n_batch)
    planned = budget_module._batch_bytes(model.config, n_batch) + 4 * N_VOCAB
    assert workspace + most <= planned + 20_000  # Python's own objects
    assert workspace + most >= planned / 3  # the plan is no wild guess either
    transformer.close()


def test_dense_bytes_are_what_is_loaded(model, machine):
    """Neither the experts nor an embedding of its own count; a tied one does, being the head.

    Rows are filled up to whole strips of eight.
    """
    sizes = {name: tensor.n_bytes for name, tensor in model.file.tensors.items()}
    if model.config.tied_embeddings:
        sizes["token_embd.weight"] += 5 * sizes["token_embd.weight"] // (N_VOCAB + 3)
    experts = sum(size for name, size in sizes.items() if "_exps" in name)
    dense = sum(sizes.values()) - experts
    if not model.config.tied_embeddings:
        dense -= sizes["token_embd.weight"]
    assert model.plan(10**9).dense == dense
    assert model.layout.n_bytes == experts


def test_types_without_kernels_are_planned_as_they_are_in_ram(model, machine):
    """Several times the file's bytes; vectors as float32, and a tensor may have no axes at all."""
    before = model.plan(10**9)
    kind = gguf.GGMLQuantizationType
    extra = {
        name: TensorInfo(name, shape, fmt, model.file.path, 0, 0)
        for name, shape, fmt in (
            ("matrix", (12, 512), kind.IQ1_S),
            ("vector", (256,), kind.IQ1_S),
            ("number", (), kind.F16),
        )
    }
    model = copy(model)
    model.file = replace(model.file, tensors={**model.file.tensors, **extra})
    assert model.plan(10**9).dense == before.dense + 16 * 512 * 34 // 32 + 4 * 256 + 4


def test_blocks_that_predict_further_tokens_take_nothing(model, machine):
    last = model.file.tensors[f"blk.{N_LAYERS - 1}.attn_q.weight"]
    extra = {
        f"blk.{N_LAYERS}.attn_q.weight": last,
        f"blk.{N_LAYERS}.nextn.eh_proj.weight": last,
        f"blk.{N_LAYERS}.attn_norm.weight": model.file.tensors["output_norm.weight"],
    }
    skipping = copy(model)
    skipping.config = replace(model.config, n_mtp_layers=1)
    skipping.file = replace(model.file, tensors=model.file.tensors | extra)
    assert skipping.plan(10**9).dense == model.plan(10**9).dense
    assert skipping.work().dense == model.work().dense
    assert skipping.work().prompt_weights == model.work().prompt_weights


def test_biases_of_experts_are_held_as_float32_and_are_no_matrices(model, machine):
    name, shape = "blk.0.ffn_down_exps.bias", (3, N_EMBD)
    fmt = gguf.GGMLQuantizationType.F16
    bias = TensorInfo(name, shape, fmt, model.file.path, 0, 2 * 3 * N_EMBD)
    biased = copy(model)
    biased.file = replace(model.file, tensors={**model.file.tensors, name: bias})
    assert biased.plan(10**9).dense == model.plan(10**9).dense + 4 * 3 * N_EMBD
    assert biased.work().dense == model.work().dense
