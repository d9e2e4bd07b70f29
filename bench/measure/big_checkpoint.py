"""A checkpoint far larger than the memory that converting it may take, interrupted and resumed.

    python -m q4run.bench.measure.big_checkpoint FOLDER --size 20G --max-ram 2G [--json FILE]

Makes the checkpoint in FOLDER (kept, and used again), converts it in one go, then once more with
--resume while it is killed, or interrupted as by Ctrl-C, at random points. Prints what each run
took, and fails unless every peak of resident memory is below 1.15 times --max-ram and both outputs
are the same bytes.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table

from q4run.bench.figures.arguments import count, size
from q4run.bench.figures.provenance import command_line, provenance
from q4run.bench.figures.tables import console
from q4run.bench.models.checkpoints import write_checkpoint
from q4run.errors import Error
from q4run.kernels.formats import find_format_named
from q4run.machine.interrupts import ending_cleanly
from q4run.machine.memory import peak_rss_of
from q4run.sizes import format_size

# Allocators keep a little, and the kernel counts pages a moment late.
ALLOWED_OVER = 1.15
SIGNALS = (signal.SIGKILL, signal.SIGINT, signal.SIGKILL)
# A signal in the first or last moments would meet a run that has not begun or is done.
SHARES = (0.05, 0.95)


@dataclass(frozen=True)
class Run:
    """One process: how it ended, how long it took, its peak of resident memory in bytes, and how
    much of the output was there when it began and ended."""

    end: str
    seconds: float
    peak: int
    before: int
    after: int


@dataclass(frozen=True)
class Stop:
    """The signal to send once so many bytes are written."""

    number: signal.Signals
    n_bytes: int


def convert(source: Path, out: Path, arguments: argparse.Namespace, stop: Stop | None) -> Run:
    """One conversion with --resume, stopped where ``stop`` says. Raises Error if it fails."""
    command = [sys.executable, "-m", "q4run", "convert", str(source), str(out)]
    command += ["--type", arguments.type, "--max-ram", str(arguments.max_ram), "--resume", "--json"]
    before = _written(out)
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        end, seen = "to the end", 0
        try:
            while not _has_ended(process.pid):
                seen = max(seen, peak_rss_of(process.pid) or 0)
                if stop is not None and end == "to the end" and _written(out) >= stop.n_bytes:
                    process.send_signal(stop.number)
                    end = f"{stop.number.name} at {format_size(stop.n_bytes)}"
                time.sleep(0.02)
        except BaseException:
            process.kill()
            raise
        assert process.stderr is not None
        message = process.stderr.read().decode()
        # Of this child alone: what other children took does not count.
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in ((0,) if stop is None else (0, -stop.number, 128 + stop.number)):
        raise Error(f"convert failed ({process.returncode}): {message.strip()[-500:]}")
    # Where the child's own peak can be seen: what the parent held counts in Linux's usage.
    peak = seen or usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Run(end, time.monotonic() - started, peak, before, _written(out))


def _has_ended(pid: int) -> bool:
    """Without taking its status: that is left for ``wait4``, which tells its memory too."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _written(out: Path) -> int:
    for path in (out, out.with_name(f".{out.name}.partial")):
        with suppress(FileNotFoundError):  # the one becomes the other at the end
            return path.stat().st_size
    return 0


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _planned_size(source: Path, out: Path, arguments: argparse.Namespace) -> int:
    command = [sys.executable, "-m", "q4run", "convert", str(source), str(out)]
    command += ["--type", arguments.type, "--dry-run", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(json.loads(result.stdout)["size_after"])


def _prepare(folder: Path, n_bytes: int, type_name: str) -> int:
    """The checkpoint's size; it is made unless it is there, of the same size."""
    made = folder / "made.json"
    if made.exists() and json.loads(made.read_text())["asked"] == n_bytes:
        return int(json.loads(made.read_text())["n_bytes"])
    made.unlink(missing_ok=True)
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    # Beside the source stands one output at a time.
    fmt = find_format_named(type_name)
    output_share = (fmt.bits_per_weight if fmt is not None else 32) / 16
    needed = n_bytes * (1 + 1.05 * output_share)
    if free < needed:
        raise Error(
            f"{folder}: {format_size(free)} are free, but this takes {format_size(needed)}: make "
            "room, or give a smaller --size"
        )
    written = write_checkpoint(folder, n_bytes)
    made.write_text(json.dumps({"asked": n_bytes, "n_bytes": written}))
    return written


def run(arguments: argparse.Namespace) -> bool:
    """Prints the table; whether memory was kept and the outputs are the same."""
    source = arguments.folder / "checkpoint"
    n_source = _prepare(source, arguments.size, arguments.type)
    out = arguments.folder / "model.gguf"
    for left in arguments.folder.glob("*model.gguf*"):
        left.unlink()
    n_out = _planned_size(source, out, arguments)

    whole = convert(source, out, arguments, None)
    expected = _digest(out)
    out.unlink()
    numbers = random.Random(arguments.seed)
    points = sorted(numbers.uniform(*SHARES) for _ in range(arguments.stops))
    stops = [Stop(SIGNALS[n % len(SIGNALS)], int(share * n_out)) for n, share in enumerate(points)]
    runs = [whole]
    for stop in (*stops, None):
        # A run that came to its end before it was stopped has left nothing to resume.
        out.unlink(missing_ok=True)
        runs.append(convert(source, out, arguments, stop))
    same = _digest(out) == expected
    out.unlink()

    table = Table(
        title=f"{format_size(n_source)} of bf16 to {arguments.type}", title_justify="left"
    )
    for heading in ("run", "seconds", "written", "kept before", "peak memory", "of --max-ram"):
        table.add_column(heading, justify="left" if heading == "run" else "right")
    for taken in runs:
        table.add_row(
            taken.end,
            f"{taken.seconds:.1f}",
            format_size(taken.after - taken.before),
            format_size(taken.before),
            format_size(taken.peak),
            f"{taken.peak / arguments.max_ram:.2f}",
        )
    console().print(table)
    rate = n_source / whole.seconds
    console().print(f"in one go: {format_size(rate)} of the checkpoint a second")
    console().print(
        f"resumed and uninterrupted output: {'the same' if same else 'DIFFERENT'} bytes"
    )
    if arguments.json:
        content = provenance(
            command_line("python -m q4run.bench.measure.big_checkpoint", sys.argv[1:])
        )
        content |= {"checkpoint_bytes": n_source, "type": arguments.type, "same_bytes": same}
        content |= {"max_ram": arguments.max_ram, "runs": [asdict(taken) for taken in runs]}
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    kept = all(taken.peak < ALLOWED_OVER * arguments.max_ram for taken in runs)
    if not kept:
        console().print(f"peak memory: ABOVE {format_size(ALLOWED_OVER * arguments.max_ram)}")
    return same and kept


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="for checkpoint and output")
    parser.add_argument("--size", type=size, default="20G", metavar="SIZE")
    parser.add_argument("--max-ram", type=size, default="2G", metavar="SIZE")
    parser.add_argument("--type", default="q4_0", metavar="T")
    parser.add_argument("--stops", type=count, default=3, metavar="N", help="how many signals")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of where they come")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what each run took")
    try:
        sound = run(parser.parse_args())
    except (Error, OSError) as error:
        raise SystemExit(f"error: {error}") from None
    raise SystemExit(0 if sound else 1)


if __name__ == "__main__":
    with ending_cleanly():  # no process is to be left behind
        main()
