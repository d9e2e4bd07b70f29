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
from q4run.cli.convert_options import Importance, Types, Writing
from q4run.cli.convert_summary import print_summary
from q4run.cli.progress import progress_bar
from q4run.cli.terminal import note
from q4run.errors import Error
from q4run.machine.memory import total_memory
from q4run.sizes import parse_size


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
    *,
    types: Types,
    importance: Importance,
    writing: Writing,
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
    max_ram_bytes = _size(writing.max_ram, "--max-ram", total_memory())
    split_bytes = _size(writing.split_max_size, "--split-max-size", None)
    fit_bytes = _size(types.fit, "--fit", total_memory())
    overrides = [_override(text) for text in types.tensor_types or ()]
    if not (types.type_name or types.recipe or types.fit):
        raise typer.BadParameter("give a --type, a --recipe, or a size to --fit")
    given = types.type_name or types.expert_type or types.recipe or types.tensor_types
    if types.fit and given:
        raise typer.BadParameter("--fit chooses the types: give either it or types")
    from q4run import convert as conversion

    with (
        _ending_cleanly(),
        _telling_what_is_kept(writing.resume and not writing.dry_run),
        progress_bar(
            "reading the checkpoint",
            DownloadColumn(),
            TransferSpeedColumn(),
            shown=not writing.dry_run or types.fit is not None,
        ) as update,
    ):

        def choosing(done: int, total: int) -> None:
            update(f"choosing types, {done} of {total}", None, None)

        asked = conversion.ConversionOptions(
            type=types.type_name,
            expert_type=types.expert_type,
            recipe=types.recipe,
            tensor_types=overrides,
            fit=fit_bytes,
            imatrix=importance.imatrix,
            calibrate=importance.calibrate,
            calibrate_chunks=importance.calibrate_chunks,
            split_max_size=split_bytes,
            max_ram=max_ram_bytes,
            threads=writing.threads,
            dry_run=writing.dry_run,
            force=writing.force,
            resume=writing.resume,
        )
        plan = conversion.plan_conversion(source, out, asked, choosing)
        if writing.dry_run:
            summary = conversion.summarize(plan)
        else:
            summary = conversion.write(plan, partial(update, "converting"))
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
