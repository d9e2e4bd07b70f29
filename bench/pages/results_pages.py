"""The pages ``bench/results/NAME.md``, made of the measurements stored beside them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from q4run.bench.figures.stored import Record, Results
from q4run.bench.figures.tables import span
from q4run.bench.measure import quality_report, streaming_report
from q4run.bench.measure.compare import PLAIN, Q4RUN
from q4run.bench.measure.streaming_report import Report, sections_of
from q4run.bench.pages import bench_runs
from q4run.bench.pages.prose import code, paragraph
from q4run.bench.pages.recipes import preparation
from q4run.bench.tiny_llama4 import curve
from q4run.sizes import format_size

SLICE = "streaming-scout-slice"
SLICE_2048 = f"{SLICE}-2048"
OURS = {Q4RUN, PLAIN}
_Made = TypeVar("_Made")


def _speed(results: Results) -> list[str]:
    records = bench_runs.small_scouts(results)
    made = preparation(f"{bench_runs.SMALL_SCOUT}TYPE")
    command = bench_runs.command_of(next(iter(records.values()))).replace("FILE", "s12-TYPE.gguf")
    return [
        "# Speed with all of a model in RAM, by type",
        paragraph(
            "A model with Scout's structure, smaller: width 2048, 12 layers, 16 experts of 3072,"
            " 128k vocabulary, random weights. Medians over the runs; of ratios also the least and"
            " the most."
        ),
        paragraph(bench_runs.made_of(records.values())),
        code(*made, command),
        bench_runs.table_of(records),
    ]


def _scout(results: Results) -> list[str]:
    records = bench_runs.scouts(results)
    sizes = {name: record.number("file_bytes") for (name, _), record in records.items()}
    prepared = [line for record in records.values() for line in preparation(record.name)]
    commands = [record.text("command") for record in records.values()]
    return [
        "# Llama 4 Scout's full geometry, ternary, beyond RAM",
        paragraph(
            "48 layers, 16 experts of 8192 and a shared one in each, width 5120, 202,048 tokens:"
            " 109 B parameters, 17 B of them active; {sizes}. Random weights, which route almost"
            " uniformly: the worst case for a cache.",
            sizes=", ".join(f"in `{name}` {format_size(size)}" for name, size in sizes.items()),
        ),
        paragraph(bench_runs.made_of(records.values())),
        paragraph(
            "The enforced limit (a memory cgroup, page cache included) is the budget and the fixed"
            " allowance, no byte more; each run begins cold."
        ),
        code(*dict.fromkeys([*prepared, *commands])),
        bench_runs.table_of(
            {f"{name}, {budget / 1e9:g} GB": r for (name, budget), r in records.items()}
        ),
        paragraph(
            "A prompt is bound by computing here, decoding by the disk. The `q4_0` form (61 GB) was"
            " not run: this machine has not got the disk space."
        ),
    ]


def read_streaming(record: Record, make: Callable[[Report], _Made]) -> _Made:
    """What ``make`` makes of a stored report of ``q4run.bench.measure.streaming``."""
    return record.read_as(lambda content: make(streaming_report.report_of(content)))


def decoding_reads(report: Report) -> str:
    """GB/s that q4run read in decoding, in its slowest run and its fastest."""
    programs = [case.results[name] for case in report.cases for name in OURS & case.results.keys()]
    return span([run["experts"]["read_gb_s"] for runs in programs for run in runs], to=" to ")


def _streaming(results: Results) -> list[str]:
    short, long = results.record(SLICE), results.record(SLICE_2048)
    (made,) = preparation(SLICE)
    return [
        "# Streaming a slice of Scout",
        paragraph(
            "Six layers of Scout's geometry in Q4_0, 7.5 GB (`{made}`): random weights, which route"
            " almost uniformly. In decoding q4run read {reads} GB/s from run to run, as the disk of"
            " this shared machine gave it.",
            made=made,
            reads=read_streaming(short, decoding_reads),
        ),
        *read_streaming(short, lambda report: sections_of(report, 2)),
        "## Prompts of 2,048 tokens",
        "In batches of 1,024; the prompts above take one batch.",
        *read_streaming(long, lambda report: sections_of(report, 3)),
    ]


_TINY_LLAMA4 = """\
"calibrated" is `convert --calibrate`, "imatrix" `convert --imatrix` with what `q4run imatrix`
makes of the same text; llama.cpp gets the same file, and each tensor is of the same type on both
sides."""
_STORIES = """\
Both texts are what the model itself writes after "Once upon a time" at temperature 1, with
different seeds. Its rows of 64 and 172 values fit no type with blocks of 256, and those of 172 no
type at all: they stay f16 on both sides."""


def _quality(name: str, note: str) -> Callable[[Results], list[str]]:
    def page(results: Results) -> list[str]:
        record = results.record(name)
        return [
            f"# Quality of {record.text('model')} by type and method",
            paragraph(record.read_as(quality_report.made_of)),
            code(*preparation(name), record.text("command")),
            paragraph(note),
            record.read_as(quality_report.markdown_rows),
        ]

    return page


def _training(results: Results) -> list[str]:
    return [results.record("tiny-llama4-training").read_as(curve.markdown_of).rstrip()]


# By the name of the page: its paragraphs, made of what is stored.
PAGES: dict[str, Callable[[Results], list[str]]] = {
    "speed-small-scout": _speed,
    "scout-109b-ternary": _scout,
    "streaming-scout-slice": _streaming,
    "quality-tiny-llama4": _quality("quality-tiny-llama4", _TINY_LLAMA4),
    "quality-stories260K": _quality("quality-stories260K", _STORIES),
    "tiny-llama4-training": _training,
}
