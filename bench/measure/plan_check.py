"""What ``q4run plan`` foretells, beside what then happens.

    python -m q4run.bench.measure.plan_check MODEL:BUDGET[:LIMIT] ... [--prompt 512] [--tokens 64]
                                     [--runs 1] [--json FILE]

Each case is planned, with the machine measured anew, and run in a process of its own: the page
cache is dropped, and a prompt and given tokens run twice, cold and warm. It is planned again after
each run, and the mean of the plans counts: what a shared machine gives changes from minute to
minute, which no plan can know. LIMIT is memory that is enforced, page cache included (Linux, as
root); the plan then is for a machine of so much RAM.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from q4run.bench.figures.arguments import count, size
from q4run.bench.figures.provenance import command_line, provenance
from q4run.bench.figures.tables import console, number, percent
from q4run.bench.measure import compare, speed
from q4run.errors import Error
from q4run.gguf_file import open_gguf
from q4run.machine.interrupts import ending_cleanly
from q4run.planning.advice import Planner, Ram, make_planner
from q4run.planning.machine_speed import Given
from q4run.sizes import format_size
from q4run.terminal import Waiting, describe

# What the README promises: within this, of the measurement.
DECODE_WITHIN, MEMORY_WITHIN = 0.25, 0.05

Figures = dict[str, float]
_FIGURES = ("decode", "prompt", "peak", "hit_rate")


@dataclass(frozen=True)
class Case:
    """A model within a budget, of a machine's memory or of what is enforced; bytes."""

    model: Path
    budget: int
    limit: int | None = None


@dataclass(frozen=True)
class Result:
    """A case begun ``cold`` or ``warm``, what was foretold and what was measured.

    ``predicted`` and ``measured``: ``decode`` and ``prompt`` in tokens per second, ``peak`` in
    bytes, and the ``hit_rate`` of decoding. disk: bytes per second as each plan had it.
    """

    model: str
    ram_budget: int
    limit: int | None
    start: str
    io: str
    threads: int
    disk: list[float]
    predicted: Figures
    measured: Figures

    def error(self, name: str) -> float:
        """How far a forecast is from its measurement, as a share of that."""
        return abs(self.predicted[name] / self.measured[name] - 1)


def check(
    case: Case, *, n_prompt: int, n_tokens: int, runs: int, threads: int | None = None
) -> list[Result]:
    """The medians of ``runs``, cold and warm. Raises Error where the case does not fit or a run
    fails."""

    def plan() -> Planner:
        return _planner(case, n_prompt, n_prompt + n_tokens, threads)

    request = compare.Request(
        str(case.model),
        *speed.choose_tokens(case.model, n_prompt, n_tokens),
        context=n_prompt + n_tokens,
        threads=threads,
        ram_budget=case.budget,
        warm_up=False,
        passes=2,
        watch_disk=False,
    )
    figures, plans = [], [plan()]
    for _ in range(runs):
        figures += compare.run_in_turn(request, runs=1, limit=case.limit)[compare.Q4RUN]
        plans.append(plan())
    foretold = [_foretell(planner, case.budget) for planner in plans]
    results = []
    for start in ("cold", "warm"):
        predicted = {
            name: statistics.mean(told[start][name] for told in foretold)
            for name in foretold[0][start]
        }
        of_start = [run for run in figures if run["start"] == start]
        measured = {
            "decode": statistics.median(run["decode"]["tok_s"] for run in of_start),
            "prompt": statistics.median(run["prefill"]["tok_s"] for run in of_start),
            "peak": max(run["peak_rss"] for run in of_start),
            "hit_rate": statistics.median(run["experts"]["hit_rate"] for run in of_start),
        }
        results.append(
            Result(
                model=case.model.name,
                ram_budget=case.budget,
                limit=case.limit,
                start=start,
                io=of_start[0]["io"],
                threads=of_start[0]["threads"],
                disk=[planner.machine.disk for planner in plans],
                predicted=predicted,
                measured=measured,
            )
        )
    return results


def _planner(case: Case, n_prompt: int, context: int, threads: int | None) -> Planner:
    file = open_gguf(case.model)
    planner = make_planner(
        file,
        Given(threads=threads),
        paths=file.parts,
        context=context,
        kv_type="f16",
        anew=True,
    )
    planner.n_prompt = n_prompt
    if case.limit is not None:
        planner.ram = Ram(case.limit, case.limit)
    return planner


def _foretell(planner: Planner, budget: int) -> dict[str, Figures]:
    row = planner.row(budget)
    told = row.forecast
    return {
        "cold": {
            "decode": told.cold_decode.tok_s,
            "prompt": told.cold_prompt.tok_s,
            "peak": row.expected_peak,
            "hit_rate": told.cold_hit_rate,
        },
        "warm": {
            "decode": told.decode.tok_s,
            "prompt": told.prompt.tok_s,
            "peak": row.expected_peak,
            "hit_rate": told.hit_rate,
        },
    }


def results_of(content: dict[str, Any]) -> list[Result]:
    """What ``--json`` has written. Raises TypeError or KeyError for anything else."""
    found = []
    for case in content["cases"]:
        predicted, measured = (
            {name: case[told][name] + 0.0 for name in _FIGURES}
            for told in ("predicted", "measured")
        )
        found.append(Result(**case | {"predicted": predicted, "measured": measured}))
    return found


def pooled(executions: Sequence[Sequence[Result]]) -> list[Result]:
    """Of several executions of the same cases, the mean of each case's forecasts and of what was
    measured. Raises ValueError where they are not the same."""
    together = []
    for same in zip(*executions, strict=True):
        first = same[0]
        if any(_case_of(result) != _case_of(first) for result in same):
            raise ValueError(f"not the same cases: {first.model}")
        predicted, measured = (
            {name: statistics.mean(figures[name] for figures in each) for name in each[0]}
            for each in ([r.predicted for r in same], [r.measured for r in same])
        )
        together.append(replace(first, predicted=predicted, measured=measured))
    return together


def _case_of(result: Result) -> tuple[str, int, int | None, str]:
    return result.model, result.ram_budget, result.limit, result.start


def n_within(results: Sequence[Result], name: str, share: float) -> int:
    """How many forecasts are no further than that from their measurement."""
    return sum(result.error(name) <= share for result in results)


def table_of(results: list[Result]) -> Table:
    """A row for each case and start: foretold, measured, and the one over the other."""
    table = Table(box=box.SIMPLE_HEAD)
    for heading in ("model", "budget", "start", "reads"):
        table.add_column(heading)
    columns: list[tuple[str, str, Callable[[float], str]]] = [
        ("decode", "decode tok/s", number),
        ("prompt", "prompt tok/s", number),
        ("peak", "peak", format_size),
        ("hit_rate", "hits", percent),
    ]
    for _, heading, _ in columns:
        table.add_column(heading, justify="right")
    for result in results:
        cells = [result.model, format_size(result.ram_budget), result.start, result.io]
        for name, _, write in columns:
            told, was = result.predicted[name], result.measured[name]
            ratio = f" ({told / was:.2f})" if was and name != "hit_rate" else ""
            cells.append(f"{write(told)} / {write(was)}{ratio}")
        table.add_row(*cells)
    return table


def summary_of(results: list[Result]) -> str:
    """How many predictions are within what is promised."""
    decode, peak = (
        statistics.median(result.error(name) for result in results) for name in ("decode", "peak")
    )
    return (
        f"Decoding within {percent(DECODE_WITHIN)} in {n_within(results, 'decode', DECODE_WITHIN)}"
        f" of {len(results)}, memory within {percent(MEMORY_WITHIN)} in"
        f" {n_within(results, 'peak', MEMORY_WITHIN)}; medians of the errors {percent(decode)} and"
        f" {percent(peak)}."
    )


def _case(word: str) -> Case:
    model, *sizes = word.rsplit(":", 2)
    if len(sizes) == 2 and not sizes[0]:
        sizes = sizes[1:]
    if not 1 <= len(sizes) <= 2:
        raise argparse.ArgumentTypeError(f"{word}: not MODEL:BUDGET or MODEL:BUDGET:LIMIT")
    return Case(Path(model), *(size(word) for word in sizes))


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m q4run.bench.measure.plan_check",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("cases", type=_case, nargs="+", metavar="MODEL:BUDGET[:LIMIT]")
    parser.add_argument("--prompt", type=count, default=512, metavar="TOKENS")
    parser.add_argument("--tokens", type=count, default=64, metavar="TOKENS", help="to decode")
    parser.add_argument("--runs", type=count, default=1, metavar="N", help="medians are told")
    parser.add_argument("--threads", type=count, metavar="N")
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args(words)
    results: list[Result] = []
    try:
        with Waiting("planning and measuring") as waiting:
            for i, case in enumerate(arguments.cases):
                waiting.update(f"{case.model.name}", i, len(arguments.cases))
                results += check(
                    case,
                    n_prompt=arguments.prompt,
                    n_tokens=arguments.tokens,
                    runs=arguments.runs,
                    threads=arguments.threads,
                )
        console().print(table_of(results))
        console().print(summary_of(results))
        if arguments.json:
            words = sys.argv[1:] if words is None else words
            command = command_line("python -m q4run.bench.measure.plan_check", words)
            found = provenance(command) | {"cases": [asdict(r) for r in results]}
            arguments.json.write_text(json.dumps(found, indent=1) + "\n")
    except KeyboardInterrupt:
        sys.exit(130)
    except (Error, OSError) as error:
        sys.exit(f"error: {describe(error)}")


if __name__ == "__main__":
    with ending_cleanly():  # no process is to be left behind
        main()
