"""Which instructions the kernels use: chosen once, from the machine or from ``Q4RUN_SIMD``."""

import ctypes
import os
import platform
import sys

from llvmlite import binding
from numba.core import config

TARGETS = ("avx512vnni", "avx2", "i8mm", "neon", "generic")
# What an Arm processor must have for each target. Where Linux tells a process: the entry of the
# auxiliary vector and the bit in it (the kernel's "arm64/elf_hwcaps"); where macOS does.
_ARM_NEEDS = {"i8mm": ("dotprod", "i8mm"), "neon": ("dotprod",)}
_HWCAPS = {"dotprod": (16, 1 << 20), "i8mm": (26, 1 << 13)}
_SYSCTLS = {"dotprod": b"hw.optional.arm.FEAT_DotProd", "i8mm": b"hw.optional.arm.FEAT_I8MM"}


def available_targets() -> list[str]:
    """The targets this machine can run, best first."""
    features = host_features()
    machine = platform.machine().lower()
    found = []
    if machine in ("x86_64", "amd64") and all(map(features.get, ("avx2", "fma", "f16c"))):
        if features.get("avx512vnni") and features.get("avx512vl"):
            found.append("avx512vnni")
        found.append("avx2")
    if machine in ("arm64", "aarch64"):
        features |= {name: True for name, has in _arm_extensions().items() if has}
        found += [name for name, needs in _ARM_NEEDS.items() if all(map(features.get, needs))]
    return [*found, "generic"]


def host_features() -> dict[str, bool]:
    """The processor's extensions by LLVM's names, as far as they are known."""
    try:
        return dict(binding.get_host_cpu_features())
    except RuntimeError:  # LLVM cannot tell on every system
        return {}


def _arm_extensions() -> dict[str, bool]:
    """What the system tells of an Arm processor: LLVM goes by names and ``/proc/cpuinfo``."""
    library = ctypes.CDLL(None)
    if sys.platform == "darwin":
        # Every Mac with an Arm processor has the dot product.
        return {name: _sysctl(library, key) for name, key in _SYSCTLS.items()} | {"dotprod": True}
    getauxval = getattr(library, "getauxval", None)
    if getauxval is None:
        return {}
    getauxval.restype, getauxval.argtypes = ctypes.c_ulong, [ctypes.c_ulong]
    return {name: bool(getauxval(entry) & bit) for name, (entry, bit) in _HWCAPS.items()}


def _sysctl(library: ctypes.CDLL, name: bytes) -> bool:
    """A setting of macOS that is 0 or 1, or missing."""
    function = getattr(library, "sysctlbyname", None)
    value, size = ctypes.c_int(0), ctypes.c_size_t(ctypes.sizeof(ctypes.c_int))
    if function is None or function(name, ctypes.byref(value), ctypes.byref(size), None, 0):
        return False
    return value.value != 0


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

if TARGET in _ARM_NEEDS and config.CPU_FEATURES is None:
    # Otherwise numba compiles for what LLVM knows, and ends the process at an unknown instruction.
    needed = dict.fromkeys(_ARM_NEEDS[TARGET], True)
    config.CPU_FEATURES = binding.FeatureMap(host_features() | needed).flatten()
