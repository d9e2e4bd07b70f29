"""q4run and llama.cpp on the same file, in turn, each in a process of its own.

    python -m q4run.bench.versus_llama_cpp scout-slice.gguf --limit 3G --runs 3

Prompt and decoding speed over the same tokens, and peak memory. With ``--limit`` both run inside a
memory cgroup of that size, page cache included (Linux, as root; give the same disk to both). There
llama.cpp runs from its memory map: repacking the weights, its default, would copy the model into
memory and be killed. Without ``--limit`` everything is in RAM and warm, and llama.cpp repacks.
Needs llama-cpp-python (the [bench] extra).
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

from q4run.budget import INTERPRETER_ALLOWANCE
from q4run.memory import format_size, parse_size

PROMPT = [1, *range(300, 812)]
N_DECODE = 32
CONTEXT = 1024

_Q4RUN = """
import json, q4run
options = dict(ram_budget={budget}, io={io!r}, threads={threads}, context={context})
with q4run.load({path!r}, **options) as m:
    if {warm}:
        m.session.feed({prompt})
        m.session.clear()
    before = m.stats
    m.session.feed({prompt})
    prompt = m.stats - before
    before = m.stats
    for token in range({n}):
        m.session.step(900 + token)
    decode = m.stats - before
    print(json.dumps(dict(prefill=prompt.prompt_tokens / prompt.prompt_s,
                          decode=decode.tokens / decode.decode_s,
                          read=decode.bytes_read / decode.tokens, peak=m.stats.peak_rss)))
"""
_LLAMA_CPP = """
import json, resource, time
import llama_cpp.llama
defaults = llama_cpp.llama_model_default_params
def without_repacking():
    parameters = defaults()
    parameters.use_extra_bufts = {warm}
    return parameters
llama_cpp.llama.llama_cpp.llama_model_default_params = without_repacking
m = llama_cpp.Llama({path!r}, n_ctx={context}, n_batch=512, n_threads={threads},
                    n_threads_batch={threads}, verbose=False)
if {warm}:
    m.eval({prompt})
    m.reset()
t0 = time.perf_counter()
m.eval({prompt})
t1 = time.perf_counter()
for token in range({n}):
    m.eval([900 + token])
t2 = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
prefill, decode = {n_prompt} / (t1 - t0), {n} / (t2 - t1)
print(json.dumps(dict(prefill=prefill, decode=decode, read=None, peak=peak)))
"""


def measure(program: str, python: str, cgroup: Path | None, **values: object) -> dict[str, float]:
    """Runs one program once; the figures it printed, or what it died of as an exception."""

    def enter() -> None:
        if cgroup:
            (cgroup / "cgroup.procs").write_text(str(os.getpid()))

    if cgroup:
        drop_from_page_cache(Path(str(values["path"])))
    values |= {"prompt": PROMPT, "n_prompt": len(PROMPT), "n": N_DECODE, "context": CONTEXT}
    done = subprocess.run(
        [python, "-c", program.format(**values)],
        preexec_fn=enter,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"a run ended with {done.returncode}:\n{done.stderr[-2000:]}")
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def drop_from_page_cache(path: Path) -> None:
    """Pages that are cached already count for whoever read them first, not inside the limit."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def make_cgroup(limit: int) -> Path:
    """A memory cgroup (v1 or v2) with that limit."""
    for parent, file in (
        ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
        ("/sys/fs/cgroup", "memory.max"),
    ):
        group = Path(parent) / f"q4run-bench-{os.getpid()}"
        try:
            group.mkdir()
            (group / file).write_text(str(limit))
        except OSError:
            continue
        return group
    raise SystemExit("no memory cgroup can be made here: run as root on Linux, or without --limit")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--limit", type=parse_size, help="memory of each process, such as 3G")
    parser.add_argument("--io", default="auto")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--peer-python", default=sys.executable, help="that has llama_cpp")
    arguments = parser.parse_args()

    cgroup = make_cgroup(arguments.limit) if arguments.limit else None
    # Some room is left to the page cache: reads go through it.
    budget = int((arguments.limit - INTERPRETER_ALLOWANCE) * 0.98) if cgroup else None
    values = {
        "path": str(arguments.model),
        "budget": budget,
        "io": arguments.io,
        "threads": arguments.threads,
        "warm": cgroup is None,
    }
    runs: dict[str, list[dict[str, float]]] = {"q4run": [], "llama.cpp": []}
    try:
        for _ in range(arguments.runs):
            runs["q4run"].append(measure(_Q4RUN, sys.executable, cgroup, **values))
            runs["llama.cpp"].append(measure(_LLAMA_CPP, arguments.peer_python, cgroup, **values))
    finally:
        if cgroup:
            cgroup.rmdir()
    for name, figures in runs.items():
        prefill = statistics.median(figure["prefill"] for figure in figures)
        decode = statistics.median(figure["decode"] for figure in figures)
        peak = max(figure["peak"] for figure in figures)
        read = figures[0]["read"]
        bytes_read = f", {format_size(read)} read per token" if read else ""
        print(
            f"{name}: prompt {prefill:.1f} tok/s, decode {decode:.2f} tok/s,"
            f" peak {format_size(peak)}{bytes_read}"
        )
    for what in ("prefill", "decode"):
        ratios = sorted(
            ours[what] / theirs[what]
            for ours, theirs in zip(runs["q4run"], runs["llama.cpp"], strict=True)
        )
        print(f"{what}, q4run over llama.cpp: {ratios[0]:.2f} to {ratios[-1]:.2f}")


if __name__ == "__main__":
    main()
