"""``q4run bench``: speed, memory and bytes read, beside llama.cpp's where it is asked for."""

from __future__ import annotations

import sys
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from q4run.cli import options
from q4run.cli.opening import model_in_the_box
from q4run.cli.terminal import Waiting
from q4run.errors import Error
from q4run.machine.memory import total_memory
from q4run.sizes import parse_size

Context = Annotated[
    int | None,
    typer.Option(
        "--context",
        metavar="N",
        min=1,
        help="Tokens there is room for. Not given: prompt and decoded tokens together.",
        rich_help_panel="Memory and speed",
        show_default=False,
    ),
]


class Peer(StrEnum):
    """The programs to compare with."""

    LLAMA_CPP = "llama.cpp"


def bench(
    model: options.ModelFile = None,
    prompt_tokens: Annotated[
        int,
        typer.Option(
            "--prompt-tokens", "-p", metavar="TOKENS", min=1, help="Tokens of the prompt."
        ),
    ] = 512,
    tokens: Annotated[
        int,
        typer.Option("--tokens", "-n", metavar="TOKENS", min=1, help="Tokens to decode after it."),
    ] = 64,
    runs: Annotated[
        int,
        typer.Option(
            "--runs",
            metavar="N",
            min=1,
            help="Runs, each in a process of its own; medians, least and most are told.",
        ),
    ] = 3,
    cold: Annotated[
        bool, typer.Option("--cold", help="Only what a fresh process does with nothing in RAM.")
    ] = False,
    warm: Annotated[
        bool, typer.Option("--warm", help="Only what it does once everything has run before.")
    ] = False,
    vs: Annotated[
        Peer | None,
        typer.Option(
            "--vs",
            help="Run this program on the same file too, in turn, each run in its own process.",
            show_default=False,
        ),
    ] = None,
    peer_python: Annotated[
        str | None,
        typer.Option(
            "--peer-python",
            metavar="PATH",
            help="A Python that has llama-cpp-python. Not given: the one that runs q4run.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        str | None,
        typer.Option(
            "--limit",
            metavar="SIZE",
            help="Enforce this much memory on each run, page cache included (Linux, as root); only"
            " cold ones, unless --warm says otherwise. llama.cpp then runs from its memory map,"
            " without repacking.",
            show_default=False,
        ),
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(
            "--trace",
            metavar="FILE.json",
            help="Record one more pass, which counts nowhere: write what was computed, waited for"
            " and read, when, for https://ui.perfetto.dev, and draw it here.",
            show_default=False,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE.png",
            help="Draw such a pass as a picture: the use of experts, and where a token's time goes"
            " (.png, .svg, .pdf).",
            show_default=False,
        ),
    ] = None,
    json_output: options.Json = False,
    ram_budget: options.RamBudget = None,
    threads: options.Threads = None,
    context: Context = None,
    io: options.IOMethod = options.IO.AUTO,
    cache: options.CachePolicy = options.Cache.LAYERS,
    prefetch: options.PrefetchGuesses = options.Prefetch.AUTO,
    kv_type: options.KV = options.KVType.F16,
) -> None:
    """Measure speed, memory and bytes read, cold and warm; compare them with llama.cpp's.

    Each run is a process of its own. It drops the model from the page cache,
    loads it, runs a prompt and decodes given tokens one by one, without
    sampling (cold), and does that once more (warm).

    [bold]Examples[/]
      q4run bench
      q4run bench model.gguf -p 2048 -n 128 --ram-budget 8G --json
      q4run bench model.gguf --trace timeline.json --plot timeline.png
      q4run bench model.gguf --warm --vs llama.cpp --threads 4
      q4run bench model.gguf --vs llama.cpp --limit 3G --peer-python ~/llama/bin/python
    """
    limit_bytes = _parse_limit(limit)
    context = context or prompt_tokens + tokens
    if context < prompt_tokens + tokens:
        raise typer.BadParameter(
            f"{prompt_tokens + tokens} tokens do not fit into --context {context}"
        )
    _check_outputs(trace, plot)
    from q4run.bench.measure import compare, speed
    from q4run.cli.bench_report import draw, report

    model = model or model_in_the_box()
    ids = speed.choose_tokens(model, prompt_tokens, tokens)
    peer = "" if vs is None else compare.check_peer(peer_python or sys.executable)
    neither = not (cold or warm)
    is_cold = cold or neither
    is_warm = warm or (neither and limit is None)
    request = compare.Request(
        str(model),
        *ids,
        context=context,
        threads=threads,
        kv_type=kv_type.value,
        io=io.value,
        cache=cache.value,
        prefetch=prefetch.value,
        ram_budget=ram_budget,
        warm_up=not is_cold,
        passes=2 if is_cold and is_warm else 1,
    )
    with Waiting("starting") as waiting:
        compare.compile_kernels(request, waiting.update)
        results = compare.run_in_turn(
            request,
            runs=runs,
            peer_python=None if vs is None else peer_python or sys.executable,
            limit=limit_bytes,
            progress=lambda name, done, total: waiting.update(f"measuring {name}", done, total),
        )
        recording = None
        if trace or plot:
            waiting.update("recording", runs, runs)
            recording = compare.record(replace(request, warm_up=is_warm), limit_bytes)
    starts = report(results, json_output, peer)
    if recording:
        draw(recording, starts, trace, plot, json_output)


def _check_outputs(trace: Path | None, plot: Path | None) -> None:
    """Before anything is measured for minutes."""
    from q4run.bench.figures.outputs import check_writable

    if trace is not None:
        from q4run.bench.view.chrome_trace import BEGINS

        check_writable(trace, begins=BEGINS)
    if plot is not None:
        from q4run.bench.view.plot import check_can_plot

        check_can_plot(plot)
        check_writable(plot)


def _parse_limit(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return parse_size(text, total_memory())
    except Error as error:
        raise typer.BadParameter(str(error), param_hint="--limit") from None
