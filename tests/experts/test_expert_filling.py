"""How slots are filled: where matrices lie, in which pieces they are read, in how much memory."""

import time
import tracemalloc
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers.expert_files import F32, IQ2_XXS, Experts, fetch, made_up_config, memory_at, moe

from q4run.disk.methods import METHODS
from q4run.disk.speed import N_READERS
from q4run.errors import FormatError
from q4run.experts import filling, transfers
from q4run.experts.filling import buffer_bytes, cut_into_pieces, reader_bytes
from q4run.experts.layout import ExpertLayout, ExpertMatrix, read_layout
from q4run.experts.policies.lru import LeastRecentlyUsed
from q4run.experts.slots import Slots
from q4run.experts.store import ExpertStore
from q4run.kernels.formats import Format, find_format
from q4run.kernels.products.strips import interleave, padded_rows

PAGE = 4096


@pytest.fixture(scope="module", params=[32, 4096])
def experts(request, tmp_path_factory) -> Experts:
    """Files of both alignments that GGUF models come with."""
    return Experts(tmp_path_factory.mktemp("experts"), request.param)


# What reads look like, and the memory they take.


class Strict:
    """Reads of whole pages only, into memory that begins with a page, as O_DIRECT may want them."""

    alignment = PAGE

    def __init__(self, contents: Mapping[Path, np.ndarray]) -> None:
        self._contents = contents
        self.seconds = 0.0
        self.longest = self.n_reads = self.n_bytes = 0

    def read(self, path: Path, offset: int, target: memoryview) -> None:
        address = np.frombuffer(target, np.uint8).ctypes.data
        assert offset % PAGE == len(target) % PAGE == address % PAGE == 0
        self.longest = max(self.longest, len(target))
        self.n_reads += 1
        time.sleep(self.seconds)
        self.n_bytes += len(target)
        content = self._contents[path][offset : offset + len(target)]
        assert len(content) > 0
        target[: len(content)] = content.data

    def close(self) -> None:
        pass


@pytest.mark.parametrize("piece", [1, 3000, 2 * PAGE, 2 << 20])
def test_reads_are_aligned_and_fit_the_buffers(experts, monkeypatch, piece):
    monkeypatch.setattr(filling, "PIECE_BYTES", piece)
    method = Strict(experts.contents)
    store = ExpertStore(experts.layout, 15, method)
    for layer, n_expert in ((0, 6), (2, 6), (3, 3)):
        fetch(experts, store, layer, list(range(n_expert)))
    store.close()
    assert method.longest <= buffer_bytes(experts.layout)
    if experts.alignment == 32:
        assert method.longest == buffer_bytes(experts.layout)  # and are no larger than need be


@pytest.mark.parametrize("n_rows", [1, 7, 8, 9, 96, 101])
@pytest.mark.parametrize("piece", [1, 5000, 1 << 20])
def test_pieces_are_whole_strips_that_cover_a_matrix(monkeypatch, n_rows, piece):
    monkeypatch.setattr(filling, "PIECE_BYTES", piece)
    fmt = find_format(F32)
    assert fmt is not None
    matrix = ExpertMatrix(Path("file"), fmt, 4, n_rows, 64, 1000, 128)
    slot = np.zeros(128 + matrix.slot_bytes + 64, np.uint8)
    pieces = cut_into_pieces(matrix, 2, slot)
    offset = 1000 + 2 * n_rows * 256
    for i, part in enumerate(pieces):
        assert (part.path, part.fmt, part.row_bytes) == (Path("file"), fmt, 256)
        assert part.offset == offset
        assert part.n_rows * 256 <= max(piece, 8 * 256)
        assert part.n_rows % 8 == 0 or i == len(pieces) - 1
        assert part.target.shape == (padded_rows(part.n_rows), 256)
        part.target[:] += 1
        offset += part.n_rows * 256
    assert sum(part.n_rows for part in pieces) == n_rows
    end = 128 + padded_rows(n_rows) * 256
    assert (slot[128:end] == 1).all()
    assert not slot[:128].any()
    assert not slot[end:].any()


PATH, GATE_BYTES = Path("file"), 24 * 256
# Of each of three experts, where gate and up begin in a file of tensors for each: side by side, the
# wrong way round, and one far from the other.
APART = (
    tuple((PATH, 5000 + n * GATE_BYTES) for n in (0, 3, 6)),
    tuple((PATH, 5000 + n * GATE_BYTES) for n in (1, 2, 5)),
)


@pytest.mark.parametrize(
    ("piece", "apart", "requests"),
    [
        (1 << 20, False, 3 * 2),
        (2 * GATE_BYTES, False, 3 * 2),
        (2 * GATE_BYTES - 1, False, 3 * 3),
        (1, False, 3 * (3 + 3 + 8)),
        # Down of the first expert begins behind its up.
        (1 << 20, True, 1 + 3 + 3),
        (2 * GATE_BYTES, True, 2 + 3 + 3),
    ],
)
def test_what_lies_side_by_side_is_one_request(monkeypatch, piece, apart, requests):
    monkeypatch.setattr(filling, "PIECE_BYTES", piece)
    monkeypatch.setattr(transfers, "PIECE_BYTES", piece)
    fmt = find_format(F32)
    assert fmt is not None
    begin = 5000 + (2 if apart else 7) * GATE_BYTES
    gate = ExpertMatrix(PATH, fmt, 3, 24, 64, 5000, 0, n_beside=2)
    up = replace(gate, offset=5000 + GATE_BYTES, slot_offset=gate.slot_bytes)
    down = ExpertMatrix(PATH, fmt, 3, 64, 24, begin, 2 * gate.slot_bytes)
    if apart:
        gate, up = (replace(one, apart=APART[i]) for i, one in enumerate((gate, up)))
        down = replace(down, apart=((PATH, begin), (PATH, 90000), (PATH, 110000)))
    slot_bytes = down.slot_offset + down.slot_bytes
    layout = ExpertLayout({0: (gate, up, down)}, slot_bytes, 3, 3, 3 * 3 * GATE_BYTES)
    content = np.random.default_rng(0).integers(0, 256, 130_000).astype(np.uint8)
    method = Strict({PATH: content})
    store = ExpertStore(layout, 3, method)
    with store.request(0, [2, 0, 1]) as request:
        for expert in (one for ready in request for one in ready):
            for matrix in (gate, up, down):
                _, offset = matrix.place(expert)
                rows = content[offset : offset + matrix.n_bytes].reshape(matrix.n_rows, -1)
                expected = np.empty_like(rows)
                interleave(fmt, rows, expected)
                address = store.addresses(0)[expert] + matrix.slot_offset
                np.testing.assert_array_equal(memory_at(address, rows.shape), expected)
    store.close()
    assert method.longest <= buffer_bytes(layout)
    assert (store.counters.requests, store.counters.bytes_read) == (requests, method.n_bytes)
    assert method.n_reads == requests


def test_the_time_of_reading_is_without_that_of_interleaving(experts, monkeypatch):
    def slow(fmt: Format, rows: np.ndarray, strips: np.ndarray) -> None:
        time.sleep(0.05)

    monkeypatch.setattr(filling, "to_strips", slow)
    method = Strict(experts.contents)
    method.seconds = 0.02
    store = ExpertStore(experts.layout, 15, method, n_readers=1)
    began = time.perf_counter()
    with store.request(2, [0, 1]) as request:
        for _ in request:
            pass
    whole = time.perf_counter() - began
    store.close()
    n = method.n_reads
    assert 0.02 * n <= store.counters.reading_s < whole - 0.04 * n


def test_read_buffers_take_what_is_planned_and_are_let_go(experts, monkeypatch):
    sizes = []
    system_mmap = filling.mmap.mmap

    class Counted(system_mmap):
        def __new__(cls, file, length, *rest):
            sizes.append(length)
            return super().__new__(cls, file, length, *rest)

        def __del__(self) -> None:
            sizes.remove(len(self))

    store = ExpertStore(experts.layout, 15, METHODS["pread"](experts.paths))
    monkeypatch.setattr(filling.mmap, "mmap", Counted)
    for layer, n_expert in ((0, 6), (2, 6), (3, 3)):
        fetch(experts, store, layer, list(range(n_expert)))
    assert 0 < sum(sizes) <= N_READERS * buffer_bytes(experts.layout)
    assert all(size % PAGE == 0 for size in sizes)  # what the system rounds up to is planned
    store.close()
    assert sizes == []


def test_types_without_kernels_arrive_in_the_type_they_have_in_ram(tmp_path):
    """Dequantised and quantised again on the way, in no more memory than planned."""
    experts = Experts(tmp_path, 32, [(2, 256, (IQ2_XXS, IQ2_XXS, IQ2_XXS))], n_embd=1024)
    store = ExpertStore(experts.layout, 2, METHODS["pread"](experts.paths))
    fmt = find_format(IQ2_XXS)
    assert fmt is not None

    def check_all() -> None:
        with store.request(0, [0, 1]) as request:
            for expert in (one for ready in request for one in ready):
                begin = store.addresses(0)[expert]
                for name, matrix in zip(
                    ("gate", "up", "down"), experts.layout.layers[0], strict=True
                ):
                    rows = experts.rows(0, expert, name)[1]
                    expected = fmt.in_ram.quantize(fmt.dequantize(rows))
                    strips = np.empty_like(expected)
                    interleave(fmt.in_ram, expected, strips)
                    np.testing.assert_array_equal(
                        memory_at(begin + matrix.slot_offset, strips.shape), strips
                    )

    check_all()
    store.slots.discard((0, 0))
    tracemalloc.start()
    try:
        with store.request(0, [0]) as request:
            for _ in request:
                pass
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # All of a matrix's values as float32 would be 1 MB a reader.
    planned = N_READERS * (reader_bytes(experts.layout) - buffer_bytes(experts.layout))
    assert most <= planned + 20_000  # Python's own objects
    check_all()
    store.close()


# The layout.


def test_layout_counts(experts):
    layout = experts.layout
    assert sorted(layout.layers) == [0, 2, 3]
    assert layout.n_experts == 15
    assert layout.n_bytes == sum(tensor.n_bytes for tensor in experts.tensors.values())
    assert layout.slot_bytes % 64 == 0


def test_matrices_of_a_slot_do_not_overlap(experts):
    for matrices in experts.layout.layers.values():
        end = 0
        for matrix in matrices:
            assert matrix.slot_offset % 64 == 0
            assert matrix.slot_offset >= end
            end = matrix.slot_offset + padded_rows(matrix.n_rows) * matrix.row_bytes
        assert end <= experts.layout.slot_bytes


def test_slots_have_no_needless_room(tmp_path):
    layout: ExpertLayout = Experts(tmp_path, 4096).layout
    gate, up, down = layout.layers[2]
    assert (gate.slot_offset, up.slot_offset, down.slot_offset) == (0, 24576, 49152)
    gate, up, down = layout.layers[3]  # 101 rows take the room of 104
    assert (up.slot_offset, down.slot_offset) == (7104, 7104 + 26624)  # 104 * 68 is 7072
    assert layout.slot_bytes == max(3 * 24576, 7104 + 26624 + 64 * 101 * 4)


def test_a_model_without_experts(tmp_path):
    layout = read_layout(Experts(tmp_path, 32).file(), made_up_config([None, None]))
    assert (dict(layout.layers), layout.slot_bytes, layout.n_experts) == ({}, 0, 0)
    assert buffer_bytes(layout) == reader_bytes(layout) == 0
    store = ExpertStore(layout, 0, METHODS["pread"]([]))
    store.close()


def test_a_tensor_of_another_shape_is_an_error(tmp_path):
    experts = Experts(tmp_path, 32)
    good = moe(3, 101)
    with pytest.raises(FormatError, match=r"ffn_gate_exps.* shape \(6, 96, 64\).* \(7, 96, 64\)"):
        read_layout(experts.file(), made_up_config([moe(7), None, moe(6), good]))
    with pytest.raises(FormatError, match=r"blk\.1\.ffn_gate_exps\.weight.* is missing"):
        read_layout(experts.file(), made_up_config([moe(6), moe(6), moe(6), good]))


# Slots by themselves.


def test_slots_are_separate_and_begin_with_a_cache_line():
    slots = Slots(3, 192, 1, 3, LeastRecentlyUsed())
    for expert in range(3):
        assert slots.claim((0, expert))
        slots.bytes_of((0, expert))[:] = expert + 1
        slots.filled((0, expert))
    for expert in range(3):
        address = slots.addresses[0, expert]
        assert address == slots.bytes_of((0, expert)).ctypes.data
        assert address % 64 == 0
        assert (memory_at(address, (192,)) == expert + 1).all()


def test_pinned_slots_are_not_evicted():
    slots = Slots(2, PAGE, 1, 3, LeastRecentlyUsed())
    assert slots.claim((0, 0))
    assert slots.claim((0, 1))
    assert not slots.claim((0, 2))  # both are being filled
    slots.filled((0, 0))
    slots.pin((0, 0))
    assert not slots.claim((0, 2))  # in use
    slots.filled((0, 1))
    assert not slots.claim((0, 2), keep={(0, 1)})
    assert slots.claim((0, 2))
    assert (0, 1) not in slots
    assert (0, 0) in slots


def test_only_experts_that_are_whole_have_an_address():
    """Compiled code computes with whatever has one."""
    slots = Slots(1, PAGE, 2, 2, LeastRecentlyUsed())
    assert not slots.addresses.any()
    assert slots.claim((1, 0))
    assert not slots.addresses.any()
    slots.filled((1, 0))
    assert np.argwhere(slots.addresses).tolist() == [[1, 0]]
    assert slots.claim((0, 1))
    assert not slots.addresses.any()
    slots.filled((0, 1))
    slots.discard((0, 1))
    assert not slots.addresses.any()


def test_the_policy_says_who_is_evicted():
    policy = LeastRecentlyUsed()
    slots = Slots(2, PAGE, 1, 3, policy)
    for expert in (0, 1):
        assert slots.claim((0, expert))
        slots.filled((0, expert))
    policy.use(0, [0])
    assert slots.claim((0, 2))
    assert (0, 0) in slots
    assert (0, 1) not in slots


def test_a_discarded_slot_is_free_again():
    slots = Slots(1, PAGE, 1, 2, LeastRecentlyUsed())
    assert slots.claim((0, 0))
    slots.discard((0, 0))
    assert (0, 0) not in slots
    assert slots.claim((0, 1))
