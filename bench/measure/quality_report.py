"""What ``q4run.bench.measure.quality`` found, as it stores it: as a table for the screen, as
Markdown.
"""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

from q4run.bench.figures.tables import markdown_table

_TITLES = (
    "type",
    "method",
    "MB",
    "perplexity",
    "over f16's, %",
    "KL, 1/1000",
    "same top token, %",
)


def table_of(rows: list[dict[str, Any]]) -> Table:
    """The files for the screen."""
    table = Table(*_TITLES, box=box.SIMPLE_HEAD)
    for row in rows:
        table.add_row(*_cells(row))
    return table


def markdown_of(stored: dict[str, Any]) -> str:
    """A page with machine, date, command and a row for each file."""
    parts = [
        f"# Quality of {stored['model']} by type and method",
        made_of(stored),
        f"```bash\n{stored['command']}\n```",
        markdown_rows(stored),
    ]
    return "\n\n".join(parts) + "\n"


def made_of(stored: dict[str, Any]) -> str:
    """When, where and over how much it was measured."""
    return (
        f"{stored['date']}, {stored['machine']}; {stored['peer']}."
        f" {stored['rows'][0]['report']['tokens']} tokens counted, in the second halves of the"
        " windows; each file's excess over f16 is of the same tokens, so that its error is that of"
        " the paired difference."
    )


def markdown_rows(stored: dict[str, Any]) -> str:
    return markdown_table(_TITLES, [_cells(row) for row in stored["rows"]], n_left=2)


def _cells(row: dict[str, Any]) -> list[str]:
    report = row["report"]
    cells = [
        row["type"],
        row["method"],
        f"{row['n_bytes'] / 1e6:.2f}",
        f"{report['perplexity']['value']:.3f}",
    ]
    if report["ratio"] and report["kl"] and report["top1_agreement"]:
        excess, kl, top = report["ratio"], report["kl"], report["top1_agreement"]
        cells += [
            f"{100 * (excess['value'] - 1):+.2f} ± {100 * excess['stderr']:.2f}",
            f"{1000 * kl['value']:.3f} ± {1000 * kl['stderr']:.3f}",
            f"{100 * top['value']:.2f} ± {100 * top['stderr']:.2f}",
        ]
    return cells + [""] * (len(_TITLES) - len(cells))
