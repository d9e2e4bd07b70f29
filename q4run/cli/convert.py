"""``q4run convert``: a Hugging Face checkpoint, or another GGUF, to GGUF."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import DownloadColumn, TransferSpeedColumn

from q4run.cli import options
from q4run.cli.convert_options import Calibration, Types, Writing
from q4run.cli.convert_summary import print_summary
from q4run.cli.progress import progress_bar
from q4run.machine.interrupts import ending_cleanly
from q4run.terminal import note


def convert(
    *,
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
    types: Types,
    calibration: Calibration,
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
    given = writing.keywords() | types.keywords() | asdict(calibration)
    from q4run import convert as conversion

    asked = conversion.ConversionOptions(**given)

    with (
        ending_cleanly(),
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

        plan = conversion.plan_conversion(source, out, asked, choosing)
        if writing.dry_run:
            summary = conversion.summarize(plan)
        else:
            summary = conversion.write(plan, partial(update, "converting"))
    if json_output:
        print(json.dumps(summary.as_dict()))
    print_summary(summary)


@contextmanager
def _telling_what_is_kept(resume: bool) -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if resume:
            note("What is finished was kept: the same command goes on from there.")
        raise
