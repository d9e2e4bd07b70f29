"""The options that the verbs which load a model have in common."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from q4run.errors import Error

if TYPE_CHECKING:
    from q4run.generation.sampler import SamplingParameters

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


def check_size(text: str | None) -> str | None:
    """Refuses, as wrong usage, an option's value that is not a size."""
    if text is not None:
        from q4run.sizes import parse_size

        try:
            parse_size(text, total=1 << 40)
        except Error as error:
            raise typer.BadParameter(str(error)) from None
    return text


ModelFile = Annotated[
    Path | None,
    typer.Argument(
        help="A GGUF file; of a split model, the first part. Not given: the model in the box.",
        metavar="MODEL",
        show_default=False,
    ),
]
RamBudget = Annotated[
    str | None,
    typer.Option(
        "--ram-budget",
        metavar="SIZE",
        callback=check_size,
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
        help="Threads that compute. Not given: one per physical core, as far as a container's"
        " limit allows.",
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
        help="Write down which experts each layer used, for python -m q4run.bench.measure.cache.",
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
Chunks = Annotated[
    int | None,
    typer.Option(
        "--chunks",
        metavar="N",
        min=1,
        help="Windows at most. Not given: the whole text.",
        show_default=False,
    ),
]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object; all else goes to standard error."),
]
Stats = Annotated[
    bool,
    typer.Option(
        "--stats",
        help="Show a live panel below the answer: speed, hits, reads, RAM, and which experts are"
        " used and in RAM. Where standard error is no terminal, they come at the end, as text.",
    ),
]

# What Meta advises for Llama 4 (temperature and top-p of its generation_config.json), with the
# small min-p that quantised weights want.
DEFAULT_TEMPERATURE, DEFAULT_TOP_K, DEFAULT_TOP_P, DEFAULT_MIN_P = 0.6, 0, 0.9, 0.01


def sampling_parameters(
    temp: float, top_k: int, top_p: float, min_p: float, repeat_penalty: float, seed: int | None
) -> SamplingParameters:
    """The options of the sampling panel as the sampler takes them."""
    from q4run.generation.sampler import SamplingParameters

    return SamplingParameters(
        temperature=temp,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repeat_penalty,
        seed=seed,
    )
