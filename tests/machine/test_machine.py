"""What the machine says of itself: cores, file systems, power, GPUs."""

import os
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from q4run.disk.file_systems import file_system_of, takes_direct_reads, traits_of
from q4run.errors import Error
from q4run.inspection.gpus import describe_gpus, parse_nvidia_smi
from q4run.inspection.power import describe_power
from q4run.machine.cores import choose_threads, cpu_quota

Mount = namedtuple("Mount", "device mountpoint fstype opts")


@pytest.mark.parametrize(
    ("kind", "options", "traits"),
    [
        ("ext4", "rw,relatime", ()),
        ("xfs", "", ()),
        ("", "", ()),
        ("apfs", "rw,local,journaled", ()),
        ("btrfs", "rw,compress=zstd:3,ssd", ("compressed",)),
        ("btrfs", "rw,compress-force=lzo", ("compressed",)),
        ("btrfs", "rw,compress", ("compressed",)),
        ("btrfs", "rw,compress=no", ()),
        ("btrfs", "rw,ssd", ()),
        ("f2fs", "rw,compress_algorithm=lz4", ("compressed",)),
        ("zfs", "rw,xattr", ("compressed",)),
        ("squashfs", "ro", ("compressed",)),
        ("nfs4", "rw,vers=4.2", ("networked",)),
        ("CIFS", "rw", ("networked",)),
        ("9p", "rw,aname=drvfs", ("networked",)),
        ("fuse.sshfs", "rw", ("networked",)),
        ("fuse.rclone", "rw", ("networked",)),
        ("fuseblk", "rw", ("in user space",)),
        ("fuse.gocryptfs", "rw", ("in user space",)),
        ("fuse.fuse-overlayfs", "rw", ("overlay",)),
        ("overlay", "rw,lowerdir=/a:/b", ("overlay",)),
        ("tmpfs", "rw", ("in memory",)),
    ],
)
def test_traits(kind, options, traits):
    assert traits_of(kind, options) == traits


def test_the_nearest_mount_counts_and_the_last_of_equals(monkeypatch, tmp_path):
    inner = tmp_path / "models" / "big"
    inner.mkdir(parents=True)
    mounts = [
        Mount("x", "/", "ext4", "rw"),
        Mount("x", str(tmp_path / "models"), "nfs", "rw"),
        Mount("x", str(tmp_path / "model"), "zfs", "rw"),
        Mount("x", str(tmp_path / "models"), "tmpfs", "rw"),
    ]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: mounts)
    (tmp_path / "link").symlink_to(inner)
    for path in (inner, inner / "absent.gguf", tmp_path / "link", tmp_path / "models"):
        found = file_system_of(path)
        assert (found.kind, found.traits) == ("tmpfs", ("in memory",))
        assert found.mount_point == tmp_path / "models"
    assert file_system_of(tmp_path).kind == "ext4"


def test_without_a_list_of_mounts_nothing_is_known(monkeypatch, tmp_path):
    def fail(all: bool) -> list[Mount]:
        raise OSError("no /proc")

    monkeypatch.setattr(psutil, "disk_partitions", fail)
    assert (file_system_of(tmp_path).kind, file_system_of(tmp_path).traits) == ("", ())


def test_direct_reads(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(bytes(4096))
    assert takes_direct_reads(path) in (True, False, None)
    if hasattr(os, "O_DIRECT"):
        assert takes_direct_reads(tmp_path / "absent") is False
        monkeypatch.delattr(os, "O_DIRECT")
    assert takes_direct_reads(path) is None


@pytest.mark.parametrize(
    ("groups", "files", "quota"),
    [
        ("0::/", {"sys/fs/cgroup/cpu.max": "max 100000"}, None),
        ("0::/", {"sys/fs/cgroup/cpu.max": "150000 100000"}, 1.5),
        ("0::/", {"sys/fs/cgroup/cpu.max": ""}, None),
        ("0::/", {"sys/fs/cgroup/cpu.max": "5 0"}, None),
        (
            "0::/a/b",
            {
                "sys/fs/cgroup/a/b/cpu.max": "400000 100000",
                "sys/fs/cgroup/a/cpu.max": "200000 100000",
            },
            2.0,
        ),
        (
            "3:cpu,cpuacct:/x\n0::/",
            {
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "50000",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000",
            },
            0.5,
        ),
        (
            "3:cpu:/",
            {
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000",
            },
            None,
        ),
        ("3:memory:/", {}, None),
        (None, {}, None),
    ],
)
def test_the_time_that_a_container_may_use(tmp_path, groups, files, quota):
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        if text is not None:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(f"{text}\n")
    assert cpu_quota(tmp_path) == quota


@pytest.mark.parametrize(
    ("quota", "threads"),
    [("max", 4), ("10000", 1), ("100000", 1), ("200001", 3), ("400000", 4), ("1600000", 4)],
)
def test_threads_are_not_more_than_a_limit_keeps_busy(tmp_path, monkeypatch, quota, threads):
    monkeypatch.setattr("q4run.machine.cores.usable_cores", lambda: 8)
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 4)
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": f"{quota} 100000\n"}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert choose_threads(None, tmp_path) == threads
    assert choose_threads(8, tmp_path) == 8
    for wrong in (0, 9):
        with pytest.raises(Error, match="this machine gives 1 to 8"):
            choose_threads(wrong, tmp_path)


def system(root: Path, **files: str) -> Path:
    """A folder with what Linux would show under /sys."""
    places = {
        "governor": "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
        "driver": "sys/devices/system/cpu/cpu0/cpufreq/scaling_driver",
        "preference": "sys/devices/system/cpu/cpu0/cpufreq/energy_performance_preference",
        "profile": "sys/firmware/acpi/platform_profile",
    }
    for name, text in files.items():
        path = root / places[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


@pytest.mark.parametrize(
    ("files", "low"),
    [
        ({}, None),
        ({"governor": "performance"}, False),
        ({"governor": "schedutil", "driver": "acpi-cpufreq"}, False),
        ({"governor": "powersave", "driver": "acpi-cpufreq"}, True),
        ({"governor": "powersave"}, True),
        ({"governor": "powersave", "driver": "intel_pstate"}, False),
        (
            {
                "governor": "powersave",
                "driver": "intel_pstate",
                "preference": "balance_performance",
            },
            False,
        ),
        ({"governor": "powersave", "driver": "amd-pstate-epp", "preference": "power"}, True),
        ({"governor": "schedutil", "profile": "low-power"}, True),
        ({"profile": "balanced"}, False),
    ],
)
def test_power_saving_on_linux(tmp_path, monkeypatch, files, low):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr(psutil, "sensors_battery", lambda: None, raising=False)
    power = describe_power(system(tmp_path, **files))
    assert power == {"battery": None, "low_power": low, "governor": files.get("governor")}


@pytest.mark.parametrize(
    ("battery", "percent"),
    [
        (SimpleNamespace(percent=54.6, power_plugged=False), 55),
        (SimpleNamespace(percent=54.6, power_plugged=True), None),
        (SimpleNamespace(percent=54.6, power_plugged=None), None),
        (None, None),
    ],
)
def test_the_battery_counts_where_the_machine_runs_from_it(tmp_path, monkeypatch, battery, percent):
    monkeypatch.setattr(psutil, "sensors_battery", lambda: battery, raising=False)
    assert describe_power(tmp_path)["battery"] == percent


def test_systems_without_a_battery_sensor(tmp_path, monkeypatch):
    monkeypatch.delattr(psutil, "sensors_battery", raising=False)
    assert describe_power(tmp_path)["battery"] is None


def test_gpus_by_nvidia_smi():
    text = "NVIDIA H100 80GB HBM3, 81559\nGeForce, with a comma, 24564\nOdd, [N/A]\n\nNo devices\n"
    assert parse_nvidia_smi(text) == [
        {"name": "NVIDIA H100 80GB HBM3", "memory": 81559 << 20},
        {"name": "GeForce, with a comma", "memory": 24564 << 20},
        {"name": "Odd", "memory": None},
    ]


def test_gpus_by_the_driver_where_there_is_no_nvidia_smi(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert describe_gpus(tmp_path) == []
    folder = tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0"
    folder.mkdir(parents=True)
    (folder / "information").write_text("Model: \t\t NVIDIA GeForce RTX 4090\nIRQ:   \t\t 163\n")
    assert describe_gpus(tmp_path) == [{"name": "NVIDIA GeForce RTX 4090", "memory": None}]


def test_an_nvidia_smi_that_fails_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.platform", "linux")
    command = tmp_path / "nvidia-smi"
    command.write_text("#!/bin/sh\necho 'NVIDIA-SMI has failed, 9'\nexit 9\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert describe_gpus(tmp_path / "nothing") == []
    command.write_text("#!/bin/sh\necho 'NVIDIA L4, 23034'\n")
    assert describe_gpus(tmp_path) == [{"name": "NVIDIA L4", "memory": 23034 << 20}]


def test_apples(monkeypatch):
    monkeypatch.setattr("sys.platform", "darwin")
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert "Apple" in describe_gpus()[0]["name"]
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert describe_gpus() == []
