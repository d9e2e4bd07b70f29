"""A plan as text, and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from q4run.budget import INTERPRETER_ALLOWANCE
from q4run.cli.known_shapes import ShapeFacts
from q4run.planning.advice import Planner, Row
from q4run.planning.forecast import Speed
from q4run.sizes import format_size
from q4run.terminal import printable

_WORTH_SAYING = 0.97  # slower than so


def as_json(
    planner: Planner, rows: Sequence[Row], row: Row, command: str, shape: ShapeFacts
) -> dict[str, Any]:
    """Sizes in bytes, speeds per second; README.md and interface.md name the main keys."""
    forecast, work, machine = row.forecast, planner.work, planner.machine
    return {
        "model": str(planner.file.path),
        "architecture": work.config.architecture,
        "context": planner.context,
        "kv_type": work.kv_type,
        "threads": machine.threads,
        "ram_budget": row.budget,
        "machine": {
            "ram": planner.ram.total,
            "ram_free": planner.ram.free,
            "memory": machine.memory,
            "disk": machine.disk,
            "kernels": {name: asdict(speed) for name, speed in machine.kernels.items()},
        },
        "memory": _memory(planner, row),
        "least_budget": planner.least,
        "whole_model": planner.whole,
        "bytes_per_token": {
            "weights": work.weight_bytes,
            "cold": work.cold_bytes,
            "expected": forecast.decode.read_bytes,
        },
        "hit_rate": forecast.hit_rate,
        "page_cache_holds_file": forecast.cached,
        "decode": {
            **_speed(forecast.decode),
            "disk_share": _disk_share(row, machine.disk),
            "cold_tok_s": forecast.cold_decode.tok_s,
            "long_tok_s": forecast.long_decode.tok_s,
        },
        "prompt": {
            "tokens": forecast.n_prompt,
            **_speed(forecast.prompt),
            "read_bytes": forecast.prompt.read_bytes,
            "cold_tok_s": forecast.cold_prompt.tok_s,
            "cold_read_bytes": forecast.cold_prompt.read_bytes,
        },
        "budgets": [
            {
                "ram_budget": other.budget,
                "n_slots": other.memory.n_slots,
                "n_experts": other.memory.n_experts,
                "hit_rate": other.forecast.hit_rate,
                "bytes_per_token": other.forecast.decode.read_bytes,
                "decode": _speed(other.forecast.decode),
                "prompt": _speed(other.forecast.prompt),
            }
            for other in rows
        ],
        "command": command,
        "note": shape.note,
        "bytes_per_token_by_type": {name: r.n_bytes for name, r in shape.reads.items()},
    }


def _speed(speed: Speed) -> dict[str, Any]:
    return {"tok_s": speed.tok_s, "limit": speed.limit.value}


def _memory(planner: Planner, row: Row) -> dict[str, int]:
    memory = row.memory
    left = planner.ram.free - memory.total - INTERPRETER_ALLOWANCE
    return {
        "dense": memory.dense,
        "tokenizer": memory.tokenizer,
        "kv": memory.kv,
        "scratch": memory.scratch,
        "slots": memory.slots,
        "n_slots": memory.n_slots,
        "n_experts": memory.n_experts,
        "slot_bytes": memory.slot_bytes,
        "total": memory.total,
        "allowance": INTERPRETER_ALLOWANCE,
        "expected_peak": row.expected_peak,
        "page_cache": max(0, left),
        "disk": planner.file.size,
    }


def print_plan(
    planner: Planner, rows: Sequence[Row], row: Row, command: str, shape: ShapeFacts
) -> None:
    """To standard output; 80 columns are enough, but for the command."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=80)
    how_fast = _how_fast(row, planner.work.cold_bytes, planner.machine.disk)
    for part in (_where(planner, row), how_fast, _table(rows, row)):
        console.print(part)
    for text in (*_remarks(planner, row), *shape.lines()):
        console.print(text, style="dim", markup=False)
    console.print()
    console.print(printable(command), markup=False, soft_wrap=True, style="bold")


def _where(planner: Planner, row: Row) -> Table:
    """Where every byte will live."""
    config, memory, sizes = planner.work.config, row.memory, _memory(planner, row)
    table = _facts(
        printable(f"{planner.file.path.name}, {config.architecture}, {len(config.layers)} layers")
    )
    experts = f"{memory.n_slots} of {memory.n_experts} experts"
    for label, name, text in (
        ("always-used weights", "dense", "in RAM"),
        ("expert slots", "slots", f"in RAM: {experts}, {format_size(memory.slot_bytes)} each"),
        ("keys and values", "kv", f"in RAM: {planner.context} tokens in {planner.work.kv_type}"),
        ("tokenizer", "tokenizer", "in RAM"),
        ("scratch", "scratch", f"in RAM: batches of {memory.n_batch} tokens"),
        ("budget used", "total", f"of {format_size(memory.budget)}"),
        ("allowance", "allowance", "at most: Python, numba, compiled kernels"),
        ("expected peak", "expected_peak", "of all that the process holds in RAM"),
        ("left to the system", "page_cache", f"of {format_size(planner.ram.free)} free RAM"),
        ("on disk", "disk", "the file; other experts, embeddings stay there"),
    ):
        if sizes[name]:
            table.add_row(label, format_size(sizes[name]), text)
    return table


def _disk_share(row: Row, disk: float) -> float | None:
    """Of the disk's rate, what decoding takes by the forecast; None where it reads no disk."""
    decode = row.forecast.decode
    if row.forecast.cached or not decode.read_bytes:
        return None
    return decode.read_bytes * decode.tok_s / disk


def _how_fast(row: Row, cold_bytes: int, disk: float) -> Table:
    forecast = row.forecast
    table = _facts("Expected")
    where = "the page cache" if forecast.cached else "disk"
    decode, cold, long = forecast.decode, forecast.cold_decode, forecast.long_decode
    hits = f"{100 * forecast.hit_rate:.0f} % of experts found in RAM"
    table.add_row("read per token", format_size(decode.read_bytes), f"from {where}: {hits}")
    if cold_bytes:
        table.add_row("", format_size(cold_bytes), "while none of a token's experts is in RAM")
    table.add_row("decoding", _number(decode.tok_s), f"tokens/s; limit: {decode.limit.value}")
    if cold.tok_s < _WORTH_SAYING * decode.tok_s:
        table.add_row("", _number(cold.tok_s), f"after the first prompt; limit: {cold.limit.value}")
    table.add_row("", _number(long.tok_s), f"at the end of the context; limit: {long.limit.value}")
    if share := _disk_share(row, disk):
        rate = format_size(decode.read_bytes * decode.tok_s)
        table.add_row("reading", f"{rate}/s", f"{100 * share:.0f} % of what the disk gives")
    prompt, cold_prompt = forecast.prompt, forecast.cold_prompt
    label = f"prompt of {forecast.n_prompt}"
    table.add_row(label, _number(prompt.tok_s), f"tokens/s; limit: {prompt.limit.value}")
    table.add_row("", _number(cold_prompt.tok_s), f"the first; limit: {cold_prompt.limit.value}")
    return table


def _facts(title: str) -> Table:
    table = Table(
        box=None, show_header=False, padding=(0, 2, 0, 0), title=title, title_justify="left",
        title_style="bold",
    )  # fmt: skip
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim")
    return table


def _table(rows: Sequence[Row], chosen: Row) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("--ram-budget", no_wrap=True)
    for heading in ("experts in RAM", "read/token", "decode tok/s", "prompt tok/s", "limit"):
        table.add_column(heading, justify="right")
    for row in rows:
        forecast = row.forecast
        style = "bold" if row.budget == chosen.budget else None
        share = f"{100 * forecast.hit_rate:.0f} %"
        table.add_row(
            format_size(row.budget),
            share if row.memory.n_experts else "none",
            format_size(forecast.decode.read_bytes),
            _number(forecast.decode.tok_s),
            _number(forecast.prompt.tok_s),
            forecast.decode.limit.value,
            style=style,
        )
    return table


def _remarks(planner: Planner, row: Row) -> list[str]:
    machine = planner.machine
    threads = f"{machine.threads} thread" + "s" * (machine.threads > 1)
    remarks = [
        f"With {threads}, memory of {machine.memory / 1e9:.1f} GB/s and a disk of"
        f" {machine.disk / 1e9:.1f} GB/s. Experts are taken to be used evenly, the worst case."
    ]
    if machine.load.is_high:
        remarks.append(
            f"Other programs took {100 * machine.load.cpu:.0f} % of the processor and"
            f" {100 * machine.load.disk:.0f} % of what the disk gave while this was measured: it"
            " comes out too low. It is measured again when they are done."
        )
    if row.forecast.cached:
        remarks.append("The page cache holds the whole file, once it was read: no disk then.")
    if row.memory.total + INTERPRETER_ALLOWANCE > planner.ram.free:
        remarks.append("This is more RAM than is free now: close other programs first.")
    return remarks


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 99.5 else f"{value:.3g}"
