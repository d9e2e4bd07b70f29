"""What the verbs that load a model have in common: their options, and opening the model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from q4run.cli.terminal import Patience, Waiting, note, quiet_line
from q4run.errors import Error

if TYPE_CHECKING:
    from q4run.model import Model
    from q4run.sampling import SamplingParameters

_MODEL_PANEL = "Memory and speed"
_SAMPLING_PANEL = "Sampling"


class IO(StrEnum):
    """The ways to bring experts from disk."""

    AUTO = "auto"
    MMAP = "mmap"
    PREAD = "pread"
    DIRECT = "direct"


class Cache(StrEnum):
    """Which expert leaves RAM when another needs its place."""

    LAYERS = "layers"
    LRU = "lru"


class Prefetch(StrEnum):
    """Whether experts are read because the next layer will likely want them."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class KVType(StrEnum):
    """What the keys and values of the conversation are held as."""

    F16 = "f16"
    F32 = "f32"
    Q8_0 = "q8_0"


def _check_size(text: str | None) -> str | None:
    if text is not None:
        from q4run.memory import parse_size

        try:
            parse_size(text, total=1 << 40)
        except Error as error:
            raise typer.BadParameter(str(error)) from None
    return text


ModelFile = Annotated[
    Path | None,
    typer.Argument(
        help="A GGUF file; of a split model, the first part.",
        metavar="MODEL",
        show_default=False,
    ),
]
RamBudget = Annotated[
    str | None,
    typer.Option(
        "--ram-budget",
        metavar="SIZE",
        callback=_check_size,
        help="The RAM that q4run may use: 6G (powers of 1000), 6GiB (of 1024), 500M, or a share of"
        " the machine's RAM such as 50%. Not given: three quarters of what is free.",
        rich_help_panel=_MODEL_PANEL,
        show_default=False,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads",
        metavar="N",
        min=1,
        help="Threads that compute. Not given: one per physical core.",
        rich_help_panel=_MODEL_PANEL,
        show_default=False,
    ),
]
Context = Annotated[
    int | None,
    typer.Option(
        "--context",
        metavar="N",
        min=1,
        help="Tokens to keep in mind, prompt and answer together; takes RAM. Not given: 4096, or"
        " what the model was trained on where that is less.",
        rich_help_panel=_MODEL_PANEL,
        show_default=False,
    ),
]
IOMethod = Annotated[
    IO,
    typer.Option(
        "--io",
        help="How experts are read from disk.",
        rich_help_panel=_MODEL_PANEL,
    ),
]
CachePolicy = Annotated[
    Cache,
    typer.Option(
        "--cache",
        help="Which expert leaves RAM for another: the one that the order of the layers and its"
        " use so far say comes again last, or the least recently used.",
        rich_help_panel=_MODEL_PANEL,
    ),
]
PrefetchGuesses = Annotated[
    Prefetch,
    typer.Option(
        "--prefetch",
        help="Whether to read, while the disk has nothing better to do, the experts that the next"
        " layer will likely want. auto tries both, and goes on with what is faster.",
        rich_help_panel=_MODEL_PANEL,
    ),
]
Trace = Annotated[
    Path | None,
    typer.Option(
        "--trace",
        metavar="FILE",
        help="Write down which experts each layer used, for python -m q4run.bench.cache.",
        rich_help_panel=_MODEL_PANEL,
        show_default=False,
    ),
]
KV = Annotated[
    KVType,
    typer.Option(
        "--kv-type",
        help="How the conversation's keys and values are stored: f32, f16 in half the RAM, or q8_0"
        " in a quarter.",
        rich_help_panel=_MODEL_PANEL,
    ),
]
Temperature = Annotated[
    float,
    typer.Option(
        "--temp",
        metavar="X",
        min=0.0,
        help="0 always takes the likeliest token; higher is more varied.",
        rich_help_panel=_SAMPLING_PANEL,
    ),
]
TopK = Annotated[
    int,
    typer.Option(
        "--top-k",
        metavar="N",
        min=0,
        help="Choose among the N likeliest tokens; 0 among all.",
        rich_help_panel=_SAMPLING_PANEL,
    ),
]
TopP = Annotated[
    float,
    typer.Option(
        "--top-p",
        metavar="X",
        min=0.0,
        max=1.0,
        help="Choose among the likeliest tokens that together reach probability X; 1 among all.",
        rich_help_panel=_SAMPLING_PANEL,
    ),
]
MinP = Annotated[
    float,
    typer.Option(
        "--min-p",
        metavar="X",
        min=0.0,
        max=1.0,
        help="Leave out tokens less likely than X times the likeliest; 0 leaves none out.",
        rich_help_panel=_SAMPLING_PANEL,
    ),
]
RepeatPenalty = Annotated[
    float,
    typer.Option(
        "--repeat-penalty",
        metavar="X",
        min=0.01,
        help="Above 1, tokens that came lately are less likely; 1 changes nothing.",
        rich_help_panel=_SAMPLING_PANEL,
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        "--seed",
        metavar="N",
        min=0,
        help="The same seed gives the same text again. Not given: a new one every time.",
        rich_help_panel=_SAMPLING_PANEL,
        show_default=False,
    ),
]
System = Annotated[
    str | None,
    typer.Option(
        "--system",
        metavar="TEXT",
        help="A system message: how the model is to answer.",
        show_default=False,
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object; all else goes to standard error."),
]

# What Meta advises for Llama 4 (temperature and top-p of its generation_config.json), with the
# small min-p that quantised weights want.
DEFAULT_TEMPERATURE, DEFAULT_TOP_K, DEFAULT_TOP_P, DEFAULT_MIN_P = 0.6, 0, 0.9, 0.01


def sampling_parameters(
    temp: float, top_k: int, top_p: float, min_p: float, repeat_penalty: float, seed: int | None
) -> SamplingParameters:
    """The options of the sampling panel as the sampler takes them."""
    from q4run.sampling import SamplingParameters

    return SamplingParameters(
        temperature=temp,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repeat_penalty,
        seed=seed,
    )


@contextmanager
def open_model(
    path: Path | None,
    *,
    ram_budget: str | None,
    threads: int | None,
    context: int | None,
    io: IO,
    kv_type: KVType,
    cache: Cache = Cache.LAYERS,
    prefetch: Prefetch = Prefetch.AUTO,
    trace: Path | None = None,
) -> Iterator[Model]:
    """Loads a model while a progress line shows how far it is, says what was chosen, closes it.

    Raises Error where no path is given: there is no model in the box yet.
    """
    if path is None:
        raise Error(
            "no MODEL is given: name a GGUF file, or make one from a checkpoint folder with"
            " 'q4run convert FOLDER model.gguf --type q4_0'"
        )
    with Waiting("starting") as waiting:
        # These take most of a second: only now, and with the progress line under way.
        from q4run.kernels.compile import CACHE_FOLDER

        stages = {} if any(CACHE_FOLDER.glob("**/*.nbc")) else {"compiling kernels": _FIRST_TIME}
        from q4run.model import load

        model = load(
            path,
            ram_budget=ram_budget,
            threads=threads,
            io=io.value,
            context=context,
            kv_type=kv_type.value,
            cache=cache.value,
            prefetch=prefetch.value,
            trace=trace,
            progress=lambda stage, done, total: waiting.update(
                stages.get(stage, stage), done, total
            ),
        )
    model.tell_of_waits(Patience(model.path.name))
    model.tell_of_slots(partial(_say_how_many_fit, model.plan.n_slots))
    with model:
        _say_what_was_chosen(model)
        yield model


def _say_how_many_fit(planned: int, n_slots: int) -> None:
    if n_slots == planned:
        note(f"There is room for {n_slots} experts again.")
    else:
        note(f"Memory is short: {n_slots} of {planned} experts are kept in RAM for now.")


_FIRST_TIME = "compiling kernels (first time on this machine only)"


def _say_what_was_chosen(model: Model) -> None:
    from q4run.memory import format_size

    plan, config = model.plan, model.config
    n_experts = max((layer.moe.n_expert for layer in config.layers if layer.moe), default=0)
    shape = f"{config.architecture}, {len(config.layers)} layers"
    parts = f": dense {format_size(plan.dense)}, KV {format_size(plan.kv)}"
    threads = f"{model.threads} thread" + "s" * (model.threads > 1)
    slots, how = "", [threads]
    if plan.n_experts:
        shape += f", {n_experts} experts"
        slots, how = f", {plan.n_slots} of {plan.n_experts} experts", [model.io, threads]
    ram = f"RAM {format_size(plan.total)}"
    quiet_line(
        [model.path.name, shape, f"{ram}{parts}{slots}", *how],
        shorter=[model.path.name, config.architecture, f"{ram}{slots}", *how],
    )
    if model.io_reason and plan.n_experts and not plan.all_resident:
        note(f"Experts are read by {model.io}: {model.io_reason}.")
    for text in model.notes:
        note(text)
    if model.session.context > config.context_length:
        note(
            f"The model was trained on {config.context_length} tokens: in a context of"
            f" {model.session.context}, it gets worse after these."
        )
