"""``q4run imatrix``: what a model's matrices multiply on a text, for quantising it well."""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from q4run.cli import options
from q4run.cli.progress import progress_bar
from q4run.machine.interrupts import ending_cleanly
from q4run.machine.memory import total_memory
from q4run.sizes import parse_size
from q4run.terminal import note, one_line, quiet_line, warn
from q4run.text import DEFAULT_WINDOW

if TYPE_CHECKING:
    from q4run.convert.calibration.collect import Collected


def imatrix(
    model: Annotated[
        Path, typer.Argument(help="A GGUF file; of a split model, the first part.", metavar="MODEL")
    ],
    file: Annotated[
        Path,
        typer.Option(
            "--file",
            "-f",
            metavar="TEXT",
            help="What to run through the model: text such as it will be used for.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", metavar="OUT", help="The file to write, NAME.gguf.")
    ],
    context: Annotated[
        int, typer.Option("--context", metavar="N", min=2, help="Tokens in one window.")
    ] = DEFAULT_WINDOW,
    chunks: options.Chunks = None,
    ram_budget: Annotated[
        str | None,
        typer.Option(
            "--ram-budget",
            metavar="SIZE",
            callback=options.check_size,
            help="The RAM for weights and intermediate results: 6G, 500M, 50%; what does not fit"
            " lies on disk meanwhile. Not given: three quarters of what is free.",
            show_default=False,
        ),
    ] = None,
    json_output: options.Json = False,
) -> None:
    """Collect activation statistics for convert --imatrix (llama.cpp reads them too).

    The text goes through the model layer by layer, so that a model larger
    than RAM is read once. Control tokens written out in the text, such as
    those of a chat template, are read as control tokens.

    [bold]Examples[/]
      q4run imatrix model-f16.gguf -f chats.txt -o model-imatrix.gguf
      q4run imatrix model-f16.gguf -f chats.txt -o model-imatrix.gguf --chunks 200 --ram-budget 8G
    """
    budget = parse_size(ram_budget, total_memory()) if ram_budget is not None else None
    with ending_cleanly(), progress_bar("reading the text") as update:
        from q4run.convert.calibration.collect import make_imatrix

        collected = make_imatrix(
            model,
            file,
            out,
            context=context,
            chunks=chunks,
            ram_budget=budget,
            progress=partial(update, "running the text"),
        )
    if json_output:
        print(json.dumps(asdict(collected) | {"out": str(collected.out)}))
    _tell(collected)


def _tell(collected: Collected) -> None:
    quiet_line(
        [
            one_line(str(collected.out)),
            f"{collected.n_entries} tensors",
            f"{collected.n_tokens} tokens in {collected.n_chunks} windows of {collected.context}",
            f"{collected.seconds:.1f} s",
        ]
    )
    if collected.unused:
        warn(
            f"{collected.unused} of {collected.n_experts} experts met no token of this text: give"
            " a longer or more varied one"
        )
    else:
        note("Use it with: q4run convert SOURCE --type T --imatrix " + one_line(str(collected.out)))
