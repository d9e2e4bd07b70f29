"""How a measurement was made: when, on what machine, by which command; kept with its figures."""

from __future__ import annotations

import platform
import re
import shlex
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Any

import q4run
from q4run.machine.cores import usable_cores
from q4run.machine.memory import total_memory
from q4run.sizes import format_size


def provenance(command: str, peer: str = "") -> dict[str, Any]:
    """What a stored JSON says of itself; peer: the version of llama.cpp, where it ran too."""
    versions = {"q4run": q4run.__version__} | ({"llama_cpp": peer} if peer else {})
    return {
        "date": date.today().isoformat(),
        "machine": computer(),
        "command": command,
        "versions": versions,
    }


def command_line(program: str, words: Sequence[str]) -> str:
    """A command to repeat, with the names of files instead of the paths of this machine."""
    return " ".join([program, *(shlex.quote(_name_alone(word)) for word in words)])


def without_paths(command: str) -> str:
    """A command of the past likewise: absolute paths in it become names."""
    return re.sub(r"(?<![^\s='\"])/\S*", lambda match: _name_alone(match[0]), command)


def _name_alone(word: str) -> str:
    """``--file=/some/where`` becomes ``--file=where``."""
    return re.sub(r"[^=]*/", "", word.rstrip("/"))


def computer() -> str:
    """This machine in a few words: cores, processor, RAM, system."""
    n_cores = usable_cores()
    cores = f"{n_cores} core" + "s" * (n_cores > 1)
    system = f"{platform.system()} {platform.release()}"
    return f"{cores} of {_processor()}, {format_size(total_memory())} of RAM, {system}"


def _processor() -> str:
    """The name that the system gives the processor, or its architecture."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return " ".join(value.split())
    with suppress(OSError):
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if name := done.stdout.strip():
            return name
    return platform.machine()
