"""Opening a model: from a file and settings to a ``Model`` with all its parts."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

from q4run.budget import DEFAULT_CONTEXT, MemoryPlan, plan_memory
from q4run.cache.keys_values import KVCache
from q4run.disk.auto import Choice, choose_method
from q4run.disk.experience import Experience
from q4run.disk.methods import METHODS
from q4run.errors import Error
from q4run.events import Events
from q4run.experts.layout import ExpertLayout, read_layout
from q4run.experts.policies import DEFAULT_CACHE
from q4run.experts.prefetch import DEFAULT_PREFETCH
from q4run.experts.store import ExpertStore
from q4run.experts.trace import TraceWriter
from q4run.generation.session import Session
from q4run.gguf_file import GGUFFile, open_gguf
from q4run.kernels.attention.kinds import find_kind
from q4run.kernels.compiling.compile import take_remarks
from q4run.kernels.formats import Format, find_format
from q4run.kernels.prepare import prepare
from q4run.layers.decoder import Transformer
from q4run.machine.cores import choose_threads
from q4run.machine.memory import available_memory
from q4run.model import Model, Opening
from q4run.models import notes_on, read_config
from q4run.models.config import ModelConfig
from q4run.settings import Settings
from q4run.text.chat_template import load_chat_template
from q4run.text.tokenizer import Tokenizer, load_tokenizer

# Called with a stage of loading ("compiling kernels", "reading weights"), its steps done, and all.
Progress = Callable[[str, int, int], None]

# Kernels are compiled by several processes where there is this much memory for each (they take half
# of it); more than these would wait for the slowest kernel.
COMPILER_BYTES = 800 * 10**6
MOST_COMPILERS = 4


def load(
    path: str | os.PathLike[str],
    ram_budget: str | int | None = None,
    threads: int | None = None,
    io: str = "auto",
    context: int | None = None,
    kv_type: str = "f16",
    progress: Progress | None = None,
    cache: str = DEFAULT_CACHE,
    prefetch: str = DEFAULT_PREFETCH,
    trace: str | os.PathLike[str] | None = None,
    pre: str | None = None,
) -> Model:
    """Opens a GGUF model for use; close it, or use it as a context manager.

    The keywords are the fields of ``Settings``, which says what each means: among them
    ``ram_budget``, bytes or ``"6GiB"`` or ``"50%"``, and ``kv_type``, ``f16``, ``f32`` or ``q8_0``.
    ``progress`` is called with each stage of loading, its steps done, and all its steps. Raises
    ``q4run.Error`` and its kinds.
    """
    settings = Settings(
        ram_budget=ram_budget,
        threads=threads,
        io=io,
        context=context,
        kv_type=kv_type,
        cache=cache,
        prefetch=prefetch,
        trace=trace,
        pre=pre,
    )
    return open_model(path, settings, progress)


def open_model(
    path: str | os.PathLike[str], settings: Settings, progress: Progress | None = None
) -> Model:
    """Opens a GGUF model as ``settings`` say. Raises ``q4run.Error`` and its kinds."""
    threads = choose_threads(settings.threads)
    started = time.perf_counter()
    file = open_gguf(path)
    config = read_config(file)
    context = settings.context or min(DEFAULT_CONTEXT, config.context_length)
    layout = read_layout(file, config)
    plan = plan_memory(
        file,
        config,
        layout,
        ram_budget=settings.budget_bytes,
        context=context,
        kv_type=settings.kv_type,
    )
    with ExitStack() as opened:
        # A file that cannot be written is an error before kernels are compiled.
        trace = _open_trace(Path(settings.trace), config) if settings.trace is not None else None
        if trace:
            opened.callback(trace.close)
        free_bytes = available_memory() - plan.total
        choice = choose_method(settings.io, file.parts, plan.all_resident, free_bytes)
        tokenizer = _load_tokenizer(file, config, settings.pre)
        template = load_chat_template(file.metadata, tokenizer)
        prepare_kernels(file, settings.kv_type, threads, progress)
        kv_cache = KVCache(config, context, settings.kv_type)
        store = _open_store(file, layout, plan, settings, choice, trace)
        opened.callback(store.close)
        weights_read = _stage(progress, "reading weights")
        long_batch = plan.n_long_batch, plan.n_lent_slots
        transformer = Transformer(
            file, config, store, plan.n_batch, threads, weights_read, long_batch
        )
        opened.pop_all()
    load_s = time.perf_counter() - started
    notes = (*_notes(file), *tokenizer.notes, *take_remarks())
    experience = Experience(file.parts, choice)
    opening = Opening(
        file.path, plan, threads, choice.method, choice.reason, notes, load_s, experience
    )
    return Model(opening, transformer, Session(transformer, kv_cache), tokenizer, template)


def prepare_kernels(
    file: GGUFFile, kv_type: str, threads: int, progress: Progress | None = None
) -> None:
    """Makes ready the kernels that a file's types take; the first time on a machine they are
    compiled. ``load`` does it by itself: for whoever wants that over before a clock starts."""
    prepare(
        sorted({fmt.in_ram for fmt in _formats(file)}, key=lambda fmt: fmt.name),
        find_kind(kv_type),
        _stage(progress, "compiling kernels"),
        n_compilers=max(1, min(threads, MOST_COMPILERS, available_memory() // COMPILER_BYTES)),
    )


def _formats(file: GGUFFile) -> set[Format]:
    return {fmt for tensor in file.tensors.values() if (fmt := find_format(tensor.type))}


def _open_trace(path: Path, config: ModelConfig) -> TraceWriter:
    parts = config.experts.values()
    counts, used = [part.n_expert for part in parts], [part.n_expert_used for part in parts]
    return TraceWriter(path, list(config.experts), counts, used)


def _load_tokenizer(file: GGUFFile, config: ModelConfig, pre: str | None) -> Tokenizer:
    """Raises Error where the vocabulary has tokens that the model has no embedding for."""
    tokenizer = load_tokenizer(file.metadata, pre)
    if tokenizer.n_vocab > config.n_vocab:
        raise Error(
            f"{file.path}: the tokenizer has {tokenizer.n_vocab} tokens, but the model"
            f" {config.n_vocab} embeddings; the file was not converted properly"
        )
    return tokenizer


def _open_store(
    file: GGUFFile,
    layout: ExpertLayout,
    plan: MemoryPlan,
    settings: Settings,
    choice: Choice,
    trace: TraceWriter | None,
) -> ExpertStore:
    method = METHODS[choice.method](file.parts, keep_cached=choice.keep_cached)
    return ExpertStore(
        layout,
        plan.n_slots,
        method,
        settings.cache,
        settings.prefetch,
        trace,
        choice.n_readers,
        Events(),
    )


def _stage(progress: Progress | None, name: str) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    return lambda done, total: progress(name, done, total)


def _notes(file: GGUFFile) -> tuple[str, ...]:
    """What a person should be told about a file's metadata and types."""
    return (*notes_on(file), *_notes_on_types(file))


def _notes_on_types(file: GGUFFile) -> Iterator[str]:
    return (
        f"{fmt.name} has no kernels: such matrices are held in RAM as {fmt.in_ram.name},"
        f" {fmt.in_ram.bits_per_weight / fmt.bits_per_weight:.1f} times the size"
        for fmt in sorted(_formats(file), key=lambda fmt: fmt.name)
        if fmt.in_ram is not fmt
    )
