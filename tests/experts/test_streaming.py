"""Streaming in every mode: the bits of the model that is held in RAM, whatever goes wrong."""

import errno
import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

import q4run
from q4run.bench.models.synthetic import Geometry, write_model
from q4run.bench.models.traces import read_trace
from q4run.cache.keys_values import KVCache
from q4run.disk.methods import METHODS
from q4run.errors import Error
from q4run.experts.layout import read_layout
from q4run.experts.policies import POLICIES
from q4run.experts.prefetch import PREFETCH
from q4run.experts.store import ExpertStore
from q4run.experts.trace import TraceWriter
from q4run.gguf_file import open_gguf
from q4run.layers.decoder import Transformer
from q4run.models import read_config

N_LAYER, N_EXPERT, CONTEXT = 5, 6, 96


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    """Five layers, of six experts each."""
    path = tmp_path_factory.mktemp("streaming") / "model.gguf"
    write_model(
        path, Geometry(N_LAYER, 64, 4, 2, 16, 96, N_EXPERT, 300), "q8_0", expert_type="q4_0"
    )
    return path


class Faulty:
    """A method whose reads fail now and then."""

    def __init__(self, method) -> None:
        self.alignment = method.alignment
        self.share = 0.0
        self._method = method
        self._rng = np.random.default_rng(3)
        self._lock = threading.Lock()

    def read(self, path: Path, offset: int, target: memoryview) -> None:
        with self._lock:
            fails = self._rng.random() < self.share
        if fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        self._method.read(path, offset, target)

    def close(self) -> None:
        self._method.close()


class Streamed:
    """A model's parts, put together with a store that the test can disturb."""

    def __init__(
        self,
        path: Path,
        n_slots: int,
        io: str,
        cache: str,
        n_batch: int,
        prefetch: str = "never",
        trace=None,
    ) -> None:
        file = open_gguf(path)
        config = read_config(file)
        self.method = Faulty(METHODS[io](file.parts))
        self.store = ExpertStore(
            read_layout(file, config), n_slots, self.method, cache, prefetch, trace
        )
        self.transformer = Transformer(file, config, self.store, n_batch, 2)
        self.cache = KVCache(config, CONTEXT, "f16")

    def forward(self, ids: list[int]) -> np.ndarray:
        """Again and again while reads fail: an error must leave everything as it was."""
        share, length = self.method.share, self.cache.length
        for _ in range(100):
            try:
                return self.transformer.forward(ids, self.cache)
            except Error:  # a read failed, as this test asked for
                assert share > 0
                self.cache.rewind(length)  # of a prompt, some batches may have been complete
                self.method.share /= 2
            finally:
                assert not self.store.slots._pinned
        raise AssertionError(f"{share} of the reads fail, but all attempts did")

    def close(self) -> None:
        self.transformer.close()
        self.store.close()


def resident_logits(path: Path, prompt: list[int], steps: list[int]) -> list[np.ndarray]:
    streamed = Streamed(path, N_LAYER * N_EXPERT, "pread", "lru", 512)
    try:
        return [streamed.forward(part) for part in [prompt, *([token] for token in steps)]]
    finally:
        streamed.close()


def test_a_few_thousand_disturbed_steps(path):
    """Random budgets, policies, I/O methods, batches; wrong guesses; reads that fail."""
    rng = np.random.default_rng(11)
    n_steps = 0
    for round_ in range(40):
        prompt = rng.integers(0, 300, rng.integers(1, 40)).tolist()
        steps = rng.integers(0, 300, 50).tolist()
        expected = resident_logits(path, prompt, steps)
        streamed = Streamed(
            path,
            int(rng.integers(1, N_LAYER * N_EXPERT + 1)),
            list(METHODS)[round_ % len(METHODS)],
            list(POLICIES)[round_ % len(POLICIES)],
            int(rng.choice([1, 7, 64])),
            str(rng.choice(PREFETCH)),
        )
        store, layers = streamed.store, list(streamed.store.layout.layers)
        try:
            for part, logits in zip([prompt, *([token] for token in steps)], expected, strict=True):
                if rng.random() < 0.5:
                    n = int(rng.integers(0, 8))
                    guessed = zip(rng.choice(layers, n), rng.integers(0, N_EXPERT, n), strict=True)
                    store.ahead.expect([(int(layer), int(expert)) for layer, expert in guessed])
                    store.ahead.go_on()
                streamed.method.share = float(rng.choice([0, 0, 0, 0.02, 0.3]))
                np.testing.assert_array_equal(streamed.forward(part), logits)
                n_steps += 1
            assert len(store.slots._free) + len(store.slots._slot_of) == store.slots.n_slots
        finally:
            streamed.close()
    assert n_steps > 2000


@pytest.mark.parametrize("cache", POLICIES)
@pytest.mark.parametrize("n_slots", [1, 7, N_LAYER * N_EXPERT])
def test_a_prompt_reads_every_expert_at_most_once(path, n_slots, cache):
    streamed = Streamed(path, n_slots, "pread", cache, 64)
    try:
        streamed.forward(list(range(64)))
        counters = streamed.store.counters
        assert counters.misses == len(streamed.store.layout.layers) * N_EXPERT
        assert counters.hits == 0
        assert (counters.read_ahead > 0) == (n_slots < N_LAYER * N_EXPERT)
        experts = streamed.store.layout
        assert counters.bytes_read == experts.n_bytes
    finally:
        streamed.close()


def test_the_order_of_layers_keeps_what_the_next_chunk_wants(path):
    """Where the least recently used goes, a cycle through all experts hits nothing."""
    hits = {}
    for cache in POLICIES:
        streamed = Streamed(path, 20, "pread", cache, 32)
        try:
            for chunk in range(3):
                streamed.forward(list(range(32 * chunk, 32 * chunk + 32)))
            hits[cache] = streamed.store.counters.hits
        finally:
            streamed.close()
    assert hits["lru"] == 0
    assert hits["layers"] > 0


def test_a_trace_tells_what_was_used(path, tmp_path):
    """The same whether experts are in RAM or read, in a prompt or one token."""
    with q4run.load(path, context=64, trace=tmp_path / "resident") as model:
        assert model.plan.all_resident
        model.session.feed(list(range(40)))
        model.session.step(4)
        wanted = model.stats.hits + model.stats.misses
        uses = model.store.uses
    trace = read_trace(tmp_path / "resident")
    for place, layer in enumerate(trace.layers):
        told = [expert for one in trace.passes for expert in one.experts[place]]
        assert uses[layer] == [told.count(expert) for expert in range(N_EXPERT)]
    assert trace.n_expert == [N_EXPERT] * len(trace.layers)
    assert [one.n_tokens for one in trace.passes] == [40, 1]
    assert [len(experts) for experts in trace.passes[1].experts] == trace.n_used
    assert sum(len(experts) for one in trace.passes for experts in one.experts) == wanted

    writer = TraceWriter(tmp_path / "streamed", trace.layers, trace.n_expert, trace.n_used)
    streamed = Streamed(path, 2, "direct", "layers", 64, trace=writer)
    try:
        streamed.forward(list(range(40)))
        streamed.forward([4])
    finally:
        streamed.close()
    assert read_trace(tmp_path / "streamed").passes == trace.passes


def test_an_unknown_policy_is_an_error(path):
    with pytest.raises(Error, match="no cache policy 'fifo'; choose layers or lru"):
        q4run.load(path, cache="fifo")


class Stalling(Faulty):
    """A disk that does not answer while the gate is closed."""

    def __init__(self, method) -> None:
        super().__init__(method)
        self.gate = threading.Event()
        self.gate.set()

    def read(self, path: Path, offset: int, target: memoryview) -> None:
        assert self.gate.wait(timeout=60)
        super().read(path, offset, target)


def test_ctrl_c_ends_the_wait_for_a_disk_that_does_not_answer(path):
    expected = resident_logits(path, [1, 2, 3], [4, 5])
    streamed = Streamed(path, 2, "pread", "layers", 64)
    told: list[float] = []
    streamed.store.events.tell_of_waits(told.append)
    method = streamed.store.transfers._filler._method = Stalling(streamed.method)
    try:
        np.testing.assert_array_equal(streamed.forward([1, 2, 3]), expected[0])
        method.gate.clear()
        threading.Timer(0.5, signal.raise_signal, [signal.SIGINT]).start()
        with pytest.raises(KeyboardInterrupt):
            streamed.forward([4])
        assert len(told) > 1
        method.gate.set()
        for token, logits in zip([4, 5], expected[1:], strict=True):
            np.testing.assert_array_equal(streamed.forward([token]), logits)
    finally:
        method.gate.set()
        streamed.close()


@pytest.mark.parametrize("io", METHODS)
def test_a_file_that_is_replaced_goes_on_being_read_as_it_was(path, tmp_path, io):
    model, other = tmp_path / "model.gguf", tmp_path / "other.gguf"
    model.write_bytes(path.read_bytes())
    other.write_bytes(bytes(path.stat().st_size))
    expected = resident_logits(path, [1, 2, 3], list(range(20)))
    streamed = Streamed(model, 2, io, "layers", 64)
    try:
        np.testing.assert_array_equal(streamed.forward([1, 2, 3]), expected[0])
        other.replace(model)
        for token, logits in zip(range(20), expected[1:], strict=True):
            np.testing.assert_array_equal(streamed.forward([token]), logits)
    finally:
        streamed.close()


def test_two_models_read_one_file_at_the_same_time(path):
    """Whatever the method; neither disturbs the other."""
    expected = resident_logits(path, [1, 2, 3], list(range(30)))
    pairs = [
        Streamed(path, n_slots, io, cache, 64, prefetch)
        for n_slots, io, cache, prefetch in [
            (2, "pread", "lru", "never"),
            (7, "direct", "layers", "always"),
            (5, "mmap", "layers", "auto"),
        ]
    ]
    try:
        for i, part in enumerate([[1, 2, 3], *([token] for token in range(30))]):
            for streamed in pairs:
                np.testing.assert_array_equal(streamed.forward(part), expected[i])
    finally:
        for streamed in pairs:
            streamed.close()
