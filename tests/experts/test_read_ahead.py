"""Experts that are read before they are asked for: never in the way of those that are."""

import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.expert_files import Experts, fetch

from q4run.disk.speed import N_READERS
from q4run.errors import Error
from q4run.experts import filling, transfers
from q4run.experts.filling import Amount
from q4run.experts.readers import Fill, Readers
from q4run.experts.store import ExpertStore


class Gated:
    """Reads that wait while the gate is closed, are noted, and fail where the test says so."""

    alignment = 1

    def __init__(self, experts: Experts) -> None:
        self._contents = experts.contents
        self.gate = threading.Event()
        self.gate.set()
        self.begun: list[tuple[Path, int]] = []
        self.bad: set[tuple[Path, int]] = set()

    def read(self, path: Path, offset: int, target: memoryview) -> None:
        self.begun.append((path, offset))
        assert self.gate.wait(timeout=60)
        if (path, offset) in self.bad:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        part = self._contents[path][offset : offset + len(target)]
        np.frombuffer(target, np.uint8)[: len(part)] = part

    def close(self) -> None:
        self.gate.set()


@pytest.fixture(scope="module")
def experts(tmp_path_factory) -> Experts:
    return Experts(tmp_path_factory.mktemp("ahead"), 32)


@pytest.fixture
def open_store(experts) -> Iterator:
    stores = []

    def make(n_slots: int) -> tuple[Gated, ExpertStore]:
        method = Gated(experts)
        stores.append((method, ExpertStore(experts.layout, n_slots, method)))
        return stores[-1]

    yield make
    for method, store in stores:
        method.gate.set()
        store.close()


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch) -> None:
    """An expert takes several reads, of 8 KiB at most instead of 2 MiB."""
    monkeypatch.setattr(filling, "PIECE_BYTES", 8192)
    monkeypatch.setattr(transfers, "PIECE_BYTES", 8192)


def reads_of(experts: Experts, layer: int, expert: int) -> set[tuple[Path, int]]:
    slot = np.empty(experts.layout.slot_bytes, np.uint8)
    return {
        (piece.path, piece.offset)
        for matrix in experts.layout.layers[layer]
        for piece in filling.cut_into_pieces(matrix, expert, slot)
    }


def keys(layer: int, experts: list[int]) -> list[tuple[int, int]]:
    return [(layer, expert) for expert in experts]


def wait_until(condition) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.002)


def settle(store: ExpertStore) -> None:
    """Lets all reads come to their end, and counts them."""

    def is_over() -> bool:
        store.ahead.go_on()
        return not store.transfers._fills

    wait_until(is_over)


def present(store: ExpertStore, layer: int) -> list[int]:
    return np.flatnonzero(store.addresses(layer)).tolist()


def read_ahead(store: ExpertStore, expected: list[tuple[int, int]]) -> None:
    """What is expected is read at once, without a request."""
    store.ahead.expect(expected)
    store.ahead.go_on()


def occupy_readers(method: Gated, store: ExpertStore, expected: list[tuple[int, int]]) -> None:
    """Reads ahead until all readers wait at the gate."""
    method.gate.clear()
    read_ahead(store, expected)
    wait_until(lambda: len(method.begun) == N_READERS)


def counted(store: ExpertStore) -> tuple[int, int, int]:
    counters = store.counters
    return counters.hits, counters.misses, counters.read_ahead


def test_what_was_expected_is_there_when_asked_for(experts, open_store):
    method, store = open_store(6)
    read_ahead(store, keys(2, [4, 1]))
    settle(store)
    assert present(store, 2) == [1, 4]
    assert counted(store) == (0, 0, 0)
    n_reads = len(method.begun)
    assert fetch(experts, store, 2, [1, 4]) == [[1, 4]]
    assert len(method.begun) == n_reads
    assert counted(store) == (0, 2, 2)  # they were read for this, only earlier
    fetch(experts, store, 2, [1, 4])
    assert counted(store) == (2, 2, 2)


def test_a_request_joins_reads_that_are_under_way(experts, open_store):
    method, store = open_store(6)
    method.gate.clear()
    read_ahead(store, keys(0, [0, 3]))
    wait_until(lambda: method.begun)
    with store.request(0, [0, 1, 3]) as request:
        lists = iter(request)
        assert next(lists) == []
        method.gate.set()
        arrived = [expert for ready in lists for expert in ready]
    assert sorted(arrived) == [0, 1, 3]
    assert len(method.begun) == len(set(method.begun))  # nothing twice
    assert counted(store) == (0, 3, 2)


def test_experts_that_are_used_without_a_request_count_too(experts, open_store):
    _, store = open_store(6)
    fetch(experts, store, 0, [1])
    read_ahead(store, keys(0, [0]))
    settle(store)
    store.use(0, [0, 1])
    store.use(0, [0])
    assert counted(store) == (2, 2, 1)


def test_demand_is_read_before_what_is_expected(experts, open_store):
    method, store = open_store(15)
    occupy_readers(method, store, keys(2, [0, 1, 2, 3]))
    ahead = set(method.begun)
    wanted = reads_of(experts, 3, 2)
    with store.request(3, [2]) as request:
        method.gate.set()
        for _ in request:
            pass
    later = [read for read in method.begun if read not in ahead]
    # A thread at the gate still has the rest of its own few pieces to read.
    assert wanted <= set(later[: len(wanted) + 2 * N_READERS])
    assert 4 * len(reads_of(experts, 2, 0)) > len(wanted) + 3 * N_READERS
    settle(store)
    assert present(store, 2) == [0, 1, 2, 3]


def test_expected_experts_take_no_slot_from_each_other_nor_from_those_in_use(experts, open_store):
    _, store = open_store(3)
    with store.request(0, [0, 1]) as request:
        lists = iter(request)
        held: list[int] = []
        while not held:
            held = next(lists)
        read_ahead(store, keys(2, [3, 4, 5]))
        wait_until(lambda: store.transfers.take_arrived() or present(store, 2))
        assert present(store, 2) == [3]  # the one slot that was left
        assert set(held) <= set(present(store, 0))
        for _ in lists:
            pass
    settle(store)
    assert present(store, 2) == [3, 4, 5]  # they went on as slots became free
    assert present(store, 0) == []


def test_a_wrong_guess_is_given_up_unless_all_of_it_is_under_way(experts, open_store):
    method, store = open_store(15)
    occupy_readers(method, store, keys(2, [0, 1, 2, 3, 4, 5]))
    queued = {entry[0].key[1] for entry in store.transfers._readers._ahead}
    under_way = {key[1] for key in store.transfers._fills} - queued
    assert queued
    with store.request(2, [5]) as request:
        method.gate.set()
        for _ in request:
            pass
    settle(store)
    assert set(present(store, 2)) == under_way | {5}
    assert len(store.slots._free) + len(store.slots._slot_of) == 15


def test_a_guess_that_was_given_up_is_read_when_it_is_asked_for_after_all(experts, open_store):
    method, store = open_store(15)
    occupy_readers(method, store, keys(2, [0, 1, 2, 3, 4, 5]))
    with store.request(2, [5]), store.request(2, [0, 1, 2, 3]) as request:
        method.gate.set()
        got = [expert for ready in request for expert in ready]
    assert sorted(got) == [0, 1, 2, 3]
    for expert in got:
        experts.check(2, expert, store.addresses(2)[expert])


def test_demand_takes_the_slots_of_what_was_not_begun(experts, open_store):
    method, store = open_store(6)
    occupy_readers(method, store, keys(2, [0, 1, 2, 3, 4, 5]))
    with store.request(3, [0]) as request:  # all slots are being filled
        method.gate.set()
        assert [expert for ready in request for expert in ready] == [0]
    assert present(store, 3) == [0]


def test_a_read_ahead_that_fails_is_tried_again_when_asked_for(experts, open_store):
    method, store = open_store(6)
    method.bad = {list(reads_of(experts, 2, 3))[4]}
    read_ahead(store, keys(2, [2, 3]))
    settle(store)
    assert present(store, 2) == [2]
    method.bad = set()
    fetch(experts, store, 2, [2, 3])
    assert counted(store) == (0, 2, 1)


def test_a_new_guess_replaces_what_had_no_slot_yet(experts, open_store):
    _, store = open_store(2)
    read_ahead(store, keys(2, [0, 1, 2, 3]))
    settle(store)
    assert present(store, 2) == [0, 1]
    read_ahead(store, keys(0, [5]))
    fetch(experts, store, 2, [0, 1])
    settle(store)
    assert present(store, 2) != [0, 1, 2, 3]
    assert present(store, 0) == [5]


def test_closing_does_not_wait_for_what_was_not_begun(experts, open_store):
    method, store = open_store(15)
    occupy_readers(method, store, keys(2, [0, 1, 2, 3, 4, 5]))
    threading.Timer(0.1, method.gate.set).start()
    store.close()
    assert len(method.begun) == N_READERS


@pytest.mark.parametrize("n_slots", [1, 2, 5, 7, 15])
def test_a_wave_reads_every_expert_once(experts, open_store, n_slots):
    """As a long prompt does: all of a layer, while the next layers are on their way."""
    method, store = open_store(n_slots)
    for layer, n_expert in ((0, 6), (2, 6), (3, 3)):
        store.ahead.expect_layers_after(layer)
        with store.request(layer, list(range(n_expert))) as request:
            got = []
            for ready in request:
                for expert in ready:
                    experts.check(layer, expert, store.addresses(layer)[expert])
                got += ready
        assert sorted(got) == list(range(n_expert))
    assert len(method.begun) == len(set(method.begun))
    assert store.counters.misses == 15
    if n_slots > 1:
        assert store.counters.read_ahead > 0


@pytest.mark.parametrize("n_slots", [1, 2, 4, 9, 15])
def test_random_guesses_and_requests(experts, open_store, n_slots):
    """Right and wrong guesses, reads that fail now and then, requests that are left early."""
    method, store = open_store(n_slots)
    rng = np.random.default_rng(n_slots)
    sizes = {0: 6, 2: 6, 3: 3}
    every_read = [
        read
        for layer, n_expert in sizes.items()
        for expert in range(n_expert)
        for read in sorted(reads_of(experts, layer, expert))
    ]
    for _ in range(400):
        method.bad = {every_read[rng.integers(len(every_read))]} if rng.random() < 0.5 else set()
        layer = int(rng.choice([0, 2, 3]))
        guess = rng.permutation(sizes[layer])[: rng.integers(0, sizes[layer] + 1)].tolist()
        read_ahead(store, keys(layer, guess))
        layer = layer if rng.random() < 0.7 else int(rng.choice([0, 2, 3]))
        wanted = rng.permutation(sizes[layer])[: rng.integers(1, sizes[layer] + 1)].tolist()
        stop_after = rng.integers(1, 12)
        got: list[int] = []
        try:
            with store.request(layer, wanted) as request:
                for count, ready in enumerate(request):
                    for expert in ready:
                        experts.check(layer, expert, store.addresses(layer)[expert])
                    got += ready
                    if count == stop_after:
                        break
                else:
                    assert sorted(got) == sorted(wanted)
        except Error:  # a bad offset
            assert method.bad
        assert len(set(got)) == len(got)
        assert not store.slots._pinned
        assert len(store.slots._free) + len(store.slots._slot_of) == n_slots
    method.bad = set()
    settle(store)
    for key in store.slots._slot_of:
        experts.check(*key, store.slots.addresses[key])
    for layer, n_expert in sizes.items():
        fetch(experts, store, layer, list(range(n_expert)))


def test_readers_take_back_only_what_was_not_begun():
    readers = Readers(1)
    gate, begun = threading.Event(), threading.Event()

    def wait() -> Amount:
        begun.set()
        assert gate.wait(timeout=60)
        return Amount(1, 1)

    try:
        first, second = Fill((0, 0), 2, urgent=False), Fill((0, 1), 1, urgent=False)
        readers.submit(first, [wait, lambda: Amount(2, 1)])
        readers.submit(second, [lambda: Amount(3, 1)])
        assert begun.wait(timeout=60)
        assert not readers.cancel(first)
        assert readers.cancel(second)
        gate.set()
        arrivals = [readers.arrived.get(timeout=60) for _ in range(2)]
        assert [(a.fill, a.amount.n_bytes) for a in arrivals] == [(first, 1), (first, 2)]
        assert readers.arrived.empty()
    finally:
        readers.close()
