"""Conversion beside llama.cpp's quantiser: the same bf16 GGUF, the same types, the same threads.

    python -m q4run.bench.convert_speed FOLDER --types q8_0,q4_0 --threads 2

Makes a bf16 GGUF of a small Scout in FOLDER (kept, and used again). Each side quantises it in a
process of its own, by turns, every matrix to the one type; the file is in the page cache before.
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
from dataclasses import replace
from pathlib import Path

from rich.table import Table

from q4run.bench.arguments import count
from q4run.bench.geometries import GEOMETRIES
from q4run.bench.report import console, number
from q4run.bench.synthetic import write_model
from q4run.cores import choose_threads
from q4run.errors import Error

LLAMA_CPP = """
import sys
import llama_cpp
source, out, type_name, n_threads = sys.argv[1:]
names = {"q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "q2_k": 10, "q3_k": 12,
         "q4_k": 15, "q5_k": 17, "q6_k": 18, "iq4_nl": 25, "iq4_xs": 30, "f16": 1, "bf16": 32,
         "tq1_0": 36, "tq2_0": 37}
parameters = llama_cpp.llama_model_quantize_default_params()
parameters.nthread = int(n_threads)
parameters.ftype = names[type_name]
parameters.pure = True
status = llama_cpp.llama_model_quantize(source.encode(), out.encode(), parameters)
sys.exit(status)
"""


def _measure(command: list[str], out: Path) -> tuple[float, float]:
    """Seconds on the wall, and of all processors together."""
    out.unlink(missing_ok=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    result = subprocess.run(command, capture_output=True, text=True)
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if result.returncode:
        raise Error(f"{' '.join(command[:4])} failed: {result.stderr.strip()[-500:]}")
    out.unlink()
    worked = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, worked


def run(arguments: argparse.Namespace) -> None:
    """Prints the table."""
    source = arguments.folder / f"small-{arguments.experts}-bf16.gguf"
    out = arguments.folder / "out.gguf"
    arguments.folder.mkdir(parents=True, exist_ok=True)
    if not source.exists():
        geometry = replace(GEOMETRIES["small-scout"], n_layers=4, n_expert=arguments.experts)
        write_model(source, geometry, "bf16")
    n_bytes = source.stat().st_size
    with source.open("rb") as file:
        while file.read(1 << 24):
            pass
    table = Table(title=f"{source.name}, {n_bytes / 1e9:.2f} GB, {arguments.threads} threads")
    for heading in ("type", "by", "seconds", "processor seconds", "GB/s", "times llama.cpp"):
        table.add_column(heading, justify="left" if heading in ("type", "by") else "right")
    for type_name in arguments.types.split(","):
        ours = [sys.executable, "-m", "q4run", "convert", str(source), str(out)]
        ours += ["--type", type_name, "--threads", str(arguments.threads)]
        theirs = [sys.executable, "-c", LLAMA_CPP, str(source), str(out), type_name]
        theirs += [str(arguments.threads)]
        _measure(ours, out)  # compiles what this machine has not compiled yet
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
    parser.add_argument("--runs", type=count, default=3, metavar="N")
    parser.add_argument("--experts", type=count, default=8, metavar="N", help="more: a larger file")
    try:
        run(parser.parse_args())
    except (Error, OSError) as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
