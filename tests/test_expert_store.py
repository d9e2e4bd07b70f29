"""The expert store: the right bytes, whatever is in RAM, however they come and whatever fails."""

import errno
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest

from q4run.errors import Error, FormatError
from q4run.experts import store as store_module
from q4run.experts.layout import ALIGNMENT, ExpertLayout, read_layout
from q4run.experts.methods import METHODS, choose_method
from q4run.experts.slots import Slots
from q4run.experts.store import ExpertStore
from q4run.gguf_file import GGUFFile, TensorInfo
from q4run.gguf_file.metadata import Metadata
from q4run.models.config import AttentionConfig, Gating, LayerConfig, ModelConfig, MoeConfig

N_EMBD, N_FF, N_EXPERT = 64, 96, 6
Q8_0, F32 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.F32


class Experts:
    """A file of random bytes, and where the experts of three MoE layers (0, 2, 3) lie in it.

    Layer 0 is q8_0 (an expert's matrix is 6528 bytes, no whole number of pages), layer 2 is f32
    (24576 bytes, six pages), layer 3 has a gate in q8_0 and fewer experts. Layer 1 is dense.
    """

    def __init__(self, folder: Path, alignment: int) -> None:
        self.alignment = alignment
        self.paths = [folder / "part1", folder / "part2"]
        self.tensors: dict[str, TensorInfo] = {}
        sizes = [alignment, 3 * alignment]
        for layer, n_expert, types in ((0, 6, (Q8_0, Q8_0, Q8_0)), (2, 6, (F32, F32, F32))):
            self._add_layer(layer, n_expert, types, 0, sizes)
        self._add_layer(3, 3, (Q8_0, F32, F32), 1, sizes)
        rng = np.random.default_rng(alignment)
        self.contents = {}
        for path, size in zip(self.paths, sizes, strict=True):
            self.contents[path] = rng.integers(0, 256, size).astype(np.uint8)
            path.write_bytes(self.contents[path].tobytes())
        self.config = made_up_config([moe(6), None, moe(6), moe(3)])
        self.layout = read_layout(self._file(), self.config)

    def _add_layer(self, layer, n_expert, types, part, sizes) -> None:
        shapes = {"gate": (N_FF, N_EMBD), "up": (N_FF, N_EMBD), "down": (N_EMBD, N_FF)}
        for (name, shape), kind in zip(shapes.items(), types, strict=True):
            block_size, type_size = gguf.GGML_QUANT_SIZES[kind]
            n_bytes = n_expert * shape[0] * shape[1] // block_size * type_size
            full_name = f"blk.{layer}.ffn_{name}_exps.weight"
            self.tensors[full_name] = TensorInfo(
                full_name, (n_expert, *shape), kind, self.paths[part], sizes[part], n_bytes
            )
            # The last tensor ends with its file, as the last of a GGUF may.
            sizes[part] += n_bytes
            if (layer, name) not in ((2, "down"), (3, "down")):
                sizes[part] += -n_bytes % self.alignment

    def _file(self) -> GGUFFile:
        size = sum(len(content) for content in self.contents.values())
        parts = tuple(self.paths)
        return GGUFFile(parts[0], parts, 3, self.alignment, size, Metadata({}), self.tensors)

    def check(self, layer: int, expert: int, matrices) -> None:
        """The three matrices hold this expert's bytes."""
        for name, matrix in zip(("gate", "up", "down"), matrices, strict=True):
            tensor = self.tensors[f"blk.{layer}.ffn_{name}_exps.weight"]
            n_bytes = tensor.n_bytes // tensor.shape[0]
            begin = tensor.offset + expert * n_bytes
            assert matrix.fmt.ggml_type == tensor.type
            assert matrix.data.shape == (tensor.shape[1], matrix.fmt.row_bytes(tensor.shape[2]))
            expected = self.contents[tensor.path][begin : begin + n_bytes]
            np.testing.assert_array_equal(matrix.data.ravel(), expected)

    def expert_bytes(self, layer: int) -> int:
        return sum(matrix.n_bytes for matrix in self.layout.layers[layer])


def moe(n_expert: int) -> MoeConfig:
    return MoeConfig(n_expert, 1, N_FF, 0, Gating.SOFTMAX)


def made_up_config(layers: list[MoeConfig | None]) -> ModelConfig:
    attention = AttentionConfig(rope=True)
    return ModelConfig(
        architecture="llama",
        n_vocab=1,
        n_embd=N_EMBD,
        n_head=1,
        n_head_kv=1,
        head_dim=64,
        rope_dim=64,
        rope_theta=10000.0,
        rms_norm_eps=1e-5,
        context_length=64,
        tied_embeddings=False,
        layers=tuple(LayerConfig(attention, n_ff=N_FF, moe=layer) for layer in layers),
    )


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

    def make(experts: Experts, n_slots: int, method=None) -> ExpertStore:
        method = method or METHODS[method_name](experts.paths)
        stores.append(ExpertStore(experts.layout, n_slots, method))
        return stores[-1]

    yield make
    for store in stores:
        store.close()


@pytest.fixture
def small_pieces(monkeypatch) -> None:
    """Every expert takes several reads, of 8 KiB instead of 2 MiB."""
    monkeypatch.setattr(store_module, "_PIECE_BYTES", 2 * ALIGNMENT)


def fetch(experts: Experts, store: ExpertStore, layer: int, wanted: list[int]) -> list[int]:
    """Requests experts, checks the bytes of each and returns them in the order of arrival."""
    order = []
    with store.request(layer, wanted) as request:
        for expert, matrices in request:
            experts.check(layer, expert, matrices)
            order.append(expert)
    assert sorted(order) == sorted(wanted)
    return order


def resident(store: ExpertStore, layer: int, n_expert: int = N_EXPERT) -> list[int]:
    """Which experts of a layer are in RAM, without touching the order of their use."""
    return [expert for expert in range(n_expert) if (layer, expert) in store.slots._slot_of]


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
            for count, (expert, matrices) in enumerate(request):
                if count == stop_after:
                    break
                experts.check(layer, expert, matrices)
        assert not store.slots._pinned
        assert len(store.slots._free) + len(store.slots._slot_of) == 4
        for key in store.slots._slot_of:  # what is called resident holds its bytes
            experts.check(*key, store.matrices(key))


def test_a_request_for_nothing(experts, open_store):
    store = open_store(experts, 1)
    assert fetch(experts, store, 0, []) == []
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
    if store._method.alignment == 1 or experts.expert_bytes(0) % ALIGNMENT == 0:
        assert store.counters.bytes_read == 3 * experts.expert_bytes(0)
    else:  # direct reads are widened to whole pages
        assert method_name == "direct"
        widened = store.counters.bytes_read - 3 * experts.expert_bytes(0)
        assert 0 <= widened <= 9 * 2 * ALIGNMENT
        assert first < store.counters.bytes_read
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
    order = fetch(experts, store, 0, [5, 1, 4, 0])
    assert store.counters.hits == 2
    assert set(order[:2]) == {0, 1}  # those in RAM come first


def test_an_expert_in_use_keeps_its_bytes(experts, open_store):
    """All other slots are refilled while the first expert is held."""
    store = open_store(experts, 2)
    fetch(experts, store, 0, [0])
    with store.request(0, [0, 1, 2, 3, 4, 5]) as request:
        for expert, matrices in request:
            held = [matrix.data.copy() for matrix in matrices]
            store._readers.submit(lambda: None).result()
            for matrix, before in zip(matrices, held, strict=True):
                np.testing.assert_array_equal(matrix.data, before)
            experts.check(0, expert, matrices)


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
def scripted(experts, small_pieces) -> Iterator[tuple[Scripted, ExpertStore]]:
    method = Scripted(experts)
    store = ExpertStore(experts.layout, 3, method)
    yield method, store
    method.gate.set()
    store.close()


@pytest.mark.parametrize("matrix", [0, 1, 2])
def test_a_failed_read_names_its_cause_and_loses_nothing(experts, scripted, matrix):
    method, store = scripted
    fetch(experts, store, 2, [4])
    bad = experts.layout.layers[2][matrix]
    method.bad_offsets = {bad.begins(1) + 2 * ALIGNMENT}  # one of several reads
    yielded = []

    def take_all() -> None:
        with store.request(2, [0, 1, 2, 3, 4, 5]) as request:
            for expert, matrices in request:
                experts.check(2, expert, matrices)
                yielded.append(expert)

    with pytest.raises(Error, match=r"could not be read: .*Input/output error.*part1"):
        take_all()
    assert yielded[0] == 4
    assert 1 not in yielded
    assert method.under_way == 0
    for key in store.slots._slot_of:
        experts.check(*key, store.matrices(key))
    method.bad_offsets = set()
    assert_usable(experts, store, 2, [1, 2, 3])


def test_leaving_early_waits_for_reads_under_way(experts, scripted):
    method, store = scripted
    method.gate.clear()
    with store.request(2, [0, 1, 2, 3]):
        threading.Timer(0.2, method.gate.set).start()
    assert method.gate.is_set()
    assert method.under_way == 0
    assert resident(store, 2) == []  # nobody waited for them: they count as unread
    assert_usable(experts, store, 2, [0, 1, 2])


def test_an_exception_while_an_expert_is_used_keeps_that_expert(experts, scripted):
    _, store = scripted

    def fail_at_work() -> None:
        with store.request(2, [5]) as request:
            for _ in request:
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
        for _ in range(6000):
            if method.under_way == store_module._N_READERS:
                break
            time.sleep(0.01)
        assert method.under_way == store_module._N_READERS  # all of them wait at the gate
        method.gate.set()
        assert sorted(expert for expert, _ in request) == [0, 1]


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


def test_methods_by_name():
    assert choose_method("mmap", 1) == "mmap"
    with pytest.raises(Error, match="no I/O method 'floppy'; choose auto, pread, direct, mmap"):
        choose_method("floppy", 1)


def test_what_does_not_fit_into_memory_goes_past_the_page_cache(monkeypatch):
    monkeypatch.setattr("q4run.experts.methods.available_memory", lambda: 1000)
    assert choose_method("auto", 1000) == "pread"
    assert choose_method("auto", 1001) == "direct"


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


# The layout.


def test_layout_counts(experts):
    layout = experts.layout
    assert sorted(layout.layers) == [0, 2, 3]
    assert layout.n_experts == 15
    assert layout.n_bytes == sum(tensor.n_bytes for tensor in experts.tensors.values())
    assert layout.slot_bytes % ALIGNMENT == 0


def test_matrices_of_a_slot_do_not_overlap(experts):
    """Nor do the whole pages that direct reads fill around them."""
    for matrices in experts.layout.layers.values():
        for expert in range(3):
            end = 0
            for matrix in matrices:
                begin = matrix.begins(expert)
                first_page = begin // ALIGNMENT * ALIGNMENT
                last_page = -(-(begin + matrix.n_bytes) // ALIGNMENT) * ALIGNMENT
                assert matrix.slot_offset % ALIGNMENT == 0
                assert matrix.place(expert) - matrix.slot_offset == begin - first_page
                assert matrix.slot_offset >= end
                end = matrix.slot_offset + last_page - first_page
            assert end <= experts.layout.slot_bytes


def test_aligned_slots_have_no_padding(tmp_path):
    layout: ExpertLayout = Experts(tmp_path, 4096).layout
    gate, up, down = layout.layers[2]
    assert (gate.slot_offset, up.slot_offset, down.slot_offset) == (0, 24576, 49152)
    assert layout.slot_bytes == 3 * 24576


def test_a_model_without_experts(tmp_path):
    layout = read_layout(Experts(tmp_path, 32)._file(), made_up_config([None, None]))
    assert (dict(layout.layers), layout.slot_bytes, layout.n_experts) == ({}, 0, 0)
    store = ExpertStore(layout, 0, METHODS["pread"]([]))
    store.close()


def test_a_tensor_of_another_shape_is_an_error(tmp_path):
    experts = Experts(tmp_path, 32)
    with pytest.raises(FormatError, match=r"ffn_gate_exps.* shape \(6, 96, 64\).* \(7, 96, 64\)"):
        read_layout(experts._file(), made_up_config([moe(7), None, moe(6), moe(3)]))
    with pytest.raises(FormatError, match=r"blk\.1\.ffn_gate_exps\.weight.* is missing"):
        read_layout(experts._file(), made_up_config([moe(6), moe(6), moe(6), moe(3)]))


# Slots by themselves.


def test_slots_are_separate_and_page_aligned():
    slots = Slots(3, 2 * ALIGNMENT)
    for expert in range(3):
        assert slots.claim((0, expert))
        slots.bytes_of((0, expert))[:] = expert + 1
        assert slots.bytes_of((0, expert)).ctypes.data % ALIGNMENT == 0
    for expert in range(3):
        assert (slots.bytes_of((0, expert)) == expert + 1).all()


def test_pinned_slots_are_not_evicted():
    slots = Slots(2, ALIGNMENT)
    assert slots.claim((0, 0))
    assert slots.claim((0, 1))
    assert not slots.claim((0, 2))  # both are being filled
    slots.unpin((0, 0))
    assert slots.pin((0, 0))
    assert not slots.claim((0, 2))  # in use again
    slots.unpin((0, 1))
    assert slots.claim((0, 2))
    assert not slots.pin((0, 1))
    assert slots.pin((0, 0))


def test_a_discarded_slot_is_free_again():
    slots = Slots(1, ALIGNMENT)
    assert slots.claim((0, 0))
    slots.discard((0, 0))
    assert not slots.pin((0, 0))
    assert slots.claim((0, 1))
