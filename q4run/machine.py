"""What this machine offers to the kernels."""

import platform
import sys
from importlib.metadata import version
from typing import Any

import psutil
from llvmlite import binding

from q4run.cores import choose_threads, usable_cores
from q4run.kernels.compile import CACHE_FOLDER, can_cache
from q4run.kernels.simd.target import TARGET, available_targets, host_features
from q4run.memory import available_memory, total_memory

# What the SIMD targets look for, or would gain from.
_FEATURES = ("avx2", "fma", "f16c", "avx512vl", "avx512vnni", "neon", "dotprod", "i8mm")
_PACKAGES = ("numpy", "numba", "llvmlite", "gguf")


def describe_machine() -> dict[str, Any]:
    """Processor, cores, SIMD target, threads, kernel cache, memory (bytes) and versions."""
    features = host_features()
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": binding.get_host_cpu_name(),
        "features": [name for name in _FEATURES if features.get(name)],
        "cores": {"physical": psutil.cpu_count(logical=False), "usable": usable_cores()},
        "simd": {"target": TARGET, "available": available_targets()},
        "threads": {"default": choose_threads(None), "layer": "q4run"},
        "kernel_cache": {
            "folder": str(CACHE_FOLDER),
            "writable": can_cache(),
            "kernels": len(list(CACHE_FOLDER.glob("**/*.nbc"))),
        },
        "memory": {"total": total_memory(), "available": available_memory()},
        "versions": {
            "q4run": version("q4run"),
            "python": sys.version.split()[0],
            **{name: version(name) for name in _PACKAGES},
        },
    }
