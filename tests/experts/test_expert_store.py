"""The expert store: the right bytes, whatever is in RAM, however they come and whatever fails."""

import ctypes
import errno
import mmap
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.expert_files import Experts, fetch

from q4run.disk.methods import METHODS, ReadMethod
from q4run.disk.speed import N_READERS
from q4run.errors import Error
from q4run.experts import filling, transfers
from q4run.experts import readers as readers_module
from q4run.experts.filling import cut_into_pieces
from q4run.experts.policies import DEFAULT_CACHE
from q4run.experts.store import ExpertStore

N_EXPERT = 6
PAGE = 4096


@pytest.fixture(scope="module", params=[32, 4096])
def experts(request, tmp_path_factory) -> Experts:
    """Files of both alignments that GGUF models come with."""
    return Experts(tmp_path_factory.mktemp("experts"), request.param)


@pytest.fixture(params=METHODS)
def method_name(request) -> str:
    return request.param


@pytest.fixture
def open_store(method_name) -> Iterator:
    """Makes stores over ``Experts``, and closes them."""
    stores = []

    def make(experts: Experts, n_slots: int, method=None, cache=DEFAULT_CACHE) -> ExpertStore:
        method = method or METHODS[method_name](experts.paths)
        stores.append(ExpertStore(experts.layout, n_slots, method, cache))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def small_pieces(monkeypatch) -> None:
    """An expert takes several reads, of 8 KiB at most instead of 2 MiB."""
    monkeypatch.setattr(filling, "PIECE_BYTES", 2 * PAGE)
    monkeypatch.setattr(transfers, "PIECE_BYTES", 2 * PAGE)


def resident(store: ExpertStore, layer: int, n_expert: int = N_EXPERT) -> list[int]:
    """Which experts of a layer are in RAM, without touching the order of their use."""
    return [expert for expert in range(n_expert) if (layer, expert) in store.slots._slot_of]


def wait_until(condition) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("waited for a minute")


def all_reads_are_over(store: ExpertStore) -> bool:
    """Though the store may not have counted them yet."""
    left = sum(fill.reads_left for fill in store.transfers._fills.values())
    return store.transfers._readers.arrived.qsize() == left


# The right bytes.


@pytest.mark.parametrize("n_slots", [1, 2, 15])
def test_every_expert_arrives_exactly(experts, open_store, n_slots):
    store = open_store(experts, n_slots)
    for layer, n_expert in ((0, 6), (2, 6), (3, 3)):
        fetch(experts, store, layer, list(range(n_expert)))
        for expert in range(n_expert):
            fetch(experts, store, layer, [expert])


def test_experts_of_several_reads_arrive_exactly(experts, open_store, small_pieces):
    store = open_store(experts, 3)
    for layer, n_expert in ((2, 6), (3, 3), (0, 6)):
        fetch(experts, store, layer, list(range(n_expert)))


@pytest.mark.parametrize("n_slots", [1, 2, 4, 14, 15])
def test_random_requests(experts, open_store, small_pieces, n_slots):
    store = open_store(experts, n_slots)
    rng = np.random.default_rng(n_slots)
    for _ in range(120):
        layer, n_expert = [(0, 6), (2, 6), (3, 3)][rng.integers(3)]
        wanted = rng.permutation(n_expert)[: rng.integers(1, n_expert + 1)].tolist()
        before = store.counters.hits, store.counters.misses
        in_ram = set(resident(store, layer))
        fetch(experts, store, layer, wanted)
        hits = len(in_ram & set(wanted))
        after = store.counters.hits, store.counters.misses
        assert after == (before[0] + hits, before[1] + len(wanted) - hits)
        assert len(store.slots._slot_of) <= n_slots
        assert not store.slots._pinned
    if n_slots == 15:
        assert store.counters.misses == 15  # all that there are, once


def test_random_requests_that_end_early(experts, open_store, small_pieces):
    """Bytes, slots and pins stay right however each request is left."""
    store = open_store(experts, 4)
    rng = np.random.default_rng(9)
    for _ in range(150):
        layer, n_expert = [(0, 6), (2, 6), (3, 3)][rng.integers(3)]
        wanted = rng.permutation(n_expert)[: rng.integers(1, n_expert + 1)].tolist()
        stop_after = rng.integers(0, n_expert + 1)
        with store.request(layer, wanted) as request:
            for count, ready in enumerate(request):
                if count == stop_after:
                    break
                for expert in ready:
                    experts.check(layer, expert, store.addresses(layer)[expert])
        assert not store.slots._pinned
        assert len(store.slots._free) + len(store.slots._slot_of) == 4
        for key in store.slots._slot_of:  # what is called resident holds its bytes
            experts.check(*key, store.slots.addresses[key])


def test_a_request_for_nothing(experts, open_store):
    store = open_store(experts, 1)
    assert fetch(experts, store, 0, []) == [[]]
    assert (store.counters.hits, store.counters.misses) == (0, 0)


# Counters.


def test_counters(experts, open_store, method_name):
    store = open_store(experts, 4)
    fetch(experts, store, 0, [0, 1])
    assert (store.counters.hits, store.counters.misses) == (0, 2)
    first = store.counters.bytes_read
    fetch(experts, store, 0, [1, 2])
    assert (store.counters.hits, store.counters.misses) == (1, 3)
    fetch(experts, store, 0, [0, 1, 2])
    assert (store.counters.hits, store.counters.misses) == (4, 3)
    assert 0 < first < store.counters.bytes_read
    if store.transfers._method.alignment == 1:
        assert store.counters.bytes_read == 3 * experts.expert_bytes(0)
    else:  # direct reads are widened to whole pages
        assert method_name == "direct"
        assert store.counters.bytes_read % PAGE == 0
        widened = store.counters.bytes_read - 3 * experts.expert_bytes(0)
        assert 0 < widened <= 9 * 2 * PAGE
    assert store.counters.read_s > 0
    assert store.counters.wait_s >= 0


def test_aligned_experts_are_read_without_waste(open_store, tmp_path):
    experts = Experts(tmp_path, 4096)
    store = open_store(experts, 2)
    fetch(experts, store, 2, [3, 5])
    assert store.counters.bytes_read == 2 * experts.expert_bytes(2) == 2 * 3 * 24576


# Which experts stay.


def test_the_least_recently_used_expert_goes(experts, open_store):
    store = open_store(experts, 3)
    for expert in (0, 1, 2):
        fetch(experts, store, 0, [expert])
    assert resident(store, 0) == [0, 1, 2]
    fetch(experts, store, 0, [0])  # a hit renews it
    fetch(experts, store, 0, [3])
    assert resident(store, 0) == [0, 2, 3]
    fetch(experts, store, 0, [4])
    assert resident(store, 0) == [0, 3, 4]
    fetch(experts, store, 2, [0])  # all layers share the slots
    assert (resident(store, 0), resident(store, 2)) == ([3, 4], [0])


def test_experts_of_one_request_do_not_evict_each_other(experts, open_store):
    """While hits are unused they stay, though they are the oldest."""
    store = open_store(experts, 3)
    fetch(experts, store, 0, [0, 1])
    lists = fetch(experts, store, 0, [5, 1, 4, 0])
    assert store.counters.hits == 2
    assert lists[0] == [1, 0]  # those in RAM come first, all at once
    assert [] not in lists


def test_experts_in_use_keep_their_bytes(experts, open_store):
    """All other slots are refilled while a list of experts is held."""
    store = open_store(experts, 3)
    fetch(experts, store, 0, [0, 1])
    with store.request(0, [0, 1, 2, 3, 4, 5]) as request:
        for ready in request:
            wait_until(lambda: all_reads_are_over(store))
            for expert in ready:
                experts.check(0, expert, store.addresses(0)[expert])


# Failures.


def assert_usable(experts: Experts, store: ExpertStore, layer: int, good: list[int]) -> None:
    """No slot is lost or pinned, and experts that can be read still can."""
    assert not store.slots._pinned
    assert len(store.slots._free) + len(store.slots._slot_of) == store.slots.n_slots
    fetch(experts, store, layer, good)
    assert resident(store, layer) == sorted(good)
    misses = store.counters.misses
    fetch(experts, store, layer, good)
    assert store.counters.misses == misses


@pytest.mark.parametrize("n_slots", [1, 3])
@pytest.mark.parametrize("alignment", [32, 4096])
def test_a_file_that_becomes_shorter_is_an_error(open_store, tmp_path, n_slots, alignment):
    experts = Experts(tmp_path, alignment)
    store = open_store(experts, n_slots)
    fetch(experts, store, 3, [2])
    down = experts.tensors["blk.2.ffn_down_exps.weight"]
    os.truncate(down.path, down.offset + 24576 + 100)  # in the middle of expert 1's last matrix
    for wanted in ([1], [1, 2, 3], [5, 4]):
        with (
            pytest.raises(Error, match="could not be read"),
            store.request(2, wanted) as request,
        ):
            for _ in request:
                pass
        assert not {1, 2, 3, 4, 5} & set(resident(store, 2))
    assert_usable(experts, store, 3, [0, 1, 2][:n_slots])


def read_on(method: ReadMethod, path: Path, target: memoryview) -> None:
    for _ in range(1000):
        method.read(path, 0, target)


@pytest.mark.parametrize("method_name", METHODS)
def test_a_file_cut_off_in_the_middle_of_a_read_is_an_error(method_name, tmp_path):
    """Not a dead process, as it would be if the bytes were taken from a map."""
    path = tmp_path / "file"
    content = np.random.default_rng(1).bytes(2000 * PAGE)
    with mmap.mmap(-1, len(content)) as memory, memoryview(memory) as target:
        for attempt in range(20):
            path.write_bytes(content)
            method = METHODS[method_name]([path])
            cut = threading.Thread(target=os.truncate, args=(path, 7 * PAGE * attempt))
            cut.start()
            with pytest.raises(EOFError, match="became shorter"):
                read_on(method, path, target)
            cut.join()
            method.close()


def test_reading_after_closing_is_an_error(experts, open_store):
    method = METHODS["pread"](experts.paths)
    store = open_store(experts, 2, method)
    fetch(experts, store, 0, [0])
    method.close()
    with pytest.raises(Error, match="could not be read"):
        fetch(experts, store, 0, [0, 1])
    assert resident(store, 0) == [0]


class Scripted:
    """Reads that succeed, fail or wait, as the test decides."""

    alignment = 1

    def __init__(self, experts: Experts) -> None:
        self._contents = experts.contents
        self.bad_offsets: set[int] = set()
        self.gate = threading.Event()
        self.gate.set()
        self.under_way = 0
        self._lock = threading.Lock()

    def read(self, path: Path, offset: int, target: memoryview) -> None:
        with self._lock:
            self.under_way += 1
        assert self.gate.wait(timeout=60)
        if offset in self.bad_offsets:
            with self._lock:
                self.under_way -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        target[:] = self._contents[path][offset : offset + len(target)]
        with self._lock:
            self.under_way -= 1

    def close(self) -> None:
        pass


@pytest.fixture
def scripted(experts, small_pieces, monkeypatch) -> Iterator[tuple[Scripted, ExpertStore]]:
    """All reads that there are slots for begin at once."""
    monkeypatch.setattr(transfers, "_ENOUGH_READS", 1000)
    method = Scripted(experts)
    store = ExpertStore(experts.layout, 3, method)
    yield method, store
    method.gate.set()
    store.close()


@pytest.mark.parametrize("matrix", [0, 1, 2])
def test_a_failed_read_names_its_cause_and_loses_nothing(experts, scripted, matrix):
    method, store = scripted
    fetch(experts, store, 2, [4])
    slot = np.empty(experts.layout.slot_bytes, np.uint8)
    reads = cut_into_pieces(experts.layout.layers[2][matrix], 1, slot)
    assert len(reads) > 2
    method.bad_offsets = {reads[1].offset}
    yielded: list[int] = []

    def take_all() -> None:
        with store.request(2, [0, 1, 2, 3, 4, 5]) as request:
            for ready in request:
                for expert in ready:
                    experts.check(2, expert, store.addresses(2)[expert])
                    yielded.append(expert)

    with pytest.raises(Error, match=r"could not be read: .*Input/output error.*part1"):
        take_all()
    assert yielded[0] == 4
    assert 1 not in yielded
    assert method.under_way == 0
    for key in store.slots._slot_of:
        experts.check(*key, store.slots.addresses[key])
    method.bad_offsets = set()
    assert_usable(experts, store, 2, [1, 2, 3])


def test_leaving_early_waits_for_reads_under_way(experts, scripted):
    method, store = scripted
    method.gate.clear()
    with store.request(2, [0, 1, 2, 3]):
        threading.Timer(0.2, method.gate.set).start()
    assert method.gate.is_set()
    assert method.under_way == 0
    assert resident(store, 2) == [0, 1, 2]  # as many as were begun
    assert_usable(experts, store, 2, [0, 1, 2])


def test_a_wait_is_told_of_and_can_be_ended(experts, scripted):
    method, store = scripted
    method.gate.clear()
    told: list[float] = []

    def hear(seconds: float) -> None:
        told.append(seconds)
        if len(told) == 3:
            raise KeyboardInterrupt

    store.events.tell_of_waits(hear)
    with pytest.raises(KeyboardInterrupt), store.request(2, [0, 1]) as request:
        for _ in request:
            pass
    assert told == sorted(told)
    assert told[0] > 0
    assert not store.slots._pinned
    store.events.tell_of_waits(lambda seconds: None)
    method.gate.set()
    assert_usable(experts, store, 2, [0, 1, 4])


def test_closing_leaves_behind_what_does_not_answer(experts, monkeypatch):
    monkeypatch.setattr(readers_module, "_PATIENCE_S", 0.2)
    method = Scripted(experts)
    method.close = lambda: pytest.fail("a file that is being read was closed")
    store = ExpertStore(experts.layout, 3, method)
    method.gate.clear()
    store.ahead.expect([(2, 0), (2, 1)])
    store.ahead.go_on()
    while not method.under_way:
        time.sleep(0.01)
    store.close()
    assert method.under_way
    method.gate.set()
    for thread in store.transfers._readers._threads:
        thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in store.transfers._readers._threads)


def test_an_exception_while_an_expert_is_used_keeps_that_expert(experts, scripted):
    _, store = scripted

    def fail_at_work() -> None:
        with store.request(2, [5]) as request:
            for ready in request:
                if ready:
                    raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_at_work()
    assert resident(store, 2) == [5]
    misses = store.counters.misses
    fetch(experts, store, 2, [5])
    assert store.counters.misses == misses
    assert_usable(experts, store, 2, [0, 1, 2])


def test_reads_leave_before_the_first_expert_is_asked_for(experts, scripted):
    method, store = scripted
    method.gate.clear()
    with store.request(2, [0, 1]) as request:
        wait_until(lambda: method.under_way == N_READERS)  # all of them wait at the gate
        method.gate.set()
        assert sorted(expert for ready in request for expert in ready) == [0, 1]


def test_the_first_list_does_not_wait_for_the_disk(experts, scripted):
    """What is in RAM, perhaps nothing, comes at once: there is other work than experts."""
    method, store = scripted
    for in_ram in ([], [2], [2, 1]):
        fetch(experts, store, 2, in_ram)
        method.gate.clear()
        with store.request(2, [1, 2, 0]) as request:
            ready = next(iter(request))
            assert not method.gate.is_set()
            assert sorted(ready) == sorted(in_ram)
            for expert in ready:
                experts.check(2, expert, store.addresses(2)[expert])
            method.gate.set()
        fetch(experts, store, 0, [0, 1, 2])  # empties the slots


def test_experts_that_are_complete_come_together(experts, scripted):
    method, store = scripted
    with store.request(2, [3, 0, 5]) as request:
        lists = iter(request)
        assert next(lists) == []
        wait_until(lambda: all_reads_are_over(store))
        assert sorted(next(lists)) == [0, 3, 5]
        assert next(lists, None) is None
    assert method.under_way == 0


def test_a_second_request_that_finds_no_slot_is_told(experts, scripted):
    """Skipping its experts silently would leave their outputs unset."""
    _, store = scripted
    with (
        store.request(2, [0, 1, 2]),
        pytest.raises(RuntimeError, match="no slot"),
        store.request(2, [3]) as second,
    ):
        list(second)


# Opening and closing.


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts open files in /proc")
def test_closing_lets_go_of_files_and_threads(experts, method_name):
    before = open_files()
    store = ExpertStore(experts.layout, 2, METHODS[method_name](experts.paths))
    fetch(experts, store, 0, [0, 1, 2])
    assert open_files() > before
    store.close()
    assert open_files() == before
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("q4run-read")]
    store.close()  # a second time changes nothing


def test_systems_without_preadv_read_the_same(experts, monkeypatch):
    monkeypatch.delattr(os, "preadv")
    store = ExpertStore(experts.layout, 2, METHODS["pread"](experts.paths))
    fetch(experts, store, 0, [0, 1, 2, 3])
    store.close()


@pytest.mark.parametrize("method_name", ["pread", "mmap"])
@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="this system has no posix_fadvise")
def test_what_is_read_leaves_the_page_cache_where_it_is_to(tmp_path, method_name):
    path = tmp_path / "file"
    path.write_bytes(bytes(64 * PAGE))
    for keep_cached in (True, False):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        method = METHODS[method_name]([path], keep_cached=keep_cached)
        buffer = bytearray(8 * PAGE)
        method.read(path, 16 * PAGE, memoryview(buffer))
        method.close()
        in_cache = cached_pages(path)
        if in_cache is None:
            pytest.skip("mincore cannot be asked here")
        assert in_cache[16:24] == [keep_cached] * 8


def cached_pages(path: Path) -> list[bool] | None:
    """Which pages of a file the page cache holds, by mincore."""
    library = ctypes.CDLL(None, use_errno=True)
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        n_pages = len(mapped) // PAGE
        states = (ctypes.c_ubyte * n_pages)()
        address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
        failed = library.mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(mapped)), states)
    return None if failed else [bool(state & 1) for state in states]


def test_a_file_that_is_gone_cannot_be_opened(method_name, tmp_path):
    with pytest.raises(OSError, match="nowhere"):
        METHODS[method_name]([tmp_path / "nowhere"])


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="no tmpfs to write to")
def test_direct_reads_work_on_a_file_system_in_memory(tmp_path):
    folder = Path("/dev/shm") / f"q4run-test-{os.getpid()}"
    folder.mkdir()
    try:
        experts = Experts(folder, 32)
        store = ExpertStore(experts.layout, 2, METHODS["direct"](experts.paths))
        fetch(experts, store, 0, [0, 1, 2, 3, 4, 5])
        store.close()
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


@pytest.mark.skipif(not hasattr(os, "O_DIRECT"), reason="only Linux opens files for direct reads")
def test_where_direct_reads_are_refused_buffered_ones_serve(experts, monkeypatch):
    system_open = os.open

    def refuse_direct(path, flags, *rest):
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL), str(path))
        return system_open(path, flags, *rest)

    monkeypatch.setattr(os, "open", refuse_direct)
    method = METHODS["direct"](experts.paths)
    assert method.alignment == 1
    store = ExpertStore(experts.layout, 2, method)
    fetch(experts, store, 0, [0, 1, 2])
    assert store.counters.bytes_read == 3 * experts.expert_bytes(0)
    store.close()
