"""Which GPUs this machine has: named only, q4run does not use one yet."""

import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

_COMMAND = ["nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
_SECONDS = 5  # a driver in trouble may not answer at all
_MIB = 1 << 20


def describe_gpus(root: Path = Path("/")) -> list[dict[str, Any]]:
    """[{"name", "memory"}]: bytes of its own memory, null where it has none or nobody tells.

    NVIDIA's are asked for with ``nvidia-smi``, or read from ``proc/driver/nvidia`` under ``root``
    where that is missing or does not answer; Apple's are known by the platform.
    """
    if sys.platform == "darwin":
        is_apple = platform.machine() == "arm64"
        return [{"name": "Apple, shares the RAM", "memory": None}] if is_apple else []
    return _from_command() or _from_driver(root)


def _from_command() -> list[dict[str, Any]]:
    try:
        done = subprocess.run(
            _COMMAND, capture_output=True, text=True, timeout=_SECONDS, check=False
        )
    except (OSError, ValueError, subprocess.SubprocessError):
        return []
    return parse_nvidia_smi(done.stdout) if done.returncode == 0 else []


def parse_nvidia_smi(text: str) -> list[dict[str, Any]]:
    """What ``nvidia-smi`` prints as CSV: a name and MiB in each line; others are passed over."""
    gpus = []
    for line in text.splitlines():
        name, comma, memory = line.rpartition(",")
        if comma and name.strip():
            mebibytes = memory.strip()
            is_number = mebibytes.isascii() and mebibytes.isdigit()
            gpus.append(
                {"name": name.strip(), "memory": int(mebibytes) * _MIB if is_number else None}
            )
    return gpus


def _from_driver(root: Path) -> list[dict[str, Any]]:
    gpus = []
    for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        try:
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError):
            continue
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("Model:")]
        gpus += [{"name": name, "memory": None} for name in names if name]
    return gpus
