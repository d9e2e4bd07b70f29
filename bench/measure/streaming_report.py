"""What ``q4run.bench.measure.streaming`` found: as a table for the screen, as Markdown, and as
JSON.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from q4run.bench.figures.figures import Figures, median_of, ratios_of
from q4run.bench.figures.provenance import computer
from q4run.bench.figures.tables import markdown_table, number, over, percent, threads_of, with_range
from q4run.bench.measure.compare import PLAIN, Q4RUN
from q4run.budget import INTERPRETER_ALLOWANCE
from q4run.sizes import format_size
from q4run.terminal import printable


@dataclass(frozen=True)
class Case:
    """One limit (None: all the memory there is), begun ``cold`` or ``warm``: every program's runs,
    q4run's first."""

    limit: int | None
    enforced: bool
    start: str
    results: dict[str, list[Figures]]

    @property
    def title(self) -> str:
        if self.limit is None:
            return f"no limit, {self.start}"
        how = "enforced" if self.enforced else "UNENFORCED"
        return f"{format_size(self.limit)} {how}, {self.start}"

    @property
    def ratios(self) -> dict[str, dict[str, list[float]]]:
        """q4run over each other program, pair by pair."""
        ours = self.results[Q4RUN]
        return {name: ratios_of(ours, runs) for name, runs in self.results.items() if name != Q4RUN}


@dataclass
class Report:
    """All cases, and what they were found with; peer: the version of llama.cpp, or nothing."""

    model: str
    when: date
    command: str
    peer: str
    runs: int
    cases: list[Case] = field(default_factory=list)
    machine: str = field(default_factory=lambda: computer())


_Value = Callable[[Figures], float | None]
# A label, a run's value and how it is written; or the name of a ratio.
_Row = tuple[str, _Value, Callable[[float], str]] | tuple[str, str]


def rows_of(case: Case) -> list[tuple[str, list[str]]]:
    """Labels, those of details indented by two spaces, and a cell for each program; none where
    nothing is known of any."""
    rows = []
    for row in _rows(case.results[Q4RUN][0]):
        if len(row) == 2:
            label, ratio = row
            ratios = case.ratios
            cells = [
                with_range(ratios[name][ratio], number) if name in ratios else ""
                for name in case.results
            ]
        else:
            label, value, write = row
            cells = [with_range([value(r) for r in runs], write) for runs in case.results.values()]
        if any(cells):
            rows.append((label, cells))
    return rows


def _rows(first: Figures) -> list[_Row]:
    n_prompt, n_decode = first["prefill"]["tokens"], first["decode"]["tokens"]

    def from_disk(run: Figures) -> float | None:
        return over(run["decode"]["disk_bytes"], n_decode)

    return [
        (f"prompt of {n_prompt}, tokens/s", lambda r: r["prefill"]["tok_s"], number),
        ("  q4run over it", "prefill"),
        ("  waited for the disk, s", lambda r: r["prefill"]["wait_s"], number),
        ("  disk busy meanwhile", lambda r: r["prefill"]["busy_share"], percent),
        ("  read from disk", lambda r: r["prefill"]["disk_bytes"], format_size),
        ("  floor", lambda r: r["prefill"]["floor_bytes"], format_size),
        (
            "  of all experts, once a chunk",
            lambda r: over(r["prefill"]["disk_bytes"], r["prefill"]["once_per_chunk_bytes"]),
            percent,
        ),
        (f"decoding {n_decode}, tokens/s", lambda r: r["decode"]["tok_s"], number),
        ("  q4run over it", "decode"),
        ("  waited for the disk, s", lambda r: r["experts"]["wait_s"], number),
        ("  disk busy meanwhile", lambda r: r["decode"]["busy_share"], percent),
        ("  experts found in RAM", lambda r: r["experts"]["hit_rate"], percent),
        ("  read from disk per token", from_disk, format_size),
        ("  floor at that hit rate", lambda r: r["decode"]["floor_bytes"], format_size),
        (
            "  read, times the floor",
            lambda r: over(from_disk(r), r["decode"]["floor_bytes"]),
            number,
        ),
        ("loading, s", lambda r: r["load_s"], number),
        ("loading and first prompt, s", lambda r: r["load_s"] + r["first_token_s"], number),
        ("peak memory", lambda r: r["peak_rss"], format_size),
        ("  q4run over it", "peak_rss"),
        ("  of budget and allowance", lambda r: over(r["peak_rss"], _promise(r)), percent),
    ]


def _promise(run: Figures) -> int | None:
    budget: int | None = run["ram_budget"]
    return None if budget is None else budget + INTERPRETER_ALLOWANCE


def table_of(report: Report, case: Case) -> Table:
    """A case for the screen."""
    first = case.results[Q4RUN][0]
    style = "bold" if case.enforced or case.limit is None else "bold yellow"
    title = Text(printable(f"{report.model}, {threads_of(first)}, {case.title}"), style)
    table = Table(box=box.SIMPLE_HEAD, title=title)
    table.add_column("")
    for name in case.results:
        table.add_column(name, justify="right")
    for label, cells in rows_of(case):
        table.add_row(label, *cells)
    return table


def markdown_of(report: Report) -> str:
    """A page with machine, date, command and a table for each case."""
    parts = [f"# Streaming {report.model}", *sections_of(report, 2)]
    return "\n\n".join(parts) + "\n"


def _made_of(report: Report) -> str:
    """When, where and with what it was measured, as a sentence."""
    first = report.cases[0].results[Q4RUN][0]
    made = f"{report.when.isoformat()}, {report.machine}; {threads_of(first)}, reads by"
    made += f" {first['io']}."
    return f"{made} llama.cpp is {report.peer}, from its memory map." if report.peer else made


def sections_of(report: Report, level: int) -> list[str]:
    """How it was measured, how to read the figures, and for each case a heading and a table."""
    parts = [
        _made_of(report),
        f"```bash\n{report.command}\n```",
        f"{_how_often(report.runs)} What is read is the kernel's count; floors are what no cache"
        " (prompt) or no cache of that hit rate (decoding) can do without."
        f" {PLAIN}: `--io pread --cache lru --prefetch never`.",
    ]
    for case in report.cases:
        parts.append(f"{'#' * level} {case.title[:1].upper()}{case.title[1:]}")
        rows = [(label.replace("  ", "– ", 1), *cells) for label, cells in rows_of(case)]
        parts.append(markdown_table(["", *case.results], rows))
    return parts


def _how_often(runs: int) -> str:
    if runs == 1:
        return "One run of each."
    return f"Medians of {runs} runs in turn (least to most); ratios are taken run by run."


def json_of(report: Report) -> dict[str, Any]:
    """Medians of every case, with all runs beside them."""
    return {
        "model": report.model,
        "date": report.when.isoformat(),
        "machine": report.machine,
        "command": report.command,
        "peer": report.peer or None,
        "cases": [
            {
                "limit": case.limit,
                "enforced": case.enforced,
                "start": case.start,
                "programs": {
                    name: median_of(runs) | {"runs": runs} for name, runs in case.results.items()
                },
                "ratio": {
                    name: {key: statistics.median(values) for key, values in ratios.items()}
                    for name, ratios in case.ratios.items()
                },
            }
            for case in report.cases
        ],
    }


def report_of(stored: dict[str, Any]) -> Report:
    """What ``json_of`` made JSON of; raises KeyError and the like for anything else."""
    cases = [
        Case(
            one["limit"],
            one["enforced"],
            one["start"],
            {name: program["runs"] for name, program in one["programs"].items()},
        )
        for one in stored["cases"]
    ]
    return Report(
        stored["model"],
        date.fromisoformat(stored["date"]),
        stored["command"],
        stored["peer"] or "",
        len(cases[0].results[Q4RUN]),
        cases,
        stored["machine"],
    )
