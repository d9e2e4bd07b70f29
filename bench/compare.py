"""q4run and llama.cpp on the same file, in turn, each run in a process of its own.

Both get the same tokens, the same number of threads, the same context and the same type of keys
and values. Without a limit things are warm: an uncounted run comes first, and llama.cpp repacks the
weights, its default. Under a limit everything is cold: the page cache is dropped before each run,
and llama.cpp runs from its memory map, since repacking would copy the model into memory.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace

from q4run.bench import llama_cpp_speed
from q4run.bench.figures import Figures
from q4run.bench.limits import drop_from_page_cache, inside, memory_cgroup
from q4run.budget import INTERPRETER_ALLOWANCE
from q4run.errors import Error
from q4run.gguf_file import open_gguf
from q4run.memory import format_size

Q4RUN = "q4run"
LLAMA_CPP = "llama.cpp"
# Of what the limit leaves beside the allowance; the rest is for the page cache.
_BUDGET_SHARE = 0.98

# Hears of the program that runs now, of the runs done, and of all.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Request:
    """What one run is to do; its JSON is the standard input of the process that does it."""

    model: str
    prompt: list[int]
    continuation: list[int]
    context: int
    threads: int | None = None
    kv_type: str = "f16"
    io: str = "auto"
    cache: str = "layers"
    ram_budget: str | int | None = None
    warm_up: bool = True


def run_in_turn(
    request: Request,
    *,
    runs: int,
    peer_python: str | None = None,
    limit: int | None = None,
    progress: Progress | None = None,
) -> dict[str, list[Figures]]:
    """The figures of every run: those of Q4RUN and, with ``peer_python``, of LLAMA_CPP.

    peer_python: a Python that has llama-cpp-python (``check_peer``). limit: bytes of memory that
    each process gets, page cache included (Linux, as root). Raises Error where a run fails.
    """
    programs = {Q4RUN: [sys.executable, "-P", "-m", "q4run.bench.speed"]}
    if peer_python:
        programs[LLAMA_CPP] = [peer_python, llama_cpp_speed.__file__]
    if limit is not None:
        request = _within(limit, request)
    results: dict[str, list[Figures]] = {name: [] for name in programs}
    with memory_cgroup(limit) if limit is not None else nullcontext() as group:
        for run in range(runs):
            for i, (name, command) in enumerate(programs.items()):
                if progress:
                    progress(name, run * len(programs) + i, runs * len(programs))
                if group is not None:
                    for part in open_gguf(request.model).parts:
                        drop_from_page_cache(part)
                    command = inside(group, command)
                figures = _run(name, command, request)
                results[name].append(figures)
                # The peer gets what q4run chose, and its later runs the same.
                request = replace(request, threads=figures["threads"])
    return results


def _within(limit: int, request: Request) -> Request:
    if limit <= INTERPRETER_ALLOWANCE:
        raise Error(
            f"a limit of {format_size(limit)} is less than what Python alone takes; give more than"
            f" {format_size(INTERPRETER_ALLOWANCE)}"
        )
    budget = int((limit - INTERPRETER_ALLOWANCE) * _BUDGET_SHARE)
    return replace(request, warm_up=False, ram_budget=request.ram_budget or budget)


def _run(name: str, command: list[str], request: Request) -> Figures:
    done = subprocess.run(
        command, input=json.dumps(asdict(request)), capture_output=True, text=True, check=False
    )
    if done.returncode == -signal.SIGKILL:
        raise Error(
            f"a run of {name} was killed: most likely it wanted more memory than it may have"
        )
    if done.returncode:
        last_words = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        raise Error(f"a run of {name} ended with status {done.returncode}: {''.join(last_words)}")
    try:
        figures: Figures = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        raise Error(f"a run of {name} printed no figures: is {command[0]} a Python?") from None
    if "error" in figures:
        raise Error(figures["error"])
    return figures


def check_peer(python: str) -> None:
    """Raises Error where ``python`` cannot run llama.cpp."""
    try:
        command = [python, "-c", "import llama_cpp"]
        able = not subprocess.run(command, capture_output=True, check=False).returncode
    except OSError:
        able = False
    if not able:
        raise Error(
            f"{python} cannot import llama_cpp: install llama-cpp-python, which q4run's [bench]"
            " extra brings along, or name a Python that has it with --peer-python"
        )
