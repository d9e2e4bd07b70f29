"""What README.md and docs/measured.md say of measurements: blocks of Markdown, made of what is
stored.

A block stands in its page between ``<!-- figures: NAME -->`` and ``<!-- /figures -->``. Claims
around figures are written so that they stay true whatever is measured, or are checked here.
"""

from __future__ import annotations

from typing import Any

from q4run.bench.figures.stored import Record, Results
from q4run.bench.figures.tables import markdown_table, number, span
from q4run.bench.pages import bench_runs
from q4run.bench.pages.prose import how_often, in_words, paragraph
from q4run.bench.pages.recipes import preparation
from q4run.budget import INTERPRETER_ALLOWANCE
from q4run.errors import Error
from q4run.sizes import format_size


def first_start_block(results: Results) -> list[str]:
    record = results.record("first-start")
    return [
        paragraph(
            "Kernels compile for your processor the first time, and are then kept: on {cores}"
            " cores the whole line takes {first:.0f} seconds to the first answer ({pip:.0f} of them"
            " `pip`), and the next `q4run chat` {next:.1f}.",
            cores=in_words(record.number("n_cores")),
            first=record.number("first_answer_s"),
            pip=record.number("pip_s"),
            next=record.number("next_start_s"),
        )
    ]


def allowance_block(results: Results) -> list[str]:
    record = results.record("first-start")
    usual = [n_bytes / 1e6 for n_bytes in record.numbers("interpreter_bytes")]
    return [
        paragraph(
            "`--ram-budget` bounds all that the process holds beyond a fixed allowance of"
            " {allowance} for Python, numba and compiled kernels (measured here: {usual}"
            " MB; the first start compiles, and takes {compiling} for it in each of up to"
            " {processes} processes that end before the model is read).",
            allowance=format_size(INTERPRETER_ALLOWANCE),
            usual=span(usual, to=" to "),
            compiling=format_size(record.number("compiling_bytes")),
            processes=in_words(record.number("compiling_processes")),
        )
    ]


_SPEED = """
On a virtual machine ({machine}), {threads}, over the same tokens of the same file, each run in its
own process, in turn, against llama.cpp ({peer}, built on this machine, its weight repacking on):
`{command}`. Medians and, in brackets, the ratio from run to run. The model has Scout's structure,
smaller: width 2048, 12 layers, 16 experts of 3072, 128k vocabulary, random weights, all in RAM
(`{made}`)."""
_SPEED_NOTES = """ Memory gave {threads} {limits} GB/s from minute to minute on this shared machine,
and the faster program gains more from a good one: in a bad one {slow_type} decoded {slow} times as
fast, reading weights at {share:.0f} % of the {slow_limit:.0f} GB/s there were. Peak memory with
{first}: {ours}; llama.cpp {theirs}, as it keeps repacked weights beside the map. `python -m
q4run.bench.measure.kernels` times the products alone."""


def speed_block(results: Results) -> list[str]:
    records = bench_runs.small_scouts(results)
    name, first = next(iter(records.items()))
    slow = results.record("speed-slow-memory")
    n_prompt = first.number("prefill.tokens")
    header = ["type", "decode, tok/s", "llama.cpp", "ratio"]
    header += [f"prompt of {n_prompt:.0f}, tok/s", "llama.cpp", "ratio"]
    limits = [record.number("read_limit") / 1e9 for record in records.values()]
    threads = in_words(first.number("threads")) + " threads"
    return [
        paragraph(
            _SPEED,
            machine=bench_runs.machine_of(first),
            threads=threads,
            peer=first.text("versions.llama_cpp"),
            command=bench_runs.command_of(first),
            made=preparation(f"{bench_runs.SMALL_SCOUT}TYPE")[0].replace("s12-TYPE.gguf", "FILE"),
        ),
        markdown_table(header, [_speed_row(*item) for item in records.items()], len(header)),
        paragraph(
            _SPEED_NOTES,
            threads=threads,
            limits=span(limits, lambda limit: f"{limit:.0f}", " to "),
            slow_type="q4_0",
            slow=bench_runs.ratio_of(slow, "decode"),
            share=100 * slow.number("decode.read_limit_ratio"),
            slow_limit=slow.number("read_limit") / 1e9,
            first=name,
            ours=format_size(first.number("peak_rss")),
            theirs=format_size(first.number("peer.peak_rss")),
        ),
    ]


def _speed_row(name: str, record: Record) -> list[str]:
    cells = [name]
    for phase in ("decode", "prefill"):
        speeds = (record.number(f"{program}{phase}.tok_s") for program in ("", "peer."))
        cells += [*map(number, speeds), bench_runs.ratio_of(record, phase)]
    return cells


def scout_block(results: Results) -> list[str]:
    records = bench_runs.scouts(results)
    first, other = (
        next(iter(some.values())) for some in (records, bench_runs.small_scouts(results))
    )
    here = bench_runs.machine_of(first)
    prompts = [record.number("prefill.tok_s") for record in records.values()]
    return [
        paragraph(
            "Scout's full geometry, 48 layers and 109 B parameters in ternary, on {machine}, in"
            " tokens a second: {told}; a prompt of {n_prompt:.0f} runs at {prompts}"
            " (`bench/results/`). Random weights again: what they cost is a model's, what they say"
            " is not.",
            machine="the same machine" if here == bench_runs.machine_of(other) else here,
            told="; ".join(
                _scout_of(name, [record for (one, _), record in records.items() if one == name])
                for name in dict.fromkeys(name for name, _ in records)
            ),
            n_prompt=first.number("prefill.tokens"),
            prompts=span(prompts, to=" to "),
        )
    ]


def _scout_of(name: str, records: list[Record]) -> str:
    """Of a type: ``in `tq1_0` (23 GB) it decodes 1.04 within 8 GB and 2.63 within 20 GB``."""
    speeds = [
        f"{number(record.number('decode.tok_s'))} within {record.number('ram_budget') / 1e9:g} GB"
        for record in records
    ]
    size = records[0].number("file_bytes") / 1e9
    return f"in `{name}` ({size:.0f} GB) it decodes {' and '.join(speeds)}"


_CONVERSION = """
A {size} checkpoint converts within {peak} of memory at {rate}/s here; killed {killed}, interrupted
{interrupted} and resumed each time, the bytes are the same
(`python -m q4run.bench.measure.big_checkpoint`)."""


def conversion_block(results: Results) -> list[str]:
    record = results.record("conversion")
    if record.get("same_bytes") is not True:
        raise Error(f"{record.path}: what was resumed is not the same bytes: no figure to show")
    return [paragraph(_CONVERSION, **record.read_as(_conversion_of))]


def _conversion_of(content: dict[str, Any]) -> dict[str, str]:
    """Of the runs, the first is the one in one go."""
    n_bytes, runs = content["checkpoint_bytes"], content["runs"]
    ends = [run["end"].partition(" ")[0] for run in runs]
    return {
        "size": format_size(n_bytes),
        "peak": format_size(max(run["peak"] for run in runs)),
        "rate": format_size(n_bytes / runs[0]["seconds"]),
        "killed": how_often(ends.count("SIGKILL")),
        "interrupted": how_often(ends.count("SIGINT")),
    }


_CORRECTNESS = """
Correctness, in the test suite: logits against `transformers` ({configurations:.0f} random
configurations of Llama 4, Llama and Mixtral, and the trained model) differ by at most {logits} of
the largest logit in float32. Of {answers:.0f} greedy answers from {files} converted files ({kinds}
types and a mix), {same:.0f} are llama.cpp's to the last token; in the others, at the first token
that differs, ours is the best in float32 on the same values or within {margin:g} logits of it.
Files of all {types:.0f} types load in llama.cpp ({peer}) and give its logits: apart by {medians} %
of the largest in the median token of {tokens:.0f}, by {worst:.0f} % where int8 activations send a
token to another expert."""


def correctness_block(results: Results) -> list[str]:
    record = results.record("correctness")
    medians = record.numbers("llama_cpp_logits.median_difference")
    greedy = ("answers", "same", "margin")
    logits = record.number("transformers.largest_difference")
    return [
        paragraph(
            _CORRECTNESS,
            configurations=record.number("transformers.configurations"),
            logits=f"{logits:.0e}".replace("e-0", "e-"),
            **{key: record.number(f"greedy.{key}") for key in greedy},
            files=in_words(record.number("greedy.files")),
            kinds=in_words(record.number("greedy.types")),
            types=record.number("llama_cpp_logits.types"),
            peer=record.text("versions.llama_cpp"),
            medians=span([100 * share for share in medians], "{:.1f}".format, " to "),
            tokens=record.number("llama_cpp_logits.tokens"),
            worst=100 * record.number("llama_cpp_logits.largest_difference"),
        )
    ]
