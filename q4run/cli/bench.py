"""``q4run bench``: speed, memory and bytes read, beside llama.cpp's where it is asked for."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from q4run.cli import options
from q4run.cli.opening import model_in_the_box, open_model
from q4run.cli.terminal import Waiting, printable
from q4run.errors import Error
from q4run.gguf_file import open_gguf
from q4run.memory import format_size, parse_size, total_memory

if TYPE_CHECKING:
    from q4run.bench.figures import Figures

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
        int, typer.Option("--runs", metavar="N", min=1, help="Runs; their medians are told.")
    ] = 3,
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
            help="Enforce this much memory on each run, page cache included, and begin cold"
            " (Linux, as root). llama.cpp then runs from its memory map, without repacking.",
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
    """Measure speed, memory and bytes read; compare them with llama.cpp's.

    Runs a prompt and then decodes given tokens one by one, without sampling.
    A first run that does not count warms things up, except under --limit.

    [bold]Examples[/]
      q4run bench
      q4run bench model.gguf -p 2048 -n 128 --ram-budget 8G --json
      q4run bench model.gguf --vs llama.cpp --threads 4
      q4run bench model.gguf --vs llama.cpp --limit 3G --peer-python ~/llama/bin/python
    """
    limit_bytes = _parse_limit(limit)
    context = context or prompt_tokens + tokens
    if context < prompt_tokens + tokens:
        raise typer.BadParameter(
            f"{prompt_tokens + tokens} tokens do not fit into --context {context}"
        )
    from q4run.bench import compare, speed

    results: dict[str, list[Figures]]
    peer = ""
    model = model or model_in_the_box()
    if vs is None and limit_bytes is None:
        with open_model(
            model,
            ram_budget=ram_budget,
            threads=threads,
            context=context,
            io=io,
            kv_type=kv_type,
            cache=cache,
            prefetch=prefetch,
        ) as opened:
            ids = speed.choose_tokens(opened.path, prompt_tokens, tokens)
            with Waiting("measuring"):
                results = {"q4run": speed.measure(opened, *ids, runs=runs)}
    else:
        if vs is not None:
            peer = compare.check_peer(peer_python or sys.executable)
        request = compare.Request(
            str(model),
            *speed.choose_tokens(model, prompt_tokens, tokens),
            context=context,
            threads=threads,
            kv_type=kv_type.value,
            io=io.value,
            cache=cache.value,
            prefetch=prefetch.value,
            ram_budget=ram_budget,
            warm_up=limit_bytes is None,
        )
        with Waiting("measuring") as waiting:
            results = compare.run_in_turn(
                request,
                runs=runs,
                peer_python=None if vs is None else peer_python or sys.executable,
                limit=limit_bytes,
                progress=lambda name, done, total: waiting.update(f"measuring {name}", done, total),
            )
    _report(results, json_output, peer)


def _parse_limit(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return parse_size(text, total_memory())
    except Error as error:
        raise typer.BadParameter(str(error), param_hint="--limit") from None


def _report(results: dict[str, list[Figures]], json_output: bool, peer: str) -> None:
    """The table to standard output; with ``json_output`` to standard error, and the JSON.

    peer: the version of llama.cpp, where it ran too.
    """
    from q4run.bench.figures import median_of, ratios_of, set_read_limit
    from q4run.bench.provenance import command_line, provenance
    from q4run.bench.tables import console, threads_of
    from q4run.memory_limit import read_limit

    ours, *peers = results.values()
    limit = read_limit(ours[0]["threads"])
    for runs in results.values():
        set_read_limit(runs, limit, ours[0]["decode"]["bytes_per_token"])
    ratios = ratios_of(ours, peers[0]) if peers else None
    terminal = console(stderr=json_output)
    terminal.print(_table(results, ratios))
    terminal.print(
        f"Medians of the runs (least to most); memory gives {limit / 1e9:.1f} GB/s to"
        f" {threads_of(ours[0])}.",
        style="dim",
    )
    if json_output:
        figures = median_of(ours)
        figures["peer"] = median_of(peers[0]) if peers else None
        figures["ratio"] = ratios and {
            name: statistics.median(values) for name, values in ratios.items()
        }
        figures["ratio_spread"] = ratios and {
            name: [min(values), max(values)] for name, values in ratios.items()
        }
        figures["read_limit"] = limit
        figures["file_bytes"] = open_gguf(Path(ours[0]["model"])).size
        figures |= provenance(command_line("q4run", sys.argv[1:]), peer)
        print(json.dumps(figures))


def _table(results: dict[str, list[Figures]], ratios: dict[str, list[float]] | None) -> Table:
    from q4run.bench.tables import number, threads_of, with_range

    first = next(iter(results.values()))[0]
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(printable(f"{Path(first['model']).name}, {threads_of(first)}"))
    for name in results:
        table.add_column(name, justify="right")
    if ratios:
        table.add_column("ratio", justify="right")
    for label, value, write, ratio in _rows(first):
        cells = [with_range([value(run) for run in runs], write) for runs in results.values()]
        if any(cells):
            if ratios:
                cells.append(with_range(ratios[ratio], number) if ratio else "")
            table.add_row(label, *cells)
    return table


_Value = Callable[["Figures"], float | None]
_Row = tuple[str, _Value, Callable[[float], str], str | None]


def _rows(first: Figures) -> list[_Row]:
    """Each row's label, its number in a run's figures, how that is written, its ratio's name."""
    from q4run.bench.tables import number, over, percent

    n_prompt, n_decode = first["prefill"]["tokens"], first["decode"]["tokens"]

    def read_per_token(run: Figures) -> float | None:
        return over(run["experts"]["bytes_read"], n_decode)

    def from_disk_per_token(run: Figures) -> float | None:
        return over(run["decode"]["disk_bytes"], n_decode)

    return [
        (f"prompt of {n_prompt}, tokens/s", lambda r: r["prefill"]["tok_s"], number, "prefill"),
        ("  from disk, all of it", lambda r: r["prefill"]["disk_bytes"], format_size, None),
        (f"decoding {n_decode}, tokens/s", lambda r: r["decode"]["tok_s"], number, "decode"),
        ("  of memory's read limit", lambda r: r["decode"]["read_limit_ratio"], percent, None),
        ("  weights per token", lambda r: r["decode"]["bytes_per_token"], format_size, None),
        ("  experts found in RAM", lambda r: r["experts"]["hit_rate"], percent, None),
        ("  read per token", read_per_token, format_size, None),
        ("  from disk per token", from_disk_per_token, format_size, None),
        ("  waited for reads, s", lambda r: r["experts"]["wait_s"], number, None),
        ("  disk busy meanwhile", lambda r: r["decode"]["busy_share"], percent, None),
        ("loading, s", lambda r: r["load_s"], number, None),
        ("first prompt, s", lambda r: r["first_token_s"], number, None),
        ("peak memory", lambda r: r["peak_rss"], format_size, "peak_rss"),
    ]
