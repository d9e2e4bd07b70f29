"""Streaming beside llama.cpp: the same file, the same enforced memory, cold and warm.

    python -m q4run.bench.measure.streaming MODEL [--limit 3G --limit 5G] [--runs 3]
                                    [--peer-python PATH] [--prompt 512] [--tokens 32]
                                    [--json FILE] [--table FILE.md]

Three programs take turns, each run in a process of its own: q4run, q4run the plain way (--io pread
--cache lru --prefetch never), and llama.cpp from its memory map (llama-cpp-python, in the Python of
--peer-python). Each drops the page cache, loads, runs a prompt and decodes given tokens (cold), and
does the same once more in the same process (warm). A limit is a memory cgroup's, page cache
included; where none can be made, that is said and q4run keeps to it by itself. Without --limit, all
of the machine's memory may be used.

What is read is the kernel's count for each process. Beside it stands the floor: in decoding, the
share of a token's experts that was not found in RAM; of a prompt, the experts that were not in RAM
at its start, and of each further chunk those that cannot have stayed there. "disk busy meanwhile"
is the share of the waiting in which the disk had a read in flight: a thread looks every 5 ms.
"""

from __future__ import annotations

import argparse
import json
import sys
from datetime import date
from pathlib import Path

from q4run.bench.figures.arguments import count, size
from q4run.bench.figures.provenance import command_line
from q4run.bench.figures.tables import console
from q4run.bench.measure import compare, limits, speed
from q4run.bench.measure.streaming_report import Case, Report, json_of, markdown_of, table_of
from q4run.disk.methods import METHODS
from q4run.errors import Error
from q4run.experts.policies import DEFAULT_CACHE, POLICIES
from q4run.experts.prefetch import DEFAULT_PREFETCH, PREFETCH
from q4run.kernels.attention.kinds import kind_names
from q4run.machine.interrupts import ending_cleanly
from q4run.sizes import format_size
from q4run.terminal import Waiting, describe, warn


def main(words: list[str] | None = None) -> None:
    words = sys.argv[1:] if words is None else words
    try:
        _run(_parser().parse_args(words), words)
    except KeyboardInterrupt:
        sys.exit(130)
    except (Error, OSError) as error:
        sys.exit(f"error: {describe(error)}")


def _run(arguments: argparse.Namespace, words: list[str]) -> None:
    for path in (arguments.json, arguments.table):
        if path and not path.parent.is_dir():
            raise Error(f"{path}: there is no such folder; make it first")
    ids = speed.choose_tokens(arguments.model, arguments.prompt, arguments.tokens)
    peer_python, peer = _find_peer(arguments.peer_python)
    request = compare.Request(
        str(arguments.model),
        *ids,
        context=arguments.prompt + arguments.tokens,
        threads=arguments.threads,
        kv_type=arguments.kv_type,
        io=arguments.io,
        cache=arguments.cache,
        prefetch=arguments.prefetch,
        ram_budget=arguments.ram_budget,
        warm_up=arguments.start == "warm",
        passes=2 if arguments.start is None else 1,
        repack=False,
        watch_disk=arguments.watch,
    )
    if not limits.CAN_DROP:
        warn("The page cache cannot be dropped here: cold runs find in it what was left there.")
    command = command_line("python -m q4run.bench.measure.streaming", words)
    report = Report(arguments.model.name, date.today(), command, peer, arguments.runs)
    for limit in arguments.limit or [None]:
        report.cases += _measure(limit, request, arguments, peer_python, report)
        if arguments.json:
            arguments.json.write_text(json.dumps(json_of(report), indent=1) + "\n")
        if arguments.table:
            arguments.table.write_text(markdown_of(report))


def _measure(
    limit: int | None,
    request: compare.Request,
    arguments: argparse.Namespace,
    peer_python: str | None,
    report: Report,
) -> list[Case]:
    """The cases of one limit, printed as well."""
    enforced = limit is not None and _can_enforce(limit)
    if limit is not None and not enforced:
        warn(
            "UNENFORCED: no memory limit can be made here (it takes Linux and root); q4run keeps to"
            " it by itself, and the page cache helps every program"
        )
    what = "measuring" if limit is None else f"measuring within {format_size(limit)}"
    with Waiting(what) as waiting:
        results = compare.run_in_turn(
            request,
            runs=arguments.runs,
            peer_python=peer_python,
            with_plain=compare.plain(request) != request,
            limit=limit,
            enforce=enforced,
            progress=lambda name, done, total: waiting.update(f"{what}: {name}", done, total),
        )
    cases = []
    for start in ("cold", "warm") if arguments.start is None else (arguments.start,):
        chosen = {
            name: [run for run in runs if run["start"] == start] for name, runs in results.items()
        }
        cases.append(Case(limit, enforced, start, chosen))
        console().print(table_of(report, cases[-1]))
    return cases


def _can_enforce(limit: int) -> bool:
    try:
        with limits.memory_cgroup(limit):
            return True
    except Error:
        return False


def _find_peer(python: str | None) -> tuple[str | None, str]:
    """The Python that runs llama.cpp and what it says it has; none where none was asked for and
    the one that runs q4run has it not."""
    try:
        return python or sys.executable, compare.check_peer(python or sys.executable)
    except Error:
        if python:
            raise
        warn("Without llama.cpp: name a Python that has llama-cpp-python with --peer-python.")
        return None, ""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m q4run.bench.measure.streaming",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL")
    add("--limit", type=size, action="append", metavar="SIZE", help="may be given several times")
    add("--runs", type=count, default=3, metavar="N", help="of each program; medians are told")
    add("--prompt", type=count, default=512, metavar="TOKENS")
    add("--tokens", type=count, default=32, metavar="TOKENS", help="to decode")
    add("--peer-python", metavar="PATH", help="a Python that has llama-cpp-python")
    add("--threads", type=count, metavar="N", help="of every program")
    add("--io", choices=["auto", *METHODS], default="auto", help="of q4run, not of the plain way")
    add("--cache", choices=list(POLICIES), default=DEFAULT_CACHE, help="likewise")
    add("--prefetch", choices=PREFETCH, default=DEFAULT_PREFETCH, help="likewise")
    add("--kv-type", choices=kind_names(), default="f16")
    add("--ram-budget", type=size, metavar="SIZE", help="not given: what --limit leaves")
    start = parser.add_mutually_exclusive_group()
    for name, text in (("cold", "what a fresh process does"), ("warm", "the second time alone")):
        start.add_argument(f"--{name}", dest="start", action="store_const", const=name, help=text)
    add("--no-watch", dest="watch", action="store_false", help="do not look at the disk meanwhile")
    add("--json", type=Path, metavar="FILE", help="write every figure of every run")
    add("--table", type=Path, metavar="FILE.md", help="write the tables, as Markdown")
    return parser


if __name__ == "__main__":
    with ending_cleanly():  # no process and no cgroup is to be left behind
        main()
