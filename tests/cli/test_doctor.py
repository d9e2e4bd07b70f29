"""``q4run doctor``: what the machine offers, and what is to be done about it."""

import json
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.commands import assert_one_error_line, invoke
from helpers.gguf_builder import Builder

from q4run.cli.private import without_names
from q4run.disk.speed import FEWEST_BYTES
from q4run.errors import Error, FormatError
from q4run.inspection.disk import describe_disk
from q4run.inspection.findings import find
from q4run.inspection.kernel_cache import describe_kernel_cache
from q4run.inspection.machine import describe_machine
from q4run.kernels.compiling.compile import CACHE_FOLDER

SOUND = {
    "simd": {"target": "avx2", "available": ["avx2", "generic"]},
    "cores": {"physical": 4, "usable": 8, "quota": None},
    "threads": {"default": 4},
    "kernel_cache": {
        "folder": "/cache",
        "writable": True,
        "kernels": 100,
        "usable": 100,
        "bytes": 10**7,
        "others": 3,
        "other_bytes": 10**8,
    },
    "memory": {"machine": 32 * 10**9, "limit": None, "total": 32 * 10**9, "available": 10**10},
    "swap": {"total": 8 * 10**9, "used": 10**8},
    "power": {"battery": None, "low_power": False, "governor": "performance"},
    "disk": {"traits": [], "direct_io": True, "read_bytes_s": {"direct": 2 * 10**9}},
}


def doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "q4run", "doctor", *arguments]
    env = os.environ | environment
    return subprocess.run(command, env=env, capture_output=True, text=True, check=False)


@pytest.fixture
def blob(tmp_path: Path) -> Path:
    """A file large enough to be measured."""
    path = tmp_path / "blob.bin"
    with path.open("wb") as file:
        for _ in range(FEWEST_BYTES >> 20):
            file.write(os.urandom(1 << 20))
        os.fsync(file.fileno())
    return path


def test_it_names_the_target_and_the_threads(tmp_path):
    done = doctor("--json", str(tmp_path))
    assert done.returncode == 0, done.stderr
    machine = json.loads(done.stdout)
    assert machine["simd"]["target"] in machine["simd"]["available"]
    assert 1 <= machine["threads"]["default"] <= machine["cores"]["usable"]
    assert machine["threads"]["layer"] == "q4run"
    assert machine["memory"]["available"] <= machine["memory"]["total"]
    assert machine["memory"]["total"] <= machine["memory"]["machine"]
    assert machine["swap"]["used"] <= machine["swap"]["total"]
    assert machine["versions"]["python"] == sys.version.split()[0]
    assert {"q4run", "numpy", "numba", "llvmlite", "gguf", "tokenizers"} <= set(machine["versions"])
    assert machine["disk"]["read_bytes_s"] is None
    assert "no file of 64 MB" in machine["disk"]["why_not_measured"]
    assert all(set(entry) == {"finding", "advice"} for entry in machine["findings"])


def test_a_forced_target_is_told_and_what_it_costs():
    done = doctor(Q4RUN_SIMD="generic")
    assert done.returncode == 0, done.stderr
    assert "SIMD target   generic" in done.stdout
    if len(describe_machine()["simd"]["available"]) > 1:
        assert "many times faster" in " ".join(done.stdout.split())


def test_a_cache_that_cannot_be_kept_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    done = doctor(Q4RUN_CACHE=str(tmp_path / "file"))
    assert done.returncode == 0, done.stderr
    assert "compiled anew at each start" in done.stdout
    assert "not writable" in " ".join(done.stdout.split())


def test_the_text_tells_nobodys_name(tmp_path):
    home = tmp_path / "marie.curie"
    models = home / "models"
    models.mkdir(parents=True)
    environment = {"HOME": str(home), "USER": "marie.curie", "LOGNAME": "marie.curie"}
    environment["Q4RUN_CACHE"] = str(home / "cache")
    for arguments in ([str(models)], [str(models), "--json"]):
        done = doctor(*arguments, **environment)
        assert done.returncode == 0, done.stderr
        assert "curie" not in done.stdout
        assert "~/models" in done.stdout
        assert "~/cache/kernels" in done.stdout
        if len(platform.node()) > 3:
            assert platform.node() not in done.stdout


def test_the_text_fits_80_columns_but_for_long_paths(tmp_path):
    lines = invoke("doctor", tmp_path).stdout.splitlines()
    assert len(lines) > 12
    assert all(len(line) <= 80 or " " not in line.strip() for line in lines)


def test_names_that_end_or_go_on_are_told_apart(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    monkeypatch.setenv("USER", "ann")
    monkeypatch.setattr(platform, "node", lambda: "lab7.example.org")
    given = {
        "home": ["/home/ann", "/home/ann/x", "(/home/ann/x)"],
        "others": ["/home/anne/x", "/srv/home/ann.old", "annual"],
        "mounts": "/media/ann/disk and /mnt/lab7/models",
        "number": 5,
    }
    shown = without_names(given)
    assert shown["home"] == ["~", "~/x", "(~/x)"]
    assert shown["others"] == ["/home/anne/x", "/srv/home/USER.old", "annual"]
    assert shown["mounts"] == "/media/USER/disk and /mnt/HOST/models"
    assert shown["number"] == 5


def test_a_folder_at_the_root_is_no_home(monkeypatch):
    monkeypatch.setenv("HOME", "/")
    monkeypatch.delenv("USER", raising=False)
    monkeypatch.delenv("LOGNAME", raising=False)
    assert without_names("/models/x") == "/models/x"


# The disk


def test_the_disk_is_measured_by_the_largest_file(blob):
    (blob.parent / "small.gguf").write_bytes(b"GGUF")
    (blob.parent / "folder").mkdir()
    disk = describe_disk(blob.parent, seconds=0.1)
    assert disk["file"] == str(blob)
    # A file system in memory has nothing to measure.
    if disk["read_bytes_s"]:
        assert all(speed > 0 for speed in disk["read_bytes_s"].values())
        assert disk["why_not_measured"] is None
    else:
        assert disk["why_not_measured"]


def test_files_that_tell_nothing_of_the_disk_are_not_read(tmp_path):
    with (tmp_path / "holes.gguf").open("wb") as file:
        file.truncate(1 << 30)
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "dangling").symlink_to(tmp_path / "absent")
    disk = describe_disk(tmp_path)
    assert disk["read_bytes_s"] is None
    assert "no file of 64 MB" in disk["why_not_measured"]


def test_a_model_is_looked_at_where_it_lies(tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(Builder().file([Builder().text("general.architecture", "llama4")]))
    disk = describe_disk(path)
    assert disk["file"] == str(path)
    assert disk["why_not_measured"]
    assert disk["file_system"]


def test_what_is_no_model_is_an_error(tmp_path):
    path = tmp_path / "text.gguf"
    path.write_text("hello")
    with pytest.raises(FormatError, match=r"text\.gguf"):
        describe_disk(path)
    with pytest.raises(Error, match="absent"):
        describe_disk(tmp_path / "absent")
    result = invoke("doctor", tmp_path / "absent")
    assert (result.exit_code, result.stdout) == (1, "")
    assert_one_error_line(result.stderr)


# Compiled kernels


def test_kernels_of_this_process_are_usable():
    cache = describe_kernel_cache()
    assert cache["folder"] == str(CACHE_FOLDER)
    assert 0 <= cache["usable"] <= cache["kernels"]
    assert (cache["kernels"] == 0) == (cache["bytes"] == 0)


def test_kernels_of_others_and_damaged_indexes_are_not_usable(tmp_path):
    folder = tmp_path / "kernels" / "mine"
    folder.mkdir(parents=True)
    (folder.parent / "other").mkdir()
    (folder.parent / "other" / "x.nbc").write_bytes(bytes(100))
    tag = f"py{sys.version_info.major}{sys.version_info.minor}"
    (folder / f"f-1.{tag}.nbi").write_bytes(b"no pickle")
    (folder / f"f-1.{tag}.1.nbc").write_bytes(bytes(10))
    (folder / "g-1.py27.nbi").write_bytes(b"")
    cache = describe_kernel_cache(folder)
    assert (cache["kernels"], cache["usable"], cache["bytes"]) == (1, 0, 19)
    assert (cache["others"], cache["other_bytes"]) == (1, 100)
    assert describe_kernel_cache(tmp_path / "absent" / "x")["kernels"] == 0


def test_a_copied_cache_counts_and_one_without_its_code_does_not(tmp_path):
    found = next((p for p in CACHE_FOLDER.rglob("*.nbi") if any(p.parent.glob("*.nbc"))), None)
    if found is None:
        pytest.skip("nothing has been compiled yet")
    folder = tmp_path / "kernels" / "mine"
    folder.mkdir(parents=True)
    shutil.copy(found, folder)
    assert describe_kernel_cache(folder)["usable"] == 0
    for code in found.parent.glob(f"{found.stem}.*.nbc"):
        shutil.copy(code, folder)
    cache = describe_kernel_cache(folder)
    assert 0 <= cache["usable"] <= cache["kernels"]


# Findings


def test_nothing_stands_in_the_way_of_a_sound_machine():
    assert find(SOUND) == []
    assert find(SOUND | {"cores": {"physical": 4, "usable": 8, "quota": 4.0}}) == []
    assert find({key: value for key, value in SOUND.items() if key != "disk"}) == []


@pytest.mark.parametrize(
    ("part", "change", "finding", "advice"),
    [
        ("simd", {"available": ["generic"], "target": "generic"}, "no SIMD", "AVX2"),
        ("simd", {"target": "generic"}, "avx2 is many times faster", "Unset Q4RUN_SIMD"),
        ("cores", {"usable": 2}, "2 of 4 cores", "taskset"),
        ("cores", {"quota": 2.5}, "the time of 2.5 of 4 cores", "--cpus"),
        ("cores", {"physical": None, "quota": 6.0}, "the time of 6 of 8 cores", "CPUQuota"),
        ("kernel_cache", {"writable": False}, "compiled anew", "Q4RUN_CACHE"),
        ("kernel_cache", {"usable": 0}, "another Python", "compiled again"),
        ("kernel_cache", {"other_bytes": 2 * 10**9}, "2.00 GB", "Delete"),
        ("memory", {"limit": 8 * 10**9}, "8.00 GB of the machine's 32.0 GB", "--memory"),
        ("memory", {"available": 10**9}, "1.00 GB of RAM is free", "--ram-budget"),
        ("swap", {"used": 4 * 10**9}, "4.00 GB of other programs'", "Close"),
        ("disk", {"traits": ["compressed"]}, "compresses", "chattr"),
        ("disk", {"traits": ["networked"]}, "network", "Copy the model"),
        ("disk", {"traits": ["overlay"]}, "container's overlay", "volume"),
        ("disk", {"traits": ["in memory"], "direct_io": False}, "in memory", "on a disk"),
        ("disk", {"traits": ["in user space"]}, "FUSE", "kernel"),
        ("disk", {"direct_io": False}, "refuses direct reads", "ext4"),
        ("disk", {"read_bytes_s": {"direct": 10**8, "pread": 2 * 10**8}}, "200 MB a second", "SSD"),
        ("power", {"battery": 55}, "battery (55 % left)", "Plug"),
        ("power", {"low_power": True, "governor": "powersave"}, "governor is powersave", "mode"),
        ("power", {"low_power": True, "governor": None}, "to save power.", "mode"),
    ],
)
def test_each_obstacle_is_found_with_what_to_do(part, change, finding, advice):
    ((found, done),) = find(SOUND | {part: SOUND[part] | change})
    assert finding in found
    assert advice in done
