"""``q4run convert``: a Hugging Face checkpoint, or another GGUF, to GGUF."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from q4run.cli import options
from q4run.cli.terminal import note, one_line, stderr_console
from q4run.errors import Error
from q4run.memory import format_size, parse_size, total_memory

if TYPE_CHECKING:
    from q4run.convert import Summary

_TYPES = (
    "f32, f16, bf16, q8_0, q6_k, q5_k, q5_1, q5_0, q4_k, q4_1, q4_0, iq4_nl, iq4_xs, mxfp4, q3_k,"
    " q2_k, tq2_0, tq1_0"
)
# Into a pipe, rows must not be folded to the 80 columns that rich assumes there.
_PIPE_WIDTH = 120


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="The checkpoint's folder (config.json, *.safetensors, tokenizer), or a GGUF file.",
        ),
    ],
    type_name: Annotated[
        str,
        typer.Option("--type", metavar="T", help=f"The type of the matrices: {_TYPES}."),
    ],
    out: Annotated[
        Path | None,
        typer.Argument(
            metavar="OUT.gguf",
            help="The file to write. Not given: NAME-TYPE.gguf in the current folder.",
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
            help="Threads that quantise. Not given: one per physical core.",
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
      q4run convert Llama-4-Scout --type tq2_0 --dry-run
    """
    max_ram_bytes = _size(max_ram, "--max-ram", total_memory())
    split_bytes = _size(split_max_size, "--split-max-size", None)
    from q4run import convert as conversion

    with (
        _ending_cleanly(),
        _telling_what_is_kept(resume and not dry_run),
        _progress_bar(shown=not dry_run) as report,
    ):
        summary = conversion.convert(
            source,
            out,
            type=type_name,
            expert_type=expert_type,
            imatrix=imatrix,
            max_ram=max_ram_bytes,
            threads=threads,
            split_max_size=split_bytes,
            dry_run=dry_run,
            force=force,
            resume=resume,
            progress=report,
        )
    if json_output:
        print(json.dumps(summary.as_dict()))
    _print_summary(summary)


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


@contextmanager
def _progress_bar(*, shown: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar with bytes, rate and time left, in a terminal; gone when it ends."""
    console = stderr_console()
    if not (shown and console.is_terminal):
        yield None
        return
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as progress:
        task = progress.add_task("reading the checkpoint", total=None)

        def report(done: int, total: int) -> None:
            progress.update(task, description="converting", completed=done, total=total)

        yield report


def _print_summary(summary: Summary) -> None:
    console = stderr_console()
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    n_files = len(summary.outputs)
    name = one_line(str(summary.outputs[0])) + (f" and {n_files - 1} more" if n_files > 1 else "")
    sizes = f"{format_size(summary.size_before)} → {format_size(summary.size_after)}"
    if summary.written:
        rate = summary.size_before / max(summary.seconds, 1e-9)
        line = f"{name}: {sizes} in {summary.seconds:.1f} s ({format_size(rate)}/s read)"
    else:
        line = f"would write {name}: {sizes}"
    console.print(Text(line), soft_wrap=True)
    console.print(_table(summary))
    for text in summary.notes:
        note(f"Note: {text}")


def _table(summary: Summary) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_footer=True)
    table.add_column("tensors", footer="all")
    table.add_column("type", footer="")
    for heading, footer in (
        ("count", f"{summary.n_tensors:,}"),
        ("weights", f"{summary.n_values:,}"),
        ("size", format_size(sum(count.n_bytes for count in summary.counts))),
        ("bits per weight", f"{summary.bits_per_weight:.2f}"),
    ):
        table.add_column(heading, footer=footer, justify="right", no_wrap=True)
    for count in summary.counts:
        table.add_row(
            count.use,
            count.type,
            f"{count.n_tensors:,}",
            f"{count.n_values:,}",
            format_size(count.n_bytes),
            f"{count.bits_per_weight:.2f}",
        )
    return table
