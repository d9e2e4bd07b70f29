"""Stored JSON of ``q4run bench``, several beside each other: which belong together, and a table."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from q4run.bench.figures.figures import Figures
from q4run.bench.figures.stored import Record, Results
from q4run.bench.figures.tables import markdown_table, number, over, percent, span, threads_of
from q4run.errors import Error
from q4run.sizes import format_size

SMALL_SCOUT = "speed-small-scout-"
SCOUT = "scout-109b-"
# What a table of types begins with, in this order; others follow.
_TYPES = ("q4_0", "q8_0", "q4_k", "q6_k", "tq2_0", "tq1_0")


def small_scouts(results: Results) -> dict[str, Record]:
    """The runs of the small Scout by type. Raises Error unless they can stand in one table: the
    same machine, and but for the file the same command."""
    records = {r.name.removeprefix(SMALL_SCOUT): r for r in results.records(SMALL_SCOUT)}
    first = next(iter(records.values()))
    for record in records.values():
        for what, of in (("machine", machine_of), ("command", command_of)):
            if of(record) != of(first):
                raise Error(
                    f"{record.path}: its {what} is not that of {first.path.name}; measure all"
                    " types of the table alike"
                )
    known = [name for name in _TYPES if name in records]
    return {name: records[name] for name in [*known, *(n for n in records if n not in known)]}


def scouts(results: Results) -> dict[tuple[str, int], Record]:
    """The runs of Scout's full geometry by type and budget in bytes."""
    records = {}
    for record in results.records(SCOUT):
        type_name = record.name.removeprefix(SCOUT).partition("-")[0]
        records[type_name, round(record.number("ram_budget"))] = record
    return dict(sorted(records.items()))


def machine_of(record: Record) -> str:
    """Cores, processor and RAM, without the system's version."""
    return ", ".join(record.text("machine").split(", ")[:2])


def command_of(record: Record) -> str:
    """The command for any file, without what says where things are."""
    command = re.sub(r"\S+\.gguf", "FILE", record.text("command"))
    return re.sub(r" (--json|--peer-python[ =]\S+)(?!\S)", "", command)


def made_of(records: Iterable[Record]) -> str:
    """When, where and with what several were measured, as a sentence or two."""
    records = list(records)
    dates = sorted({record.text("date") for record in records})
    machines = dict.fromkeys(record.text("machine") for record in records)
    parts = ["; ".join(machines), records[0].read_as(threads_of)]
    parts += dict.fromkeys(
        f"reads by {record.text('io')}" for record in records if record.get("io")
    )
    peer = "versions.llama_cpp"
    parts += sorted({record.text(peer) for record in records if record.get(peer)})
    made = f"{' to '.join(dict.fromkeys((dates[0], dates[-1])))}, {'; '.join(parts)}."
    if any(record.get("transcribed") for record in records):
        made += " Transcribed from what was printed, to three digits."
    return made


def ratio_of(record: Record, phase: str) -> str:
    """q4run over its peer: the median and, where it is known, from the least to the most."""
    middle = number(record.number(f"ratio.{phase}"))
    if record.get(f"ratio_spread.{phase}") is None:
        return middle
    between = span(record.numbers(f"ratio_spread.{phase}"))
    return middle if between == middle else f"{middle} ({between})"


@dataclass(frozen=True)
class _Row:
    """A label, a number of a run and how it is written, and the name of its ratio."""

    label: str
    value: Callable[[Figures], float | None]
    write: Callable[[float], str]
    ratio: str = ""

    def cell(self, run: Figures | None) -> str:
        value = self.value(run) if run else None
        return "" if value is None else self.write(value)


def _rows(n_prompt: float, n_decode: float) -> list[_Row]:
    """As ``q4run bench`` prints them; what not every run has may be absent."""

    def from_disk(run: Figures) -> float | None:
        return over(run["decode"].get("disk_bytes"), n_decode)

    return [
        _Row(f"decoding {n_decode:.0f}, tok/s", lambda r: r["decode"]["tok_s"], number, "decode"),
        _Row("of memory's read limit", lambda r: r["decode"].get("read_limit_ratio"), percent),
        _Row("weights per token", lambda r: r["decode"].get("bytes_per_token"), format_size),
        _Row("experts found in RAM", lambda r: r["experts"].get("hit_rate"), percent),
        _Row("from disk per token", from_disk, format_size),
        _Row("waited for reads, s", lambda r: r["experts"].get("wait_s"), number),
        _Row("disk busy meanwhile", lambda r: r["decode"].get("busy_share"), percent),
        _Row(
            f"prompt of {n_prompt:.0f}, tok/s", lambda r: r["prefill"]["tok_s"], number, "prefill"
        ),
        _Row("from disk in the prompt", lambda r: r["prefill"].get("disk_bytes"), format_size),
        _Row("loading, s", lambda r: r["load_s"], number),
        _Row("first prompt, s", lambda r: r.get("first_token_s"), number),
        _Row("peak memory", lambda r: r["peak_rss"], format_size, "peak_rss"),
    ]


def table_of(columns: dict[str, Record]) -> str:
    """A column for each run: q4run's figures, llama.cpp's below them, and their ratio."""
    first = next(iter(columns.values()))
    lines = []
    for row in _rows(first.number("prefill.tokens"), first.number("decode.tokens")):
        ours, peers = (
            [_cell(record, row, key) for record in columns.values()] for key in ("", "peer")
        )
        lines.append([row.label, *ours])
        if peers != ours:
            lines.append(["– llama.cpp", *peers])
        ratios = [
            ratio_of(record, row.ratio) if row.ratio and record.get("ratio") else ""
            for record in columns.values()
        ]
        lines.append(["– q4run over it", *ratios])
    return markdown_table(["", *columns], [line for line in lines if any(line[1:])])


def _cell(record: Record, row: _Row, key: str = "") -> str:
    def of(content: dict[str, Any]) -> str:
        return row.cell(content.get(key) if key else content)

    return record.read_as(of)
