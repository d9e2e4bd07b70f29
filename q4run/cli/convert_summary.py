"""What a conversion did, or would do, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

from q4run.sizes import format_size
from q4run.terminal import note, one_line, stderr_console

if TYPE_CHECKING:
    from q4run.convert import Summary

# Into a pipe, rows must not be folded to the 80 columns that rich assumes there.
_PIPE_WIDTH = 120


def print_summary(summary: Summary) -> None:
    """To standard error: the file, its sizes, a table of types, notes."""
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
    if summary.expert_bytes:
        note(
            f"At run time {format_size(summary.dense_bytes)} are always in RAM, beside the"
            f" conversation; of the experts' {format_size(summary.expert_bytes)} what there is room"
            " for, the rest is read from disk."
        )
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
