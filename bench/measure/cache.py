"""What an expert cache would do: a trace replayed against every policy, budget and disk speed.

    python -m q4run.bench.measure.cache [TRACE...] [--chunk 128] [--budgets 0.1 0.25 0.5]
                                [--expert-mb 70.8] [--disk-gb-s 1 3 7] [--plot FILE.png]

Traces are those of ``q4run run --trace``, NumPy arrays (layers, tokens) of one expert each, or
names of what comes with the bench: ``tiny-llama4``, recorded on a trained model (bench/recorded),
and the generated ``slice`` and ``scout`` (Scout's shape, 6 and 48 layers, even routing) and
``skewed``; without any, all four. ``--chunk N`` regroups tokens into passes of N, as prompts run. A
budget is the share of all experts that fit. A hit is an expert that a pass finds in RAM when its
layer asks for it, counted from an empty cache; a pass of many tokens wants an expert once.

Beside the policies of ``q4run.experts.policies`` stand two limits:

- ``optimal``: Belady's: what is needed soonest is kept, known from the trace's future, and an
  expert may pass through without being kept. No policy can hit more.
- ``even``: the floor where nothing is known of the future and all experts are as likely: the share
  of them that fits, since each slot is good for one chance a pass. The floor in bytes is what the
  others weigh. Skew, reuse and the order of layers are what lets a policy do better.

``one token`` is what a token's experts weigh, the most it can have to read. A cache smaller than
that is below the one-token floor of LRU, which then hits nothing, not even repeats.
"""

from __future__ import annotations

import argparse
import heapq
import math
import sys
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from rich.console import Console
from rich.table import Table

from q4run.bench.figures.arguments import count, positive, share
from q4run.bench.models.traces import Trace, in_chunks, made_trace, read_trace
from q4run.errors import Error
from q4run.experts.policies import POLICIES, Key, Policy

OPTIMAL = "optimal"
EVEN = "even"
# Llama 4 Scout's experts, 3 matrices of 5120 x 8192, in q4_0.
_SCOUT_EXPERT_MB = 70.8


@dataclass(frozen=True)
class Result:
    """``hit_rate`` and ``misses_per_token`` of one policy with slots for ``n_slots`` experts."""

    policy: str
    budget: float
    n_slots: int
    hit_rate: float
    misses_per_token: float


def count_hits(trace: Trace, policy: Policy, n_slots: int, in_flight: int) -> int:
    """How often a wanted expert is in one of ``n_slots`` slots, as an ExpertStore uses them.

    What is in RAM is held until it has been computed with; of the others at most ``in_flight`` at
    a time are read, into free slots or those of the policy's victims, and held likewise.
    """
    hits = 0
    resident: set[Key] = set()
    for one in trace.passes:
        for layer, experts in zip(trace.layers, one.experts, strict=True):
            policy.use(layer, experts)
            keys = [(layer, expert) for expert in experts]
            held = {key for key in keys if key in resident}
            hits += len(held)
            missing = deque(key for key in keys if key not in held)
            reading: deque[Key] = deque()
            is_first = True
            while missing or reading:
                while missing and len(reading) < in_flight:
                    if len(resident) == n_slots:
                        if (victim := policy.victim(held)) is None:
                            break
                        policy.remove(victim)
                        resident.remove(victim)
                    key = missing.popleft()
                    policy.add(key)
                    resident.add(key)
                    held.add(key)
                    reading.append(key)
                if is_first:
                    held = set(reading)
                    is_first = False
                else:
                    held.discard(reading.popleft())
    return hits


def optimal_hits(trace: Trace, n_slots: int) -> int:
    """The most hits that any choice could have had with ``n_slots`` slots: an upper bound.

    Keeping an expert from one use to the next is an interval of time with one hit at its end, and
    no moment may have more than ``n_slots``: dropping what is needed last is optimal (L. A. Belady,
    A study of replacement algorithms for a virtual-storage computer, 1966).
    """
    requests = [
        [(layer, expert) for expert in experts]
        for one in trace.passes
        for layer, experts in zip(trace.layers, one.experts, strict=True)
    ]
    later: dict[Key, int] = {}
    next_uses: list[list[int | None]] = []
    for i in reversed(range(len(requests))):
        next_uses.append([later.get(key) for key in requests[i]])
        later.update(dict.fromkeys(requests[i], i))
    hits = 0
    kept: dict[Key, int] = {}  # and when it is needed
    latest: list[tuple[int, Key]] = []  # a heap, last needed first; also of what is no longer kept
    for keys, uses in zip(requests, reversed(next_uses), strict=True):
        for key, next_use in zip(keys, uses, strict=True):
            hits += kept.pop(key, None) is not None
            if next_use is not None:
                kept[key] = next_use
                heapq.heappush(latest, (-next_use, key))
        while len(kept) > n_slots:
            use, key = heapq.heappop(latest)
            if kept.get(key) == -use:
                del kept[key]
    return hits


def measure(trace: Trace, budgets: list[float], in_flight: int) -> list[Result]:
    """Every policy and both limits, budget by budget."""
    n_experts = sum(trace.n_expert)
    n_wanted = sum(len(experts) for one in trace.passes for experts in one.experts)
    n_layer, n_expert = max(trace.layers) + 1, max(trace.n_expert)
    results = []
    for budget in budgets:
        n_slots = max(1, math.floor(budget * n_experts + 1e-9))
        hits: dict[str, float] = {
            name: count_hits(trace, make(n_layer, n_expert), n_slots, in_flight)
            for name, make in POLICIES.items()
        }
        hits[OPTIMAL] = optimal_hits(trace, n_slots)
        hits[EVEN] = n_wanted * min(1.0, n_slots / n_experts)
        results += [
            Result(name, budget, n_slots, n / n_wanted, (n_wanted - n) / trace.n_tokens)
            for name, n in hits.items()
        ]
    return results


def table_of(
    trace: Trace, results: list[Result], expert_gb: float, disk_gb_s: list[float]
) -> Table:
    """Hit rates, GB read per token, and the tokens per second that each disk would allow."""
    per_token = sum(trace.n_used)
    longest = max(one.n_tokens for one in trace.passes)
    caption = (
        f"{sum(trace.n_expert)} experts of {1000 * expert_gb:g} MB;"
        f" one token wants {per_token}, {per_token * expert_gb:.2f} GB"
    )
    title = f"{trace.name}: {trace.n_tokens} tokens, up to {longest} a pass"
    table = Table(title=title, caption=caption)
    for name in ("budget", "GB", "policy", "hit rate", "GB/token"):
        table.add_column(name, justify="left" if name == "policy" else "right")
    for speed in disk_gb_s:
        table.add_column(f"tok/s at {speed:g} GB/s", justify="right")
    for i, result in enumerate(results):
        read = result.misses_per_token * expert_gb
        is_last = i + 1 == len(results) or results[i + 1].budget != result.budget
        table.add_row(
            f"{100 * result.budget:g} %",
            f"{result.n_slots * expert_gb:.2f}",
            result.policy,
            f"{100 * result.hit_rate:.1f} %",
            f"{read:.3f}",
            *(f"{speed / read:.2f}" if read else "no limit" for speed in disk_gb_s),
            end_section=is_last,
        )
    return table


def plot(path: Path, measured: list[tuple[Trace, list[Result]]]) -> None:
    """Hit rate over budget, one picture a trace. Raises Error where it cannot be written."""
    figure = import_module("matplotlib.figure").Figure(
        figsize=(6.0, 4.0 * len(measured)), layout="constrained"
    )
    pictures = figure.subplots(len(measured), squeeze=False)[:, 0]
    for axes, (trace, results) in zip(pictures, measured, strict=True):
        for name in dict.fromkeys(result.policy for result in results):
            points = sorted((r.budget, r.hit_rate) for r in results if r.policy == name)
            style = "--" if name in (OPTIMAL, EVEN) else "o-"
            axes.plot(*([100 * point[i] for point in points] for i in (0, 1)), style, label=name)
        axes.set(title=trace.name, xlabel="budget, % of all experts", ylabel="hit rate, %")
        axes.set_ylim(0, 100)
        axes.legend()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise Error(f"{path}: the plot cannot be written: {error}") from error


def find_trace(name: str) -> Trace:
    """What comes with the bench under a name, or else the file of that name.

    Raises Error where it is no trace or cannot be read.
    """
    return SHIPPED[name]() if name in SHIPPED else read_trace(Path(name))


def _recorded(name: str) -> Trace:
    return replace(read_trace(Path(__file__).parents[1] / "recorded" / f"{name}.npy"), name=name)


SHIPPED: dict[str, Callable[[], Trace]] = {
    "tiny-llama4": partial(_recorded, "tiny-llama4"),
    "slice": partial(made_trace, 6, 16, 1, 3000),
    "scout": partial(made_trace, 48, 16, 1, 500),
    "skewed": partial(made_trace, 12, 128, 8, 300, skew=1.0, reuse=0.3),
}


def main(words: list[str] | None = None) -> None:
    arguments = _parser().parse_args(words)
    try:
        if arguments.plot and find_spec("matplotlib") is None:
            raise Error(
                "--plot needs matplotlib: pip install matplotlib, or q4run with its [plot] extra"
            )
        traces = [find_trace(name) for name in arguments.traces or SHIPPED]
        if arguments.chunk > 1:
            traces = [in_chunks(trace, arguments.chunk) for trace in traces]
        measured = []
        for trace in traces:
            results = measure(trace, sorted(set(arguments.budgets)), arguments.in_flight)
            expert_gb = arguments.expert_mb / 1000
            Console().print(table_of(trace, results, expert_gb, arguments.disk_gb_s))
            measured.append((trace, results))
        if arguments.plot:
            plot(arguments.plot, measured)
    except Error as error:
        sys.exit(f"error: {error}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("traces", nargs="*", metavar="TRACE")
    add("--budgets", nargs="+", type=share, default=[0.1, 0.25, 0.5], metavar="SHARE")
    add("--expert-mb", type=positive, default=_SCOUT_EXPERT_MB, help="size of one expert")
    add("--disk-gb-s", nargs="+", type=positive, default=[1.0, 3.0, 7.0], metavar="SPEED")
    add("--chunk", type=count, default=1, help="tokens of a pass, as in prompts")
    add("--in-flight", type=count, default=4, help="experts read at the same time, at most")
    add("--plot", type=Path, metavar="FILE")
    return parser


if __name__ == "__main__":
    main()
