"""Which instructions the kernels use: chosen once, from the machine or from ``Q4RUN_SIMD``."""

import ctypes
import os
import platform
import sys

from llvmlite import binding
from numba.core import config

TARGETS = ("avx512vnni", "avx2", "neon", "generic")
# Where Linux tells a process of an Arm processor's extensions: the entry of the auxiliary vector,
# and the bit in it (the kernel's "arm64/elf_hwcaps").
_HWCAPS = {"dotprod": (16, 1 << 20)}


def available_targets() -> list[str]:
    """The targets this machine can run, best first."""
    features = host_features()
    machine = platform.machine().lower()
    found = []
    if machine in ("x86_64", "amd64") and all(map(features.get, ("avx2", "fma", "f16c"))):
        if features.get("avx512vnni") and features.get("avx512vl"):
            found.append("avx512vnni")
        found.append("avx2")
    if machine in ("arm64", "aarch64") and (features | _arm_extensions()).get("dotprod"):
        found.append("neon")
    return [*found, "generic"]


def host_features() -> dict[str, bool]:
    """The processor's extensions by LLVM's names, as far as they are known."""
    try:
        return dict(binding.get_host_cpu_features())
    except RuntimeError:  # LLVM cannot tell on every system
        return {}


def _arm_extensions() -> dict[str, bool]:
    """What is known of an Arm processor without LLVM, which reads names and ``/proc/cpuinfo``."""
    if sys.platform == "darwin":  # every Arm processor of Apple's has them
        return dict.fromkeys(_HWCAPS, True)
    getauxval = getattr(ctypes.CDLL(None), "getauxval", None)
    if getauxval is None:
        return {}
    getauxval.restype, getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    return {name: bool(getauxval(entry) & bit) for name, (entry, bit) in _HWCAPS.items()}


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

if TARGET == "neon" and config.CPU_FEATURES is None:
    # Otherwise numba compiles for what LLVM knows, and ends the process at an unknown instruction.
    known = binding.FeatureMap(host_features() | {"dotprod": True})
    config.CPU_FEATURES = known.flatten()
