"""The README's one table of figures: q4run beside llama.cpp, for each kind of processor."""

from __future__ import annotations

import statistics
from typing import Any

from q4run.bench.figures.stored import Record, Results
from q4run.bench.figures.tables import markdown_table, number
from q4run.bench.measure.compare import LLAMA_CPP, Q4RUN
from q4run.bench.measure.streaming_report import Report
from q4run.bench.pages import bench_runs
from q4run.bench.pages.prose import in_words, paragraph
from q4run.bench.pages.results_pages import SLICE, decoding_reads, read_streaming

_AVX2 = "speed-avx2"
_PHASES = ("decode", "prefill")
_TEXT = """
Tokens a second with {threads} threads and, in brackets, how many times llama.cpp's speed that is,
on the same file and the same tokens. **Find your processor's column.** AVX-512 is {machine}, with
AVX-512 and VNNI, as AMD's Zen 4 and 5 and Intel's processors for servers have them. q4run was
developed and measured on it. AVX2 is {avx2_machine}: Intel Core of the 12th to 14th generation and
AMD's Zen 2 and 3 have no more, and get less. Its figures are those of a report from another machine
and have not been measured here. For Arm (Macs) there are none."""
_NOTES = """
Weights are random, the worst case for a cache. The small Scout has Scout's structure and fits into
RAM; the slice is 6 of Scout's 48 layers, 7.5 GB. The disk gave {reads} GB/s; where a model does not
fit, a faster disk helps in proportion."""


def table_block(results: Results) -> list[str]:
    """Paragraphs and the table: a row for each type in RAM, then one for each model that is not."""
    in_ram, avx2 = bench_runs.small_scouts(results), results.record(_AVX2)
    first, streamed = next(iter(in_ram.values())), results.record(SLICE)
    n_prompt = first.number("prefill.tokens")
    others = avx2.read_as(_cells_of_types)
    absent = ["–", "–"]
    rows = [
        [f"small Scout, {name}", *_cells(record), *others.get(name, absent)]
        for name, record in in_ram.items()
    ]
    rows += [[*row, *absent] for row in read_streaming(streamed, _slice_rows)]
    rows += [
        [f"Scout, 109 B, {name}, within {budget / 1e9:g} GB", *_cells(record), *absent]
        for (name, budget), record in bench_runs.scouts(results).items()
    ]
    prompt = f"prompt of {n_prompt:.0f}"
    header = ["", "AVX-512: decoding", prompt, "AVX2: decoding", prompt]
    return [
        paragraph(
            _TEXT,
            threads=in_words(first.number("threads")),
            machine=bench_runs.machine_of(first).partition(",")[0],
            avx2_machine=avx2.text("machine"),
        ),
        markdown_table(header, rows),
        paragraph(_NOTES, reads=read_streaming(streamed, decoding_reads)),
    ]


def _cells(record: Record) -> list[str]:
    """Decoding and prompt; the ratio where llama.cpp was measured too."""
    return [
        _cell(
            record.number(f"{phase}.tok_s"),
            record.number(f"ratio.{phase}") if record.get("ratio") else None,
        )
        for phase in _PHASES
    ]


def _cells_of_types(content: dict[str, Any]) -> dict[str, list[str]]:
    """By type: decoding and prompt."""
    return {
        row["type"]: [_cell(row[phase]["tok_s"], row[phase]["ratio"]) for phase in _PHASES]
        for row in content["rows"]
    }


def _slice_rows(report: Report) -> list[list[str]]:
    """A row for each limit, begun cold: medians of the runs."""
    return [
        [
            f"Scout slice, q4_0, within {case.limit / 1e9:g} GB",
            *(
                _cell(
                    statistics.median(run[phase]["tok_s"] for run in case.results[Q4RUN]),
                    statistics.median(case.ratios[LLAMA_CPP][phase]),
                )
                for phase in _PHASES
            ),
        ]
        for case in report.cases
        if case.limit is not None and case.start == "cold"
    ]


def _cell(tokens_per_s: float, ratio: float | None) -> str:
    return number(tokens_per_s) + ("" if ratio is None else f" ({number(ratio)})")
