"""Which SIMD target is chosen, and where what is compiled for it is kept."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from q4run.kernels.compiling import compile as kernel_compile
from q4run.kernels.compiling import target

AVX2 = {"avx2": True, "fma": True, "f16c": True}


@pytest.mark.parametrize(
    ("machine", "platform", "features", "expected"),
    [
        ("x86_64", "linux", {}, ["generic"]),
        ("x86_64", "linux", {**AVX2, "f16c": False}, ["generic"]),
        ("x86_64", "linux", AVX2, ["avx2", "generic"]),
        ("AMD64", "linux", {**AVX2, "avx512vnni": True}, ["avx2", "generic"]),
        (
            "x86_64",
            "linux",
            {**AVX2, "avx512vnni": True, "avx512vl": True},
            ["avx512vnni", "avx2", "generic"],
        ),
        ("aarch64", "linux", {"neon": True}, ["generic"]),
        ("aarch64", "linux", {"dotprod": True}, ["neon", "generic"]),
        ("aarch64", "linux", {"dotprod": True, "i8mm": True}, ["i8mm", "neon", "generic"]),
        ("aarch64", "linux", {"i8mm": True}, ["generic"]),
        ("aarch64", "linux", None, ["generic"]),
        ("arm64", "darwin", {"dotprod": True}, ["neon", "generic"]),
        ("arm64", "darwin", {"dotprod": True, "i8mm": True}, ["i8mm", "neon", "generic"]),
        ("arm64", "darwin", None, ["neon", "generic"]),
        ("x86_64", "darwin", None, ["generic"]),
        ("riscv64", "linux", {}, ["generic"]),
    ],
)
def test_what_a_machine_can_run(monkeypatch, machine, platform, features, expected):
    def get_host_cpu_features():
        if features is None:  # what llvmlite does where LLVM cannot tell
            raise RuntimeError("failed to get host cpu features.")
        return features

    monkeypatch.setattr(target.platform, "machine", lambda: machine)
    monkeypatch.setattr(target.sys, "platform", platform)
    monkeypatch.setattr(target.binding, "get_host_cpu_features", get_host_cpu_features)
    monkeypatch.setattr(target.ctypes, "CDLL", lambda name: object())  # no auxiliary vector
    assert target.available_targets() == expected


@pytest.mark.parametrize(
    ("hwcaps", "hwcaps2", "expected"),
    [
        (1 << 20, ~(1 << 13), ["neon", "generic"]),
        (1 << 20, 1 << 13, ["i8mm", "neon", "generic"]),
        (~(1 << 20), -1, ["generic"]),
    ],
)
def test_linux_itself_tells_of_arm_extensions(monkeypatch, hwcaps, hwcaps2, expected):
    """LLVM knows an Arm processor by its name, and not every name."""

    class Library:
        @staticmethod
        def getauxval(entry):
            return {16: hwcaps, 26: hwcaps2}.get(entry, 0)

    monkeypatch.setattr(target.platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(target.sys, "platform", "linux")
    monkeypatch.setattr(target.binding, "get_host_cpu_features", dict)
    monkeypatch.setattr(target.ctypes, "CDLL", lambda name: Library)
    assert target.available_targets() == expected


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ({}, ["neon", "generic"]),
        ({b"hw.optional.arm.FEAT_I8MM": 0}, ["neon", "generic"]),
        ({b"hw.optional.arm.FEAT_I8MM": 1}, ["i8mm", "neon", "generic"]),
    ],
)
def test_macos_itself_tells_of_arm_extensions(monkeypatch, known, expected):
    """Every Mac with an Arm processor has the dot product, also where LLVM is silent."""

    class Library:
        @staticmethod
        def sysctlbyname(name, value, size, new, new_size):
            assert (new, new_size) == (None, 0)
            if name not in known:
                return -1
            value._obj.value = known[name]
            return 0

    monkeypatch.setattr(target.platform, "machine", lambda: "arm64")
    monkeypatch.setattr(target.sys, "platform", "darwin")
    monkeypatch.setattr(target.binding, "get_host_cpu_features", dict)
    monkeypatch.setattr(target.ctypes, "CDLL", lambda name: Library)
    assert target.available_targets() == expected


def test_the_best_target_is_taken_unless_another_is_named(monkeypatch):
    monkeypatch.delenv("Q4RUN_SIMD", raising=False)
    assert target._choose() == target.available_targets()[0]
    monkeypatch.setenv("Q4RUN_SIMD", "")
    assert target._choose() == target.available_targets()[0]
    monkeypatch.setenv("Q4RUN_SIMD", "generic")
    assert target._choose() == "generic"


def test_an_unknown_target_is_an_error_that_lists_the_known(monkeypatch):
    monkeypatch.setenv("Q4RUN_SIMD", "sse9")
    with pytest.raises(
        ImportError, match=r"Q4RUN_SIMD=sse9 .* avx512vnni, avx2, i8mm, neon, generic"
    ):
        target._choose()


def test_a_target_of_another_machine_is_an_error(monkeypatch):
    """Compiling for it would end the process inside LLVM."""
    monkeypatch.setattr(target, "available_targets", lambda: ["avx2", "generic"])
    monkeypatch.setenv("Q4RUN_SIMD", "neon")
    with pytest.raises(ImportError, match="cannot run that; it has avx2, generic"):
        target._choose()


# Where compiled kernels are kept.


def test_each_target_has_a_cache_of_its_own():
    assert kernel_compile.CACHE_FOLDER.name.endswith(f"-{target.TARGET}")
    assert kernel_compile.CACHE_FOLDER.parent.name == "kernels"


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("Q4RUN_CACHE", str(tmp_path / "own"))
    assert kernel_compile._cache_root() == tmp_path / "own"
    monkeypatch.delenv("Q4RUN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert kernel_compile._cache_root() == tmp_path / "xdg" / "q4run"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert kernel_compile._cache_root() == Path.home() / ".cache" / "q4run"


def test_without_a_writable_cache_folder_kernels_still_compile(tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert kernel_compile._can_write(tmp_path / "new" / "folder")
    assert not kernel_compile._can_write(tmp_path / "file" / "folder")
    code = (
        "import numpy as np\n"
        "from q4run.kernels.norm import rms_norm\n"
        "out = np.empty((1, 2), np.float32)\n"
        "rms_norm(np.ones((1, 2), np.float32), np.ones(2, np.float32), np.float32(0), out)\n"
        "print(out.tolist())\n"
    )
    environment = os.environ | {"Q4RUN_CACHE": str(tmp_path / "file")}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.stdout == "[[1.0, 1.0]]\n", run.stderr
