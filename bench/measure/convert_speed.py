"""Conversion beside llama.cpp's quantiser: the same bf16 GGUF, the same types, the same threads.

    python -m q4run.bench.measure.convert_speed FOLDER --types q8_0,q4_0 --threads 2 [--peer-python
    PATH]

Makes a bf16 GGUF of a small Scout in FOLDER (kept, and used again). Each side quantises it in a
process of its own, by turns, each tensor to the same type as the other side; llama.cpp's is one of
the Python of --peer-python, which has llama-cpp-python. The file is in the page cache before.
GB/s are of the source. A process's start, q4run's and llama.cpp's, counts with it; what q4run
compiles once per machine does not. Where the machine does other work beside, processor seconds say
more than those on the wall.
"""

import argparse
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from rich.table import Table

from q4run.bench.figures.arguments import count
from q4run.bench.figures.tables import console, number
from q4run.bench.measure import compare
from q4run.bench.models.geometries import GEOMETRIES
from q4run.bench.models.synthetic import write_model
from q4run.bench.peer.llama_cpp_files import (
    quantize_with_llama_cpp,
    types_of,
)
from q4run.errors import Error
from q4run.machine.cores import choose_threads
from q4run.machine.interrupts import ending_cleanly


def _measure(quantize: Callable[[], object], out: Path) -> tuple[float, float]:
    """Seconds on the wall, and of all processors together; ``out`` is deleted before and after."""
    out.unlink(missing_ok=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    quantize()
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    out.unlink()
    worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, worked


def _convert(source: Path, out: Path, type_name: str, threads: int) -> None:
    """By q4run, in a process of its own."""
    command = [sys.executable, "-m", "q4run", "convert", str(source), str(out), "--force"]
    command += ["--type", type_name, "--threads", str(threads)]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise Error(f"{' '.join(command[:4])} failed: {result.stderr.strip()[-500:]}")


def _make_source(source: Path, n_expert: int) -> None:
    """A bf16 GGUF with random weights."""
    geometry = replace(GEOMETRIES["small-scout"], n_layers=4, n_expert=n_expert)
    whole = source.with_suffix(".partial")
    try:
        write_model(whole, geometry, "bf16")
        whole.rename(source)
    finally:
        whole.unlink(missing_ok=True)


def run(arguments: argparse.Namespace) -> None:
    """Prints the table."""
    compare.check_peer(arguments.peer_python)
    source = arguments.folder / f"small-{arguments.experts}-bf16-plain.gguf"
    out = arguments.folder / "out.gguf"
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if not source.exists():
        _make_source(source, arguments.experts)
    n_bytes = source.stat().st_size
    with source.open("rb") as file:
        while file.read(1 << 24):
            pass
    table = Table(title=f"{source.name}, {n_bytes / 1e9:.2f} GB, {arguments.threads} threads")
    for heading in ("type", "by", "seconds", "processor seconds", "GB/s", "times llama.cpp"):
        table.add_column(heading, justify="left" if heading in ("type", "by") else "right")
    for type_name in arguments.types.split(","):
        ours = partial(_convert, source, out, type_name, arguments.threads)
        ours()  # compiles what this machine has not compiled yet
        theirs = partial(
            quantize_with_llama_cpp,
            arguments.peer_python,
            source,
            out,
            type_name,
            types_of(out),
            threads=arguments.threads,
        )
        pairs = [(_measure(ours, out), _measure(theirs, out)) for _ in range(arguments.runs)]
        own, other = ([pair[side] for pair in pairs] for side in (0, 1))
        baseline = statistics.median(seconds for seconds, _ in other)
        for by, runs in (("q4run", own), ("llama.cpp", other)):
            seconds, worked = (statistics.median(column) for column in zip(*runs, strict=True))
            rate = f"{n_bytes / seconds / 1e9:.2f}"
            faster = number(baseline / seconds) if by == "q4run" else ""
            table.add_row(type_name, by, f"{seconds:.2f}", f"{worked:.2f}", rate, faster)
    console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="for the model and outputs")
    parser.add_argument("--types", default="q8_0,q4_0", metavar="T,T")
    parser.add_argument("--threads", type=count, default=choose_threads(None), metavar="N")
    parser.add_argument("--peer-python", default=sys.executable, metavar="PATH")
    parser.add_argument("--runs", type=count, default=3, metavar="N")
    parser.add_argument("--experts", type=count, default=8, metavar="N", help="more: a larger file")
    try:
        run(parser.parse_args())
    except (Error, OSError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    with ending_cleanly():  # no process is to be left behind
        main()
