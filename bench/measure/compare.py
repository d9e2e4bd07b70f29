"""q4run and llama.cpp on the same file, in turn, each run in a process of its own.

Both get the same tokens, the same number of threads, the same context and the same type of keys
and values. Under a limit, and where a cold start is asked for, the page cache is dropped before
each process begins. Under a limit llama.cpp runs from its memory map, since repacking the weights,
its default, would copy the model into memory.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import psutil

from q4run.bench.figures.figures import Figures
from q4run.bench.measure.limits import drop_from_page_cache, inside, memory_cgroup
from q4run.bench.measure.recording import Recording
from q4run.bench.peer import llama_cpp_speed
from q4run.budget import INTERPRETER_ALLOWANCE
from q4run.errors import Error
from q4run.gguf_file import open_gguf
from q4run.loading import prepare_kernels
from q4run.machine.cores import choose_threads
from q4run.sizes import format_size

Q4RUN = "q4run"
PLAIN = "q4run, pread + LRU"
LLAMA_CPP = "llama.cpp"
# Of what the limit leaves beside the allowance; the rest is for the page cache.
_BUDGET_SHARE = 0.98
# For a killed process to give its memory back.
_PATIENCE_S = 30.0

# Hears of the program or the stage that runs now, of what of it is over, and of all.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Request:
    """What one process is to do; its JSON is the standard input of the process that does it.

    passes: how often prompt and continuation run and count; with ``warm_up`` they run once before
    that, else the first is cold. repack: whether llama.cpp may. watch_disk: whether q4run looks,
    while it waits for the disk, if that works.
    """

    model: str
    prompt: list[int]
    continuation: list[int]
    context: int
    threads: int | None = None
    kv_type: str = "f16"
    io: str = "auto"
    cache: str = "layers"
    prefetch: str = "auto"
    ram_budget: str | int | None = None
    warm_up: bool = True
    passes: int = 1
    repack: bool = True
    watch_disk: bool = True


def compile_kernels(request: Request, progress: Progress | None = None) -> None:
    """Compiles what a run will take, the first time on a machine, so that no run's time has it."""
    threads = choose_threads(request.threads)
    prepare_kernels(open_gguf(request.model), request.kv_type, threads, progress)


def run_in_turn(
    request: Request,
    *,
    runs: int,
    peer_python: str | None = None,
    with_plain: bool = False,
    limit: int | None = None,
    enforce: bool = True,
    progress: Progress | None = None,
) -> dict[str, list[Figures]]:
    """The figures of every pass of every run, by program: Q4RUN, with ``with_plain`` PLAIN,
    and with ``peer_python`` LLAMA_CPP.

    peer_python: a Python that has llama-cpp-python (``check_peer``). limit: bytes of memory that
    each process gets, page cache included (Linux, as root); without ``enforce`` q4run is only told
    to get along with so much. Raises Error where a run fails. No process outlives an exception.
    """
    if limit is not None:
        request = _within(limit, request)
    ours = [sys.executable, "-P", "-m", "q4run.bench.measure.speed"]
    programs = {Q4RUN: ours}
    if with_plain:
        programs[PLAIN] = ours
    if peer_python:
        programs[LLAMA_CPP] = [peer_python, llama_cpp_speed.__file__]
    is_cold = limit is not None or not request.warm_up
    results: dict[str, list[Figures]] = {name: [] for name in programs}
    with memory_cgroup(limit) if limit is not None and enforce else nullcontext() as group:
        for run in range(runs):
            # There and back: what one leaves behind, it leaves to all.
            in_turn = list(programs.items())[:: -1 if run % 2 else 1]
            for i, (name, command) in enumerate(in_turn):
                if progress:
                    progress(name, run * len(programs) + i, runs * len(programs))
                for part in open_gguf(request.model).parts if is_cold else ():
                    drop_from_page_cache(part)
                if group is not None:
                    command = inside(group, command)
                figures = _run(name, command, plain(request) if name == PLAIN else request)
                results[name] += figures
                # The peer gets what q4run chose, and its later runs the same.
                request = replace(request, threads=figures[0]["threads"])
    return results


def record(request: Request, limit: int | None = None) -> Recording:
    """One recorded pass of q4run, in a process of its own: warm if ``request.warm_up``, else cold.

    limit: as of ``run_in_turn``. Raises Error where it fails.
    """
    if limit is not None:
        request = _within(limit, request)
    with memory_cgroup(limit) if limit is not None else nullcontext() as group:
        for part in () if request.warm_up else open_gguf(request.model).parts:
            drop_from_page_cache(part)
        command = [sys.executable, "-P", "-m", "q4run.bench.measure.recording"]
        if group is not None:
            command = inside(group, command)
        printed = _answer(Q4RUN, command, request)
    if not isinstance(printed, dict):
        raise Error(f"a run of {Q4RUN} printed no recording: is {command[0]} a Python?")
    return Recording.from_json(printed)


def plain(request: Request) -> Request:
    """The same without what is clever: buffered reads, the least recently used leaves, and nothing
    is guessed."""
    return replace(request, io="pread", cache="lru", prefetch="never")


def _within(limit: int, request: Request) -> Request:
    if limit <= INTERPRETER_ALLOWANCE:
        raise Error(
            f"a limit of {format_size(limit)} is less than what Python alone takes; give more than"
            f" {format_size(INTERPRETER_ALLOWANCE)}"
        )
    budget = int((limit - INTERPRETER_ALLOWANCE) * _BUDGET_SHARE)
    return replace(request, repack=False, ram_budget=request.ram_budget or budget)


def _run(name: str, command: list[str], request: Request) -> list[Figures]:
    """The figures of each pass."""
    printed = _answer(name, command, request)
    if not isinstance(printed, list):
        raise Error(f"a run of {name} printed no figures: is {command[0]} a Python?")
    return printed


def _answer(name: str, command: list[str], request: Request) -> Any:
    """What a process says to a request, from JSON; None where that is none."""
    status, output, complaints = _communicate(command, json.dumps(asdict(request)))
    if status == -signal.SIGKILL:
        raise Error(
            f"a run of {name} was killed: most likely it wanted more memory than it may have"
        )
    if status:
        last_words = [line for line in complaints.splitlines() if line.strip()][-1:]
        raise Error(f"a run of {name} ended with status {status}: {''.join(last_words)}")
    try:
        printed = json.loads(output.splitlines()[-1])
    except (IndexError, ValueError):
        printed = None
    if isinstance(printed, dict) and "error" in printed:
        raise Error(printed["error"])
    return printed


def _communicate(command: list[str], text: str) -> tuple[int, str, str]:
    """Status, standard output and standard error of a command, which ends with any exception."""
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            output, complaints = process.communicate(text)
        except BaseException:
            _kill(process)
            raise
    return process.returncode, output, complaints


def _kill(process: subprocess.Popen[str]) -> None:
    """Ends a process and what it has started, as a script around a program does; waits for them."""
    with suppress(psutil.Error):
        family = [psutil.Process(process.pid)]
        family += family[0].children(recursive=True)
        for member in family:
            with suppress(psutil.Error):
                member.kill()
        psutil.wait_procs(family, timeout=_PATIENCE_S)
    process.wait(_PATIENCE_S)


def check_peer(python: str) -> str:
    """What of llama.cpp ``python`` has; raises Error where it cannot run it."""
    code = "import llama_cpp; print('llama-cpp-python', llama_cpp.__version__)"
    try:
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=False)
        if not done.returncode:
            return done.stdout.strip()
    except OSError:
        pass
    raise Error(
        f"{python} cannot import llama_cpp: install llama-cpp-python, which q4run's [bench]"
        " extra brings along, or name a Python that has it with --peer-python"
    )
