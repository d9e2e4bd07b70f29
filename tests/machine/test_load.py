"""What other programs take of the machine, against programs that do."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from q4run.machine import load
from q4run.machine.load import Load, Watch

BUSY_LOOP = "import time\nend = time.time() + 20\nwhile time.time() < end: pass"


@pytest.fixture
def clock(monkeypatch):
    """Lets a watch see these: seconds, of all work, of own work, bytes moved, own bytes."""

    def show(*figures: float) -> None:
        monkeypatch.setattr(Watch, "_now", lambda watch: figures)

    monkeypatch.setattr(psutil, "cpu_count", lambda: 4)
    show(0, 0, 0, 0, 0)
    return show


def test_shares(clock):
    watch = Watch()
    clock(2, 5, 1, 1000, 250)
    assert watch.load() == Load(cpu=0.5, disk=0.75)
    clock(2, 1, 1.1, 1000, 1010)  # counters of the system are rougher than a process's own
    assert watch.load() == Load()
    clock(0, 0, 0, 0, 0)
    assert watch.load() == Load()


def test_the_higher_of_two():
    assert Load(0.5, 0.1) | Load(0.2, 0.3) == Load(0.5, 0.3)
    assert Load(0.5, 0.0).is_high
    assert Load(0.0, 0.5).is_high
    assert not Load(0.05, 0.05).is_high


def test_other_programs_are_seen(tmp_path):
    loops = [subprocess.Popen([sys.executable, "-c", BUSY_LOOP]) for _ in range(os.cpu_count())]
    try:
        watch = Watch(tmp_path)
        time.sleep(1)
        assert watch.load().cpu > 0.5
    finally:
        for one in loops:
            one.kill()
            one.wait()


def test_own_work_is_told_apart():
    watch = Watch()
    begin, began = watch._now(), time.process_time()
    while time.process_time() < began + 0.5:
        pass
    _, work, own, *_ = (now - before for now, before in zip(watch._now(), begin, strict=True))
    assert 0.4 < own < 0.8
    assert work > 0.4


def test_a_disk_without_statistics_has_no_load(monkeypatch, tmp_path):
    monkeypatch.setattr(load, "_disk_bytes", lambda device: None)
    assert Watch(tmp_path).load().disk == 0


@pytest.mark.skipif(not Path("/proc/diskstats").exists(), reason="this system has no such file")
def test_a_disk_is_found_by_its_number():
    numbers = Path("/proc/diskstats").read_text().split()[:2]
    assert load._disk_bytes(os.makedev(*map(int, numbers))) >= 0
    assert load._disk_bytes(os.makedev(4000, 77)) is None
