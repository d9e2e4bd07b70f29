"""``q4run doctor``: what this machine offers, and what stands in the way."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Annotated, Any

import typer

from q4run.cli.private import without_names
from q4run.sizes import format_size

_WIDTH = 80
_POOL = "q4run's own pool (numba's threading layers are not used)"
# How files are read, by the names that the measurement has for them.
_WAYS = {
    "direct": "direct",
    "direct, deeper queue": "direct by twice the readers",
    "pread": "buffered",
}


def doctor(
    path: Annotated[
        Path,
        typer.Argument(
            help="Where models lie, or one of them: its disk is measured for a second. Not given:"
            " the current folder.",
            metavar="FOLDER_OR_MODEL",
            show_default=False,
        ),
    ] = Path("."),
    json_output: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead.")
    ] = False,
) -> None:
    """Show what this machine offers, and what to do about what stands in the way.

    Cores, SIMD target, threads, compiled kernels, memory, the disk that models
    lie on, GPUs, power, versions. The home folder is shown as ~, and no name of
    yours or of the machine: it can be pasted into a bug report as it stands.

    [bold]Examples[/]
      q4run doctor
      q4run doctor model.gguf
      q4run doctor /models --json > machine.json
    """
    # Kernels are imported here: ``q4run doctor --help`` need not wait for them.
    from q4run.inspection.disk import describe_disk
    from q4run.inspection.findings import find
    from q4run.inspection.machine import describe_machine

    # The disk first: a path that is wrong is told at once.
    disk = describe_disk(path)
    machine: dict[str, Any] = describe_machine() | {"disk": disk}
    findings = [{"finding": finding, "advice": advice} for finding, advice in find(machine)]
    machine = without_names(machine | {"findings": findings})
    if json_output:
        typer.echo(json.dumps(machine, indent=2))
        return
    rows = _rows(machine)
    width = max(len(label) for label, _ in rows) + 2
    for label, value in rows:
        typer.echo(_wrapped(value, f"{label:{width}}", width))
    typer.echo()
    if not findings:
        typer.echo("Nothing stands in the way.")
    for number, finding in enumerate(machine["findings"], 1):
        typer.echo(_wrapped(finding["finding"], f"{number}. ", 3))
        typer.echo(_wrapped(finding["advice"], "   -> ", 6))


def _wrapped(text: str, first: str, indent: int) -> str:
    return textwrap.fill(
        _printable(text),
        _WIDTH,
        initial_indent=first,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _printable(text: str) -> str:
    """Text made safe for a terminal: names of files can hold anything."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _rows(machine: dict[str, Any]) -> list[tuple[str, str]]:
    cores, simd = machine["cores"], machine["simd"]
    others = [target for target in simd["available"] if target != simd["target"]]
    choice = f" (Q4RUN_SIMD can also be {', '.join(others)})" if others else ""
    quota = "" if cores["quota"] is None else f", time of {cores['quota']:g} by a limit"
    features = ", ".join(machine["features"]) or "no SIMD"
    return [
        ("system", f"{machine['system']}, {machine['machine']}"),
        ("processor", f"{machine['processor']} ({features})"),
        ("cores", f"{cores['physical'] or 'unknown'} physical, {cores['usable']} usable{quota}"),
        ("SIMD target", f"{simd['target']}{choice}"),
        ("threads", f"{machine['threads']['default']} by default, in {_POOL}"),
        ("kernel cache", _cache_text(machine["kernel_cache"])),
        ("memory", _memory_text(machine["memory"])),
        ("swap", _swap_text(machine["swap"])),
        *_disk_rows(machine["disk"]),
        ("GPU", _gpu_text(machine["gpus"])),
        ("power", _power_text(machine["power"])),
        ("versions", ", ".join(f"{name} {text}" for name, text in machine["versions"].items())),
    ]


def _cache_text(cache: dict[str, Any]) -> str:
    if not cache["kernels"]:
        state = "nothing compiled yet: the first model takes about twenty seconds more"
    else:
        state = f"{cache['kernels']} compiled, {cache['usable']} usable here"
        state += f", {format_size(cache['bytes'])}"
    if cache["others"]:
        state += f"; of {cache['others']} other versions {format_size(cache['other_bytes'])}"
    return f"{state}; {'' if cache['writable'] else 'not '}writable, in {cache['folder']}"


def _memory_text(memory: dict[str, Any]) -> str:
    text = f"{format_size(memory['available'])} free of {format_size(memory['total'])}"
    if memory["limit"] is None:
        return f"{text}, no limit by a container"
    return f"{text}, which is a limit; the machine has {format_size(memory['machine'])}"


def _swap_text(swap: dict[str, Any]) -> str:
    if not swap["total"]:
        return "none"
    return f"{format_size(swap['used'])} used of {format_size(swap['total'])}"


def _disk_rows(disk: dict[str, Any]) -> list[tuple[str, str]]:
    speeds = disk["read_bytes_s"]
    if speeds is None:
        speed = f"not measured: {disk['why_not_measured']}"
    else:
        speed = ", ".join(f"{format_size(speeds[way])}/s {text}" for way, text in _WAYS.items())
        speed += f", reading {disk['file']}"
    traits = ", ".join([disk["file_system"] or "unknown", *disk["traits"]])
    direct = {True: ", direct reads work", False: ", no direct reads", None: ""}[disk["direct_io"]]
    return [("disk", speed), ("file system", f"{traits}{direct} (of {disk['path']})")]


def _gpu_text(gpus: list[dict[str, Any]]) -> str:
    if not gpus:
        return "none found"
    names = [
        gpu["name"] + (f", {format_size(gpu['memory'])}" if gpu["memory"] else "") for gpu in gpus
    ]
    return f"{'; '.join(names)} (not used yet)"


def _power_text(power: dict[str, Any]) -> str:
    battery = power["battery"]
    text = "mains, or no battery" if battery is None else f"battery, {battery} % left"
    if power["low_power"]:
        text += ", low-power mode"
    return text + (f", governor {power['governor']}" if power["governor"] else "")
