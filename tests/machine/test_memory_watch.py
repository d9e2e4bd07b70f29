"""The cache shrinks as memory becomes short, and grows again."""

import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest

from q4run.bench.measure.limits import inside, memory_cgroup
from q4run.bench.models.synthetic import Geometry, write_model
from q4run.errors import Error
from q4run.experts.policies import POLICIES
from q4run.experts.slots import Slots
from q4run.machine.huge_pages import empty_bytes, give_back
from q4run.machine.memory_watch import MemoryWatch

SLOT = 1_000_000


class Machine:
    """Some memory, and seconds that pass."""

    def __init__(self) -> None:
        self.free, self.seconds = 10_000 * SLOT, 0.0

    def watch(self, n_slots: int, slot_bytes: int = SLOT) -> MemoryWatch:
        return MemoryWatch(n_slots, slot_bytes, lambda: self.free, lambda: self.seconds)


def reserve(watch: MemoryWatch) -> int:
    return watch._reserve


def test_enough_memory_changes_nothing():
    machine = Machine()
    watch = machine.watch(20)
    for _ in range(10):
        machine.seconds += 2
        assert watch.slots_allowed(20) == 20


def test_just_so_many_slots_go_as_are_missing():
    machine = Machine()
    watch = machine.watch(20)
    for short, left in [(1, 19), (SLOT, 19), (SLOT + 1, 18), (7 * SLOT, 13), (19 * SLOT, 1)]:
        machine.seconds += 2
        machine.free = reserve(watch) - short
        assert watch.slots_allowed(20) == left
    machine.seconds += 2
    machine.free = 0
    assert watch.slots_allowed(3) == 1  # the last one stays
    machine.seconds += 2
    assert watch.slots_allowed(0) == 0


def test_memory_is_looked_at_once_a_second():
    machine = Machine()
    watch = machine.watch(20)
    machine.free = 0
    assert watch.slots_allowed(20) == 20
    machine.seconds += 1
    assert watch.slots_allowed(20) == 1
    machine.free = 10_000 * SLOT
    assert watch.slots_allowed(1) == 1
    machine.seconds += 1
    assert watch.slots_allowed(1) == 2


def test_it_grows_one_by_one_to_what_it_was_and_does_not_flap():
    machine = Machine()
    watch = machine.watch(6)
    n_slots, sizes = 1, []
    machine.free = reserve(watch) + 4 * SLOT + 1
    for _ in range(8):
        machine.seconds += 1
        allowed = watch.slots_allowed(n_slots)
        machine.free -= (allowed - n_slots) * SLOT
        n_slots = allowed
        sizes.append(n_slots)
    assert sizes == [2, 3, 4, 4, 4, 4, 4, 4]  # the next would leave hardly more than the reserve
    machine.free += 100 * SLOT
    for _ in range(3):
        machine.seconds += 1
        n_slots = watch.slots_allowed(n_slots)
    assert n_slots == 6


@pytest.fixture
def slots():
    slots = Slots(6, 3 << 20, 2, 8, POLICIES["lru"](2, 8))
    for expert in range(6):
        slots.claim((0, expert))
        slots.bytes_of((0, expert))[:] = expert + 1
        slots.filled((0, expert))
    return slots


def test_slots_go_by_the_policy_and_take_their_memory_along(slots):
    rss = psutil.Process().memory_info().rss
    slots.resize(2)
    assert slots.n_slots == 2
    assert sorted(slots._slot_of) == [(0, 4), (0, 5)]
    assert np.flatnonzero(slots.addresses[0]).tolist() == [4, 5]
    assert (slots.bytes_of((0, 4)) == 5).all()
    if sys.platform == "linux":
        assert rss - psutil.Process().memory_info().rss > 9 << 20
    slots.resize(4)
    assert slots.n_slots == 4
    for expert in (6, 7):
        assert slots.claim((1, expert))
        slots.bytes_of((1, expert))[:] = 9
        slots.filled((1, expert))
    assert len(slots._slot_of) == 4
    slots.resize(100)
    assert slots.n_slots == 6


def test_what_is_in_use_or_on_its_way_stays(slots):
    slots.pin((0, 0))
    slots.resize(4)
    assert slots.claim((1, 0))  # on its way
    slots.resize(1)
    assert sorted(slots._slot_of) == [(0, 0), (1, 0)]
    assert slots.n_slots == 2
    slots.unpin((0, 0))
    slots.resize(1)
    assert sorted(slots._slot_of) == [(1, 0)]


def test_only_whole_pages_are_given_back():
    array = empty_bytes(10 * 4096)
    array[:] = 7
    give_back(array, 4096 * 2 - 1, 4096 * 4 + 1)
    assert (array[: 4096 * 2] == 7).all()
    assert (array[4096 * 4 :] == 7).all()
    give_back(array, 10, 20)
    assert (array[: 4096 * 2] == 7).all()
    give_back(np.ones(4096 * 3, np.uint8), 0, 4096 * 3)  # of other memory: nothing


PROGRAM = """
    import sys, numpy as np, q4run
    path, budget = sys.argv[1:]
    with q4run.load(path, int(budget), context=4096) as model:
        heard = []
        model.tell_of_slots(heard.append)
        model.session.feed(list(range(300)))  # every slot is in use
        total, token = 0.0, 4
        print("ready", model.plan.n_slots, flush=True)
        while not sys.stdin.readline().startswith("end"):
            for _ in range(30):
                total += float(model.session.step(token % 300).sum(dtype=np.float64))
                token += 1
            print(model.store.slots.n_slots, flush=True)
        print(repr(total), heard)
"""


def test_a_limit_that_is_lowered_shrinks_the_cache(tmp_path):
    """And the process lives, computes the same, and takes the memory again when it may."""
    path = tmp_path / "model.gguf"
    write_model(path, Geometry(4, 256, 4, 2, 64, 2048, 16, 300), "q8_0", expert_type="q8_0")
    limit = 1_000_000_000
    program = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(path), "100000000"]
    try:
        with memory_cgroup(limit) as group:
            process = subprocess.Popen(
                inside(group, program), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            with process:
                slots, planned = watch_it_shrink(process, group, limit)
    except Error as error:
        pytest.skip(str(error))
    assert process.returncode == 0
    assert min(slots) < planned
    assert slots[-1] > min(slots)


def watch_it_shrink(process, group: Path, limit: int) -> tuple[list[int], int]:
    assert process.stdin
    assert process.stdout
    planned = int(process.stdout.readline().split()[1])
    limit_file, usage_file = (
        next(file for name in names if (file := group / name).exists())
        for names in (
            ("memory.max", "memory.limit_in_bytes"),
            ("memory.current", "memory.usage_in_bytes"),
        )
    )
    slots = []
    lowered = True
    for _ in range(60):
        if lowered:  # by an administrator who takes away what is not in use, again and again
            with suppress(OSError):
                limit_file.write_text(str(int(usage_file.read_text()) + (16 << 20)))
        time.sleep(0.4)
        process.stdin.write("go on\n")
        process.stdin.flush()
        slots.append(int(process.stdout.readline()))
        if lowered and slots[-1] < planned - 4:
            lowered = False
            limit_file.write_text(str(limit))
        elif not lowered and slots[-1] > min(slots):
            break
    process.stdin.write("end\n")
    process.stdin.flush()
    assert process.stdout.readline()
    return slots, planned
