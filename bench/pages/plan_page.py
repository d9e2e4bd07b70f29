"""What ``q4run plan`` foretells for machines one may have, and how true it was on one.

Every figure of those machines is given, so that nothing is measured and docs/llama-4.md comes out
the same everywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from q4run.bench.figures.stored import Results
from q4run.bench.figures.tables import markdown_table, number, percent
from q4run.bench.measure.plan_check import (
    DECODE_WITHIN,
    Result,
    n_within,
    pooled,
    results_of,
    summary_of,
)
from q4run.bench.pages.prose import code, in_words, paragraph
from q4run.convert.preview import preview_geometry
from q4run.convert.types.recipe import make_recipe
from q4run.errors import Error
from q4run.models.published import GEOMETRIES
from q4run.planning.advice import Row, make_planner
from q4run.planning.machine_speed import Given
from q4run.sizes import format_size, parse_size

MODELS = {"scout": "Scout, 109 B", "maverick": "Maverick, 400 B"}
TYPES = ("q4_0", "q2_k", "tq2_0", "tq1_0")
_HEADINGS = [
    "model", "type", "file", "`--ram-budget`", "experts in RAM", "read per token",
    "decoding, tok/s", "prompt of 512, tok/s", "held back by",
]  # fmt: skip
_CHECKS = ("plan-1", "plan-2", "plan-3")  # executions of plan_check
_FORETOLD = {"decode": number, "prompt": number, "peak": format_size}


@dataclass(frozen=True)
class Machine:
    """As its maker describes it: sizes as the options of ``plan`` take them."""

    name: str
    ram: int
    disk: str
    memory_bandwidth: str
    core_speed: str
    threads: int

    def command(self, geometry: str, type_name: str) -> str:
        return (
            f"q4run plan --geometry {geometry} --type {type_name} --ram {self.ram}G"
            f" --disk {self.disk} --memory-bandwidth {self.memory_bandwidth}"
            f" --core-speed {self.core_speed} --threads {self.threads}"
        )


MACHINES = (
    Machine("16 GB, a thin laptop", 16, "3G", "120G", "100G", 8),
    Machine("24 GB, a larger laptop", 24, "5G", "270G", "100G", 10),
    Machine("48 GB, the largest laptop", 48, "7G", "400G", "100G", 12),
    Machine("64 GB, a desktop with two channels of DDR5", 64, "7G", "80G", "250G", 8),
)


def machines_block(results: Results) -> list[str]:
    """Of docs/llama-4.md: a section for each machine. Nothing of it was measured."""
    return list(_machines())


@cache
def _machines() -> tuple[str, ...]:
    parts: list[str] = []
    for machine in MACHINES:
        rows = [
            _cells(machine, geometry, title, type_name)
            for geometry, title in MODELS.items()
            for type_name in TYPES
        ]
        parts += [
            f"## {machine.name}",
            code(machine.command("scout", "tq1_0")),
            markdown_table(_HEADINGS, rows),
        ]
    return tuple(parts)


def summary_block(results: Results) -> list[str]:
    """Of docs/measured.md: how true the forecasts were."""
    summary, alone, _ = _checked(results)
    return [
        paragraph(
            "What `plan` foretold beside what then happened, three models within three budgets"
            " each, cold and warm, {times} times (`python -m q4run.bench.measure.plan_check`,"
            " all of it in `docs/benchmarks.md`): {summary} Taken alone, the executions have"
            " {alone} of them within {share} in decoding.",
            times=in_words(len(alone)),
            summary=summary[:1].lower() + summary[1:],
            alone=", ".join(map(str, alone)),
            share=percent(DECODE_WITHIN),
        )
    ]


def check_block(results: Results) -> list[str]:
    """Of docs/benchmarks.md: forecasts beside what was measured."""
    record = results.record(_CHECKS[0])
    summary, alone, table = _checked(results)
    return [
        paragraph(
            "`{command}`, {times} times: {when}, {machine}. Each figure is of all of them together:"
            " the forecast, what was measured, and the ratio. {summary} Taken alone, the executions"
            " have {alone} within {share} in decoding: the machine gives more and less by the"
            " minute. A prompt that finds nothing in RAM or the page cache is the weak point: it is"
            " foretold too fast.",
            command=record.text("command").partition(" --json")[0],
            when=record.text("date"),
            machine=record.text("machine"),
            times=in_words(len(alone)),
            summary=summary,
            alone=", ".join(map(str, alone)),
            share=percent(DECODE_WITHIN),
        ),
        table,
    ]


def _checked(results: Results) -> tuple[str, list[int], str]:
    """What it comes to, in how many cases decoding was foretold in each execution alone, and a
    table of all."""
    executions = [results.record(name).read_as(_read) for name in _CHECKS]
    try:
        together = pooled(executions)
    except ValueError as error:
        raise Error(f"{', '.join(_CHECKS)}: {error}; measure all of them again") from None
    rows = [
        [
            one.model,
            format_size(one.ram_budget),
            format_size(one.limit) if one.limit else "",
            one.start,
            *(_beside(one, name, write) for name, write in _FORETOLD.items()),
        ]
        for one in together
    ]
    headings = ["model", "`--ram-budget`", "enforced", "", "decoding, tok/s", "prompt, tok/s"]
    return (
        summary_of(together),
        [n_within(each, "decode", DECODE_WITHIN) for each in executions],
        markdown_table([*headings, "peak memory"], rows),
    )


def _read(content: dict[str, Any]) -> list[Result]:
    """The results, each of them such that it can be shown."""
    found = results_of(content)
    for one in found:
        format_size(one.ram_budget), format_size(one.limit or 0), "".join([one.model, one.start])
        for name, write in _FORETOLD.items():
            _beside(one, name, write)
    summary_of(found)
    return found


def _beside(result: Result, name: str, write: Callable[[float], str]) -> str:
    told, was = result.predicted[name], result.measured[name]
    return f"{write(told)} / {write(was)} ({told / was:.2f})"


def _cells(machine: Machine, geometry: str, title: str, type_name: str) -> list[str]:
    row, size = _best(machine, geometry, type_name)
    told = row.forecast
    return [
        title,
        type_name,
        format_size(size),
        format_size(row.budget),
        percent(told.hit_rate),
        format_size(told.decode.read_bytes),
        number(told.decode.tok_s),
        number(told.prompt.tok_s),
        told.decode.limit.value,
    ]


def _best(machine: Machine, geometry: str, type_name: str) -> tuple[Row, int]:
    """What ``plan`` recommends on that machine, and the size of the file."""
    file = preview_geometry(geometry, GEOMETRIES[geometry], make_recipe(type_name, None, None, ()))
    given = Given(
        threads=machine.threads,
        memory=_per_second(machine.memory_bandwidth),
        disk=_per_second(machine.disk),
        core=_per_second(machine.core_speed),
        ram=machine.ram * 10**9,
    )
    planner = make_planner(file, given, paths=(), context=None, kv_type="f16")
    return planner.best(planner.rows()), file.size


def _per_second(rate: str) -> float:
    return float(parse_size(rate, 0))
