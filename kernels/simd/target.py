"""Which instructions the kernels use: chosen once, from the machine or from ``Q4RUN_SIMD``."""

import os
import platform
import sys

from llvmlite import binding

TARGETS = ("avx512vnni", "avx2", "neon", "generic")


def available_targets() -> list[str]:
    """The targets this machine can run, best first."""
    features = _host_features()
    machine = platform.machine().lower()
    found = []
    if machine in ("x86_64", "amd64") and all(map(features.get, ("avx2", "fma", "f16c"))):
        if features.get("avx512vnni") and features.get("avx512vl"):
            found.append("avx512vnni")
        found.append("avx2")
    # Every Mac with an Arm processor has the dot product; LLVM does not always say so.
    if machine in ("arm64", "aarch64") and (features.get("dotprod") or sys.platform == "darwin"):
        found.append("neon")
    return [*found, "generic"]


def _host_features() -> dict[str, bool]:
    try:
        return binding.get_host_cpu_features()
    except RuntimeError:  # LLVM cannot tell on every system
        return {}


def _choose() -> str:
    available = available_targets()
    forced = os.environ.get("Q4RUN_SIMD")
    if not forced:
        return available[0]
    if forced not in TARGETS:
        raise ImportError(f"Q4RUN_SIMD={forced} is not one of {', '.join(TARGETS)}")
    if forced not in available:
        raise ImportError(
            f"Q4RUN_SIMD={forced}: this machine cannot run that; it has {', '.join(available)}"
        )
    return forced


TARGET = _choose()
