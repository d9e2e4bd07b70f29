"""``q4run convert``: a Hugging Face checkpoint, or another GGUF, to GGUF."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.progress import DownloadColumn, TransferSpeedColumn

from q4run.cli import options
from q4run.cli.convert_summary import print_summary
from q4run.cli.progress import progress_bar
from q4run.errors import Error
from q4run.machine.memory import total_memory
from q4run.sizes import parse_size
from q4run.terminal import note

_TYPES = (
    "f32, f16, bf16, q8_0, q6_k, q5_k, q5_1, q5_0, q4_k, q4_1, q4_0, iq4_nl, iq4_xs, mxfp4, q3_k,"
    " q2_k, tq2_0, tq1_0"
)
_RECIPES = (
    "best (hardly any loss), balanced (little loss in half a byte per weight), fast (what decodes"
    " fastest at four bits), small (three bits for the experts), ternary (for experts that were"
    " trained ternary)"
)


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="The checkpoint's folder (config.json, *.safetensors, tokenizer), or a GGUF file.",
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Argument(
            metavar="OUT.gguf",
            help="The file to write. Not given: NAME-TYPE.gguf in the current folder.",
            show_default=False,
        ),
    ] = None,
    type_name: Annotated[
        str | None,
        typer.Option(
            "--type",
            metavar="T",
            help=f"The type of the matrices: {_TYPES}.",
            show_default=False,
        ),
    ] = None,
    expert_type: Annotated[
        str | None,
        typer.Option(
            "--expert-type",
            metavar="T",
            help="Another type for the routed experts.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            metavar="NAME",
            help=f"Types for a usual case instead of --type: {_RECIPES}.",
            show_default=False,
        ),
    ] = None,
    fit: Annotated[
        str | None,
        typer.Option(
            "--fit",
            metavar="SIZE",
            help="Choose the types instead, for the least loss in a file of at most this size.",
            show_default=False,
        ),
    ] = None,
    tensor_types: Annotated[
        list[str] | None,
        typer.Option(
            "--tensor-type",
            metavar="PATTERN=T",
            help="Another type for the tensors in whose names the pattern is found; may be given"
            " several times.",
            show_default=False,
        ),
    ] = None,
    imatrix: Annotated[
        Path | None,
        typer.Option(
            "--imatrix",
            metavar="FILE",
            help="An importance matrix of this model (q4run imatrix, or llama.cpp's): columns that"
            " multiply large values are kept more exactly.",
            show_default=False,
        ),
    ] = None,
    calibrate: Annotated[
        Path | None,
        typer.Option(
            "--calibrate",
            metavar="TEXT",
            help="Run this text through the model while converting, and make up in some weights for"
            " what others lose in rounding: the best quality, and the slowest.",
            show_default=False,
        ),
    ] = None,
    calibrate_chunks: Annotated[
        int | None,
        typer.Option(
            "--calibrate-chunks",
            metavar="N",
            min=1,
            help="How many windows of 512 tokens of it at most. Not given: 256.",
            show_default=False,
        ),
    ] = None,
    max_ram: Annotated[
        str | None,
        typer.Option(
            "--max-ram",
            metavar="SIZE",
            help="The most memory to use: 6G (powers of 1000), 6GiB (of 1024), 500M, or a share of"
            " the machine's RAM such as 50%. Not given: a quarter of what is free.",
            show_default=False,
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads",
            metavar="N",
            min=1,
            help="Threads that quantise. Not given: one per physical core, as far as a container's"
            " limit allows.",
            show_default=False,
        ),
    ] = None,
    split_max_size: Annotated[
        str | None,
        typer.Option(
            "--split-max-size",
            metavar="SIZE",
            help="Write several files of at most this size: NAME-00001-of-00005.gguf.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be written, and how large it is.")
    ] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Replace an output that exists, once the new is whole.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Keep what is finished if interrupted, and go on from there if there is any.",
        ),
    ] = False,
    json_output: options.Json = False,
) -> None:
    """Turn a Hugging Face checkpoint, or another GGUF, into a GGUF file.

    Router, norms and vectors stay f32. The output appears under its name only
    when it is complete; Ctrl-C leaves nothing behind, or with --resume what
    is finished.

    [bold]Examples[/]
      q4run convert Llama-4-Scout model.gguf --type q4_0
      q4run convert Llama-4-Scout model.gguf --type q8_0 --expert-type q4_0
      q4run convert Llama-4-Scout --type q4_0 --split-max-size 40G --max-ram 4G
      q4run convert Llama-4-Maverick-FP8 maverick.gguf --type q4_0 --resume
      q4run convert model-bf16.gguf model-q8_0.gguf --type q8_0
      q4run convert Llama-4-Scout --type tq2_0 --dry-run
      q4run convert Llama-4-Scout --recipe balanced
      q4run convert Llama-4-Scout --fit 48G --imatrix scout-imatrix.gguf
    """
    max_ram_bytes = _size(max_ram, "--max-ram", total_memory())
    split_bytes = _size(split_max_size, "--split-max-size", None)
    fit_bytes = _size(fit, "--fit", total_memory())
    overrides = [_override(text) for text in tensor_types or ()]
    if not (type_name or recipe or fit):
        raise typer.BadParameter("give a --type, a --recipe, or a size to --fit")
    if fit and (type_name or expert_type or recipe or tensor_types):
        raise typer.BadParameter("--fit chooses the types: give either it or types")
    from q4run import convert as conversion

    with (
        _ending_cleanly(),
        _telling_what_is_kept(resume and not dry_run),
        progress_bar(
            "reading the checkpoint",
            DownloadColumn(),
            TransferSpeedColumn(),
            shown=not dry_run or fit is not None,
        ) as update,
    ):

        def choosing(done: int, total: int) -> None:
            update(f"choosing types, {done} of {total}", None, None)

        summary = conversion.convert(
            source,
            out,
            type=type_name,
            expert_type=expert_type,
            recipe=recipe,
            tensor_types=overrides,
            fit=fit_bytes,
            imatrix=imatrix,
            calibrate=calibrate,
            calibrate_chunks=calibrate_chunks,
            max_ram=max_ram_bytes,
            threads=threads,
            split_max_size=split_bytes,
            dry_run=dry_run,
            force=force,
            resume=resume,
            progress=partial(update, "converting"),
            choosing=choosing,
        )
    if json_output:
        print(json.dumps(summary.as_dict()))
    print_summary(summary)


def _override(text: str) -> tuple[str, str]:
    pattern, equals, type_name = text.rpartition("=")
    if not equals or not pattern:
        raise typer.BadParameter(f"'{text}' is not PATTERN=TYPE", param_hint="--tensor-type")
    return pattern, type_name


def _size(text: str | None, option: str, total: int | None) -> int | None:
    if text is None:
        return None
    try:
        return parse_size(text, total)
    except Error as error:
        raise typer.BadParameter(str(error), param_hint=option) from None


@contextmanager
def _ending_cleanly() -> Iterator[None]:
    """Lets a hang-up or a polite kill end things as Ctrl-C does: with nothing left behind."""

    def end(number: int, frame: FrameType | None) -> None:
        sys.exit(128 + number)

    signals = (signal.SIGTERM, signal.SIGHUP)
    ours = [number for number in signals if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def _telling_what_is_kept(resume: bool) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if resume:
            note("What is finished was kept: the same command goes on from there.")
        raise
