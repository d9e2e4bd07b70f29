"""``q4run doctor``: what this machine offers, and what stands in the way."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from q4run.memory import format_size

_WITHOUT_CACHE = (
    "Kernels cannot be kept and are compiled anew at each start: make the folder writable, or name"
    " another in Q4RUN_CACHE."
)
_GENERIC = (
    "No SIMD instructions that q4run knows: it runs, but slowly. A processor with AVX2, or a 64-bit"
    " Arm one with the dot product, is many times faster."
)


def doctor(
    json_output: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead.")
    ] = False,
) -> None:
    """Show what this machine offers: cores, SIMD target, threads, kernel cache, memory, versions.

    [bold]Examples[/]
      q4run doctor
      q4run doctor --json > machine.json
    """
    # Kernels are imported here: ``q4run doctor --help`` need not wait for them.
    from q4run.machine import describe_machine

    machine = describe_machine()
    if json_output:
        typer.echo(json.dumps(machine, indent=2))
        return
    rows = _rows(machine)
    width = max(len(label) for label, _ in rows)
    for label, value in rows:
        typer.echo(f"{label:{width}}  {value}")
    for finding in _findings(machine):
        typer.echo(f"\n{finding}")


def _rows(machine: dict[str, Any]) -> list[tuple[str, str]]:
    cores, simd, cache = machine["cores"], machine["simd"], machine["kernel_cache"]
    memory, threads = machine["memory"], machine["threads"]
    others = [target for target in simd["available"] if target != simd["target"]]
    return [
        ("system", machine["system"]),
        ("processor", f"{machine['processor']} ({', '.join(machine['features']) or 'no SIMD'})"),
        ("cores", f"{cores['physical'] or 'unknown'} physical, {cores['usable']} usable"),
        ("SIMD target", f"{simd['target']} (Q4RUN_SIMD can also be {', '.join(others) or '-'})"),
        ("threads", f"{threads['default']} by default, q4run's own pool"),
        ("kernel cache", f"{cache['folder']} ({cache['kernels']} compiled)"),
        ("memory", f"{format_size(memory['available'])} free of {format_size(memory['total'])}"),
        ("versions", ", ".join(f"{name} {text}" for name, text in machine["versions"].items())),
    ]


def _findings(machine: dict[str, Any]) -> list[str]:
    findings = []
    if machine["simd"]["target"] == "generic":
        findings.append(_GENERIC)
    if not machine["kernel_cache"]["writable"]:
        findings.append(_WITHOUT_CACHE)
    return findings
