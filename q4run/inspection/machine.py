"""What this machine offers, and what of it stands in the way."""

import platform
import sys
from importlib.metadata import version
from typing import Any

import psutil
from llvmlite import binding

from q4run.inspection.gpus import describe_gpus
from q4run.inspection.kernel_cache import describe_kernel_cache
from q4run.inspection.power import describe_power
from q4run.kernels.compiling.target import TARGET, available_targets, host_features
from q4run.machine.cores import choose_threads, cpu_quota, usable_cores
from q4run.machine.memory import available_memory, total_memory

# What the SIMD targets look for, or would gain from.
_FEATURES = ("avx2", "fma", "f16c", "avx512vl", "avx512vnni", "neon", "dotprod", "i8mm")
_PACKAGES = ("numpy", "numba", "llvmlite", "gguf", "tokenizers")


def describe_machine() -> dict[str, Any]:
    """Processor, cores, SIMD target, threads, kernel cache, memory, power, GPUs and versions.

    Sizes in bytes. Under "memory", total is what this process may ever use: the machine's, or the
    container's limit, which "limit" has where there is one.
    """
    features = host_features()
    return {
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "processor": binding.get_host_cpu_name(),
        "features": [name for name in _FEATURES if features.get(name)],
        "cores": {
            "physical": psutil.cpu_count(logical=False),
            "usable": usable_cores(),
            "quota": cpu_quota(),
        },
        "simd": {"target": TARGET, "available": available_targets()},
        # The pool is q4run's own: none of numba's threading layers is used.
        "threads": {"default": choose_threads(None), "layer": "q4run"},
        "kernel_cache": describe_kernel_cache(),
        "memory": _memory(),
        "swap": _swap(),
        "gpus": describe_gpus(),
        "power": describe_power(),
        "versions": {
            "q4run": version("q4run"),
            "python": sys.version.split()[0],
            **{name: version(name) for name in _PACKAGES},
        },
    }


def _memory() -> dict[str, int | None]:
    machine, total = psutil.virtual_memory().total, total_memory()
    return {
        "machine": machine,
        "limit": total if total < machine else None,
        "total": total,
        "available": available_memory(),
    }


def _swap() -> dict[str, int]:
    try:
        swap = psutil.swap_memory()
    except (OSError, RuntimeError, psutil.Error):  # not every container shows it
        return {"total": 0, "used": 0}
    return {"total": swap.total, "used": swap.used}
