"""The options that several verbs have in common: single ones, and the groups that make a value."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from q4run.cli.groups import Group, Options, choice, option
from q4run.errors import Error
from q4run.experts.policies import POLICIES
from q4run.experts.prefetch import PREFETCH
from q4run.generation import chat_defaults
from q4run.kernels.attention.kinds import kind_names
from q4run.settings import Settings, io_names

if TYPE_CHECKING:
    from q4run.generation.sampler import SamplingParameters

_MODEL_PANEL = "Memory and speed"
_SAMPLING_PANEL = "Sampling"
_CONTEXT = (
    "Tokens to keep in mind, prompt and answer together; takes RAM. Not given: 4096, or what the"
    " model was trained on where that is less."
)


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


def settings_options(*names: str, context: str = _CONTEXT) -> Group:
    """Returns the group that makes ``Settings`` of those named; the others keep their defaults.

    context: what ``--help`` says of the option of that name.
    """
    return Group(Settings, lambda: [one for one in _settings_options(context) if one.name in names])


def _settings_options(context: str) -> Options:
    """Returns the option of each setting, in the order of ``--help``."""
    return [
        _setting(
            "ram_budget",
            str | None,
            "The RAM that q4run may use: 6G (powers of 1000), 6GiB (of 1024), 500M, or a share of"
            " the machine's RAM such as 50%. Not given: three quarters of what is free.",
            metavar="SIZE",
            callback=check_size,
        ),
        _setting(
            "threads",
            int | None,
            "Threads that compute. Not given: one per physical core, as far as a container's"
            " limit allows.",
            metavar="N",
            min=1,
        ),
        _setting(
            "context",
            int | None,
            context,
            metavar="N",
            min=1,
        ),
        _setting("io", choice(io_names()), "How experts are read from disk."),
        _setting(
            "cache",
            choice(POLICIES),
            "Which expert leaves RAM for another: the one that the order of the layers and its"
            " use so far say comes again last, or the least recently used.",
        ),
        _setting(
            "prefetch",
            choice(PREFETCH),
            "Whether to read, while the disk has nothing better to do, the experts that the next"
            " layer will likely want. auto tries both, and goes on with what is faster.",
        ),
        _setting(
            "pre",
            str | None,
            "How text is cut into words before it becomes tokens (the name in tokenizer.ggml.pre),"
            " for a file that names none or one that is not known.",
            metavar="NAME",
        ),
        _setting(
            "trace",
            Path | None,
            "Write down which experts each layer used, for python -m q4run.bench.measure.cache.",
            metavar="FILE",
        ),
        _setting(
            "kv_type",
            choice(kind_names()),
            "How the conversation's keys and values are stored: f32, f16 in half the RAM, or q8_0"
            " in a quarter.",
        ),
    ]


def _setting(name: str, kind: Any, text: str, **how: Any) -> inspect.Parameter:
    default = getattr(Settings, name)
    how |= {"rich_help_panel": _MODEL_PANEL, "show_default": default is not None}
    return option(
        name, kind, default, typer.Option(f"--{name.replace('_', '-')}", help=text, **how)
    )


ModelSettings = Annotated[Settings, settings_options(*(field.name for field in fields(Settings)))]


def _sampling_options() -> Options:
    return [
        _sampling(
            "temperature",
            float,
            chat_defaults.TEMPERATURE,
            "--temp",
            "0 always takes the likeliest token; higher is more varied.",
            metavar="X",
            min=0.0,
        ),
        _sampling(
            "top_k",
            int,
            0,
            "--top-k",
            "Choose among the N likeliest tokens; 0 among all.",
            metavar="N",
            min=0,
        ),
        _sampling(
            "top_p",
            float,
            chat_defaults.TOP_P,
            "--top-p",
            "Choose among the likeliest tokens that together reach probability X; 1 among all.",
            metavar="X",
            min=0.0,
            max=1.0,
        ),
        _sampling(
            "min_p",
            float,
            chat_defaults.MIN_P,
            "--min-p",
            "Leave out tokens less likely than X times the likeliest; 0 leaves none out.",
            metavar="X",
            min=0.0,
            max=1.0,
        ),
        _sampling(
            "repetition_penalty",
            float,
            1.0,
            "--repeat-penalty",
            "Above 1, tokens that came lately are less likely; 1 changes nothing.",
            metavar="X",
            min=0.01,
        ),
        _sampling(
            "seed",
            int | None,
            None,
            "--seed",
            "The same seed gives the same text again. Not given: a new one every time.",
            metavar="N",
            min=0,
        ),
    ]


def _sampling(
    name: str, kind: Any, default: Any, flag: str, text: str, **how: Any
) -> inspect.Parameter:
    how |= {"rich_help_panel": _SAMPLING_PANEL, "show_default": default is not None}
    return option(name, kind, default, typer.Option(flag, help=text, **how))


def _sampling_parameters(**values: Any) -> SamplingParameters:
    from q4run.generation.sampler import SamplingParameters  # takes numpy, which --help does not

    return SamplingParameters(**values)


Sampling = Annotated["SamplingParameters", Group(_sampling_parameters, _sampling_options)]
