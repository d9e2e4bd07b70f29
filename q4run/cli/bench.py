"""``q4run bench``: speed, memory and bytes read, beside llama.cpp's where it is asked for."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from q4run.cli import options
from q4run.cli.opening import model_in_the_box
from q4run.errors import Error
from q4run.machine.interrupts import ending_cleanly
from q4run.machine.memory import total_memory
from q4run.settings import Settings
from q4run.sizes import parse_size
from q4run.terminal import Waiting

_SETTINGS = options.settings_options(
    "ram_budget",
    "threads",
    "context",
    "io",
    "cache",
    "prefetch",
    "kv_type",
    context="Tokens there is room for. Not given: prompt and decoded tokens together.",
)


class Program(StrEnum):
    """The programs to compare with."""

    LLAMA_CPP = "llama.cpp"


@dataclass(frozen=True)
class Runs:
    """What each process does, and how many there are."""

    prompt_tokens: Annotated[
        int,
        typer.Option(
            "--prompt-tokens", "-p", metavar="TOKENS", min=1, help="Tokens of the prompt."
        ),
    ] = 512
    tokens: Annotated[
        int,
        typer.Option("--tokens", "-n", metavar="TOKENS", min=1, help="Tokens to decode after it."),
    ] = 64
    runs: Annotated[
        int,
        typer.Option(
            "--runs",
            metavar="N",
            min=1,
            help="Runs, each in a process of its own; medians, least and most are told.",
        ),
    ] = 3
    cold: Annotated[
        bool, typer.Option("--cold", help="Only what a fresh process does with nothing in RAM.")
    ] = False
    warm: Annotated[
        bool, typer.Option("--warm", help="Only what it does once everything has run before.")
    ] = False

    @property
    def n_tokens(self) -> int:
        """The tokens of prompt and continuation together."""
        return self.prompt_tokens + self.tokens

    def starts(self, *, limited: bool) -> tuple[bool, bool]:
        """Returns whether cold starts count, and whether warm ones do."""
        neither = not (self.cold or self.warm)
        return self.cold or neither, self.warm or (neither and not limited)


@dataclass(frozen=True)
class Comparison:
    """What q4run is compared with, and within which memory."""

    vs: Annotated[
        Program | None,
        typer.Option(
            "--vs",
            help="Run this program on the same file too, in turn, each run in its own process.",
            show_default=False,
        ),
    ] = None
    peer_python: Annotated[
        str | None,
        typer.Option(
            "--peer-python",
            metavar="PATH",
            help="A Python that has llama-cpp-python. Not given: the one that runs q4run.",
            show_default=False,
        ),
    ] = None
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
    ] = None

    @property
    def python(self) -> str | None:
        """The Python that runs the other program; None where there is none."""
        return None if self.vs is None else self.peer_python or sys.executable


@dataclass(frozen=True)
class Outputs:
    """What is written beside the figures."""

    trace: Annotated[
        Path | None,
        typer.Option(
            "--trace",
            metavar="FILE.json",
            help="Record one more pass, which counts nowhere: write what was computed, waited for"
            " and read, when, for https://ui.perfetto.dev, and draw it here.",
            show_default=False,
        ),
    ] = None
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot",
            metavar="FILE.png",
            help="Draw such a pass as a picture: the use of experts, and where a token's time goes"
            " (.png, .svg, .pdf).",
            show_default=False,
        ),
    ] = None

    def check(self) -> None:
        """Raises Error for what cannot be written: before anything is measured for minutes."""
        from q4run.bench.figures.outputs import check_writable

        if self.trace is not None:
            from q4run.bench.view.chrome_trace import BEGINS

            check_writable(self.trace, begins=BEGINS)
        if self.plot is not None:
            from q4run.bench.view.plot import check_can_plot

            check_can_plot(self.plot)
            check_writable(self.plot)


def bench(
    *,
    model: options.ModelFile = None,
    runs: Runs,
    comparison: Comparison,
    outputs: Outputs,
    json_output: options.Json = False,
    settings: Annotated[Settings, _SETTINGS],
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
    limit = _parse_limit(comparison.limit)
    context = settings.context or runs.n_tokens
    if context < runs.n_tokens:
        raise typer.BadParameter(f"{runs.n_tokens} tokens do not fit into --context {context}")
    outputs.check()
    from q4run.bench.measure import compare, speed
    from q4run.cli.bench_report import draw, report

    model = model or model_in_the_box()
    ids = speed.choose_tokens(model, runs.prompt_tokens, runs.tokens)
    peer = compare.check_peer(comparison.python) if comparison.python else ""
    is_cold, is_warm = runs.starts(limited=limit is not None)
    request = compare.Request(
        str(model),
        *ids,
        context=context,
        threads=settings.threads,
        kv_type=settings.kv_type,
        io=settings.io,
        cache=settings.cache,
        prefetch=settings.prefetch,
        ram_budget=settings.ram_budget,
        warm_up=not is_cold,
        passes=2 if is_cold and is_warm else 1,
    )
    with ending_cleanly(), Waiting("starting") as waiting:
        compare.compile_kernels(request, waiting.update)
        results = compare.run_in_turn(
            request,
            runs=runs.runs,
            peer_python=comparison.python,
            limit=limit,
            progress=lambda name, done, total: waiting.update(f"measuring {name}", done, total),
        )
        recording = None
        if outputs.trace or outputs.plot:
            waiting.update("recording", runs.runs, runs.runs)
            recording = compare.record(replace(request, warm_up=is_warm), limit)
    starts = report(results, json_output, peer)
    if recording:
        draw(recording, starts, outputs.trace, outputs.plot, json_output)


def _parse_limit(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return parse_size(text, total_memory())
    except Error as error:
        raise typer.BadParameter(str(error), param_hint="--limit") from None
