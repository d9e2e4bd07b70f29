"""What docs/measured.md says of streaming: the part of the whole table that tells the most."""

from __future__ import annotations

import re
import statistics
from dataclasses import dataclass

from q4run.bench.figures.figures import Figures
from q4run.bench.figures.stored import Record, Results
from q4run.bench.figures.tables import markdown_table, number, span
from q4run.bench.measure.compare import LLAMA_CPP, Q4RUN
from q4run.bench.measure.streaming_report import Case, Report
from q4run.bench.pages.prose import paragraph
from q4run.bench.pages.results_pages import SLICE, SLICE_2048, decoding_reads, read_streaming
from q4run.budget import INTERPRETER_ALLOWANCE
from q4run.sizes import format_size

_TEXT = """
With less memory than the model takes: a 6-layer slice of Scout's own geometry in Q4_0, 7.5 GB,
under an enforced limit (`{command}`). Cold is a process's first prompt and tokens, warm its second.
Random weights route almost uniformly, the worst case for a cache."""
_NOTES = """
The disk decides here: in decoding q4run read {reads} GB/s, by the minute. What is read is the
kernel's own count for each process, {above} % above what the hit rate implies, and while it is
waited for the disk is busy {busy} % of the time. q4run's peak memory was {peaks} ({shares} % of
budget and allowance). llama.cpp runs from its memory map there: repacking, its default, is killed.
`bench/results/` has the whole table, with plain buffered reads and LRU beside it."""


def streaming_block(results: Results) -> list[str]:
    """Paragraphs and the table."""
    short, long = results.record(SLICE), results.record(SLICE_2048)
    rows = read_streaming(short, _rows) + read_streaming(long, _rows_of_long_prompts)
    # A limit's cold rows, then its warm ones, each with those of the longer prompts last.
    rows.sort(key=lambda row: (row.limit or 0, row.start))
    return [
        paragraph(_TEXT, command=_command(short)),
        markdown_table(["", "q4run", "llama.cpp", "ratio"], [row.cells for row in rows], 4),
        paragraph(_NOTES, **read_streaming(short, _notes)),
    ]


def _command(record: Record) -> str:
    """Without what says where things are."""
    return re.sub(r" --(json|table|peer-python|threads)[ =]\S+", "", record.text("command"))


@dataclass(frozen=True)
class _Row:
    limit: int | None
    start: str
    cells: list[str]


def _rows(report: Report) -> list[_Row]:
    """Decoding, what it reads where it begins cold, and the prompt."""
    return [
        _Row(case.limit, case.start, [f"{_name(case)}: {cells[0]}", *cells[1:]])
        for case in report.cases
        for cells in (
            _speeds(case, "decode", "decode"),
            *([_reads(case)] if case.start == "cold" else []),
            _speeds(case, "prefill", f"prompt of {_n_prompt(case):,} tokens"),
        )
    ]


def _rows_of_long_prompts(report: Report) -> list[_Row]:
    """The prompt where it begins cold."""
    rows = []
    for case in report.cases:
        if case.start == "cold":
            times = " (one run)" if report.runs == 1 else ""
            label = f"{_name(case)}: prompt of {_n_prompt(case):,} tokens{times}"
            rows.append(_Row(case.limit, case.start, _speeds(case, "prefill", label)))
    return rows


def _name(case: Case) -> str:
    limit = "no limit" if case.limit is None else f"{case.limit / 1e9:g} GB"
    return f"{limit}, {case.start}"


def _n_prompt(case: Case) -> int:
    n_tokens: int = case.results[Q4RUN][0]["prefill"]["tokens"]
    return n_tokens


def _speeds(case: Case, phase: str, label: str) -> list[str]:
    ours, theirs = ([run[phase]["tok_s"] for run in case.results[n]] for n in (Q4RUN, LLAMA_CPP))
    return [
        label,
        _with_span(ours, " tok/s"),
        f"{number(statistics.median(theirs))} tok/s",
        _with_span(case.ratios[LLAMA_CPP][phase]),
    ]


def _with_span(values: list[float], unit: str = "") -> str:
    middle, between = number(statistics.median(values)), span(values)
    return f"{middle}{unit}" if between == middle else f"{middle}{unit} ({between})"


def _reads(case: Case) -> list[str]:
    ours, theirs = (
        statistics.median(map(_read_per_token, case.results[name])) for name in (Q4RUN, LLAMA_CPP)
    )
    label = "read from disk per token"
    return [label, format_size(ours), format_size(theirs), number(ours / theirs)]


def _read_per_token(run: Figures) -> float:
    per_token: float = run["decode"]["disk_bytes"] / run["decode"]["tokens"]
    return per_token


def _notes(report: Report) -> dict[str, str]:
    """What the paragraph below the table has a place for."""
    cases = [case.results[Q4RUN] for case in report.cases]
    above = [statistics.median(map(_above_floor, runs)) for runs in cases]
    busy = [statistics.median(run["decode"]["busy_share"] for run in runs) for runs in cases]
    peaks, shares = {}, {}
    for case, runs in zip(report.cases, cases, strict=True):
        peak = max(run["peak_rss"] for run in runs)
        of = "" if case.limit is None else f" of {case.limit / 1e9:g} GB"
        peaks[case.limit] = f"{peak / 1e9:.2f}{of or ' GB'}"
        share = peak / (runs[0]["ram_budget"] + INTERPRETER_ALLOWANCE)
        shares[case.limit] = f"{100 * share:.0f}"
    return {
        "reads": decoding_reads(report),
        "above": span(above, lambda times: f"{100 * (times - 1):.0f}", " to "),
        "busy": span(busy, lambda share: f"{100 * share:.0f}", " to "),
        "peaks": " and ".join(peaks.values()),
        "shares": " and ".join(shares.values()),
    }


def _above_floor(run: Figures) -> float:
    floor: float = run["decode"]["floor_bytes"]
    return _read_per_token(run) / floor
