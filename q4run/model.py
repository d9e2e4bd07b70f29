"""The Python interface: a model that is loaded, asked and closed."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from q4run.budget import DEFAULT_CONTEXT, MemoryPlan, plan_memory
from q4run.cache.keys_values import KV_TYPES, KVCache
from q4run.disk.auto import choose_method
from q4run.disk.methods import METHODS
from q4run.errors import Error
from q4run.experts.layout import read_layout
from q4run.experts.policies import DEFAULT_CACHE
from q4run.experts.prefetch import DEFAULT_PREFETCH
from q4run.experts.store import ExpertStore
from q4run.experts.trace import TraceWriter
from q4run.generation.sampler import Sampler, SamplingParameters
from q4run.generation.session import Session
from q4run.gguf_file import GGUFFile, open_gguf
from q4run.kernels.formats import Format, find_format
from q4run.kernels.prepare import prepare
from q4run.layers.decoder import Transformer
from q4run.machine.cores import choose_threads
from q4run.machine.memory import available_memory, peak_rss
from q4run.models import read_config
from q4run.models.config import ModelConfig
from q4run.settings import Settings
from q4run.text.chat_template import ChatTemplate, load_chat_template
from q4run.text.stream import TextStream
from q4run.text.tokenizer import Tokenizer, load_tokenizer
from q4run.timeline import Timeline

# Hears of a stage of loading ("compiling kernels", "reading weights") and its steps done, in all.
Progress = Callable[[str, int, int], None]

# Kernels are compiled by several processes where there is this much memory for each (they take half
# of it); more than these would wait for the slowest kernel.
COMPILER_BYTES = 800 * 10**6
MOST_COMPILERS = 4


@dataclass(frozen=True)
class Stats:
    """What a model has done since it was loaded; subtract two to see what happened between.

    Sizes in bytes, times in seconds. ``wait_s`` is time that the computation stood still for the
    disk, ``read_s`` adds up over the reader threads. Of the ``misses``, ``read_ahead`` were on
    their way, or there, before they were asked for; ``begun_ahead`` counts all that were begun so,
    the vain ones included. Fields can also be read as ``stats["hits"]``.
    """

    tokens: int
    decode_s: float
    prompt_tokens: int
    prompt_s: float
    hits: int
    misses: int
    read_ahead: int
    begun_ahead: int
    bytes_read: int
    read_s: float
    wait_s: float
    load_s: float
    peak_rss: int

    def __getitem__(self, name: str) -> Any:
        return getattr(self, name)

    def __sub__(self, earlier: Stats) -> Stats:
        counted = {
            name: value - earlier[name]
            for name, value in asdict(self).items()
            if name not in ("load_s", "peak_rss")
        }
        return replace(self, **counted)

    @property
    def hit_rate(self) -> float | None:
        """The share of wanted experts that were in RAM; None where none was wanted."""
        wanted = self.hits + self.misses
        return self.hits / wanted if wanted else None


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
) -> Model:
    """Opens a GGUF model for use; close it, or use it as a context manager.

    ram_budget: bytes, or ``"6GiB"``, ``"500M"``, or ``"50%"`` of this machine's RAM; None takes a
    share of what is free. It bounds all that the process holds beyond the fixed allowance for the
    interpreter (``q4run.budget.INTERPRETER_ALLOWANCE``). threads: None is one per physical core
    (``q4run.machine.cores.choose_threads``). context: None is 4096 tokens, or what the model was
    trained on where that is less. kv_type: ``f16``, ``f32`` or ``q8_0``. cache: which expert leaves
    when a slot is wanted, ``layers`` or ``lru``. prefetch: whether experts are read because the
    next layer will likely want them: ``always``, ``never``, or ``auto``, which finds out what is
    faster. trace: a file that gets which experts each layer used. Raises ``q4run.Error`` and its
    kinds.
    """
    settings = Settings(ram_budget, threads, io, context, kv_type, cache, prefetch, trace)
    threads = choose_threads(threads)
    started = time.perf_counter()
    file = open_gguf(path)
    config = read_config(file)
    if context is None:
        context = min(DEFAULT_CONTEXT, config.context_length)
    layout = read_layout(file, config)
    plan = plan_memory(
        file, config, layout, ram_budget=settings.budget_bytes, context=context, kv_type=kv_type
    )
    # A name that cannot be written is told of before kernels are compiled.
    writer = _open_trace(Path(trace), config) if trace is not None else None
    free_bytes = available_memory() - plan.total
    choice = choose_method(io, file.parts, plan.all_resident, free_bytes)
    tokenizer = load_tokenizer(file.metadata)
    if tokenizer.n_vocab > config.n_vocab:
        raise Error(
            f"{file.path}: the tokenizer has {tokenizer.n_vocab} tokens, but the model"
            f" {config.n_vocab} embeddings; the file was not converted properly"
        )
    template = load_chat_template(file.metadata, tokenizer)
    prepare_kernels(file, kv_type, threads, progress)
    kv_cache = KVCache(config, context, kv_type)
    method = METHODS[choice.method](file.parts, keep_cached=choice.keep_cached)
    store = ExpertStore(layout, plan.n_slots, method, cache, prefetch, writer, choice.n_readers)
    try:
        transformer = Transformer(
            file,
            config,
            store,
            plan.n_batch,
            threads,
            _stage(progress, "reading weights"),
            (plan.n_long_batch, plan.n_lent_slots),
        )
    except BaseException:
        store.close()
        raise
    session = Session(transformer, kv_cache)
    model = Model(file.path, config, plan, transformer, store, session, tokenizer, template)
    model.threads = threads
    model.io = choice.method
    model.io_reason = choice.reason
    model.notes = [
        f"{fmt.name} has no kernels: such matrices are held in RAM as {fmt.in_ram.name},"
        f" {fmt.in_ram.bits_per_weight / fmt.bits_per_weight:.1f} times the size"
        for fmt in sorted(_formats(file), key=lambda fmt: fmt.name)
        if fmt.in_ram is not fmt
    ]
    model.load_s = time.perf_counter() - started
    return model


def prepare_kernels(
    file: GGUFFile, kv_type: str, threads: int, progress: Progress | None = None
) -> None:
    """Makes ready the kernels that a file's types take; the first time on a machine they are
    compiled. ``load`` does it by itself: for whoever wants that over before a clock starts."""
    prepare(
        sorted({fmt.in_ram for fmt in _formats(file)}, key=lambda fmt: fmt.name),
        KV_TYPES[kv_type],
        _stage(progress, "compiling kernels"),
        n_compilers=max(1, min(threads, MOST_COMPILERS, available_memory() // COMPILER_BYTES)),
    )


def _formats(file: GGUFFile) -> set[Format]:
    return {fmt for tensor in file.tensors.values() if (fmt := find_format(tensor.type))}


def _open_trace(path: Path, config: ModelConfig) -> TraceWriter:
    parts = config.experts.values()
    counts, used = [part.n_expert for part in parts], [part.n_expert_used for part in parts]
    return TraceWriter(path, list(config.experts), counts, used)


def _stage(progress: Progress | None, name: str) -> Callable[[int, int], None] | None:
    if progress is None:
        return None
    return lambda done, total: progress(name, done, total)


class Model:
    """A loaded model; made by ``load``."""

    def __init__(
        self,
        path: Path,
        config: ModelConfig,
        plan: MemoryPlan,
        transformer: Transformer,
        store: ExpertStore,
        session: Session,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
    ) -> None:
        self.path = path
        self.config = config
        self.plan = plan
        self.session = session
        self.tokenizer = tokenizer
        self.template = template
        self.threads = 0
        self.io = ""
        self.io_reason = ""  # why ``auto`` took that
        self.load_s = 0.0
        self.notes: list[str] = []  # what a person should be told once
        self._transformer = transformer
        self.store = store

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stops the reader threads and lets go of the file."""
        self.store.close()
        self._transformer.close()

    @contextmanager
    def recording(self) -> Iterator[Timeline]:
        """Records where the time goes, as long as the context lasts."""
        timeline = Timeline()
        self._transformer.timeline = self.store.timeline = timeline
        try:
            yield timeline
        finally:
            self._transformer.timeline = self.store.timeline = None

    def tell_of_waits(self, hear: Callable[[float], None]) -> None:
        """Calls ``hear`` ten times a second while a read is waited for, with the seconds so far."""
        self._transformer.on_wait = hear

    def tell_of_slots(self, hear: Callable[[int], None]) -> None:
        """Calls ``hear`` with the number of experts there is room for when it has become smaller,
        since memory is short, and when it is what it was at first again."""
        self.store.on_resize = hear

    def tokenize(
        self, text: str, *, add_bos: bool | None = None, special: bool = False
    ) -> list[int]:
        """Token ids of ``text``; add_bos None does as the file says; ``special`` reads control
        tokens written out in the text as such."""
        return self.tokenizer.encode(text, add_bos=add_bos, special=special)

    def detokenize(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of ``ids``; control tokens only with ``special``."""
        return self.tokenizer.decode(ids, special=special)

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """float32 (len(ids), n_vocab), from an empty context.

        The array is the caller's: it is not part of the RAM budget.
        """
        logits = np.empty((len(ids), self.config.n_vocab), np.float32)
        rest = logits

        def keep(some: np.ndarray) -> None:
            nonlocal rest
            rest[: len(some)] = some
            rest = rest[len(some) :]

        self.session.clear()
        self.session.feed(ids, consume=keep)
        return logits

    def generate(
        self,
        prompt: str | Sequence[int],
        max_tokens: int = 256,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
    ) -> Iterator[str]:
        """Continues a text (tokenised as it stands, without a chat template) or token ids.

        Yields text as it comes, whole characters only; stops at an end-of-generation token, after
        ``max_tokens`` or at the end of the context. The common beginning of successive prompts is
        run only once.
        """
        ids = self.tokenize(prompt) if isinstance(prompt, str) else list(prompt)
        parameters = SamplingParameters(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )
        stream = TextStream(self.tokenizer)
        stop_ids = self.tokenizer.stop_ids
        for token in self.session.generate(ids, Sampler(parameters), stop_ids, max_tokens):
            if token not in stop_ids and (piece := stream.push(token)):
                yield piece
        if rest := stream.flush():
            yield rest

    @property
    def stats(self) -> Stats:
        """The counters as of now."""
        tokens, experts = self.session.counters, self.store.counters
        return Stats(**asdict(tokens), **asdict(experts), load_s=self.load_s, peak_rss=peak_rss())
