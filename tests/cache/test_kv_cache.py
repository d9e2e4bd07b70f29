"""The KV cache: what each layer keeps, and that rewinding and going on equals a fresh run."""

import dataclasses
import signal
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from q4run.bench.models.synthetic import Geometry, write_model
from q4run.cache.keys_values import KeysValues, KVCache, cache_bytes
from q4run.disk.methods import METHODS
from q4run.errors import Error, UnsupportedError
from q4run.experts.layout import read_layout
from q4run.experts.store import ExpertStore
from q4run.generation.session import Session
from q4run.gguf_file import open_gguf
from q4run.kernels.attention.attend import MAX_HEAD_DIM
from q4run.kernels.attention.kinds import find_kind, kind_names
from q4run.kernels.attention.rows import NO_WINDOW, write_cache
from q4run.layers import decoder as transformer
from q4run.layers.decoder import Transformer
from q4run.models import read_config
from q4run.models.config import ModelConfig
from q4run.models.parts import Attention, DenseFeedForward, Layer
from q4run.models.parts.attention import WINDOW_ROOM
from q4run.models.rope import Rope

N_HEAD_KV, HEAD_DIM = 2, 12


def attention(chunk_size: int | None, head_dim: int = HEAD_DIM) -> Attention:
    rope = Rope(12, 10000.0)
    return Attention(4, N_HEAD_KV, head_dim, head_dim, rope, chunk_size=chunk_size)


def made_up_config(chunk_sizes: Sequence[int | None], head_dim: int = HEAD_DIM) -> ModelConfig:
    """A decoder with one layer per entry; None: the layer sees everything."""
    layers = [Layer(attention(size, head_dim), DenseFeedForward(8)) for size in chunk_sizes]
    return ModelConfig(
        architecture="llama4",
        n_vocab=8,
        n_embd=24,
        rms_norm_eps=1e-5,
        context_length=64,
        tied_embeddings=False,
        layers=tuple(layers),
    )


# Sizes.


@pytest.mark.parametrize("kv_type", kind_names())
def test_chunked_layers_store_one_chunk(kv_type):
    config = made_up_config([8, None, 100])
    cache = KVCache(config, 30, kv_type)
    row = {"f32": 16, "f16": 16, "q8_0": 34}[kv_type]
    for layer, capacity in zip(cache.layers, (8, 30, 30), strict=True):
        for array in (layer.keys.array, layer.values.array):
            assert array.shape == (2, capacity, row)
            assert array.dtype == find_kind(kv_type).dtype
            assert array.flags.c_contiguous
            assert array.ctypes.data % 64 == 0
            assert not array.any()
    assert [layer.attention.kept(30).n_positions for layer in config.layers] == [8, 30, 30]
    assert cache_bytes(config, 30, kv_type) == cache.n_bytes
    arrays = [array for layer in cache.layers for array in (layer.keys.array, layer.values.array)]
    assert cache.n_bytes == sum(array.nbytes for array in arrays)


def test_keys_and_values_of_other_lengths():
    part = dataclasses.replace(attention(8), key_dim=24, value_dim=40)
    state = KeysValues(part, 30, find_kind("q8_0"))
    assert state.keys.array.shape == (2, 8, 34)
    assert state.values.array.shape == (2, 8, 2 * 34)
    assert state.n_bytes == 2 * 8 * 3 * 34
    for name in ("key_dim", "value_dim"):
        longer = dataclasses.replace(part, **{name: MAX_HEAD_DIM + 1})
        with pytest.raises(UnsupportedError, match=f"{MAX_HEAD_DIM + 1} channels"):
            KeysValues(longer, 30, find_kind("q8_0"))


def test_keys_and_values_lie_apart():
    cache = KVCache(made_up_config([8, None]), 30, "f32")
    arrays = [array for layer in cache.layers for array in (layer.keys.array, layer.values.array)]
    for i, array in enumerate(arrays):
        array[...] = i + 1
    for i, array in enumerate(arrays):
        assert (array == i + 1).all()


def test_what_the_types_take():
    config = made_up_config([8, None], head_dim=128)
    values = 2 * N_HEAD_KV * 128 * (8 + 64)
    assert cache_bytes(config, 64, "f32") == 4 * values
    assert cache_bytes(config, 64, "f16") == 2 * values
    assert cache_bytes(config, 64, "q8_0") == values * 34 // 32


def test_heads_too_long_for_attention_are_an_error():
    config = made_up_config([None], head_dim=MAX_HEAD_DIM)
    KVCache(config, 4, "q8_0")
    config = made_up_config([None], head_dim=MAX_HEAD_DIM + 1)
    with pytest.raises(UnsupportedError, match=f"{MAX_HEAD_DIM + 1} channels.* {MAX_HEAD_DIM}"):
        KVCache(config, 4, "f16")


@pytest.mark.parametrize("sizes", [[8], [8, None], [6, 4], [8, 12, None], [1, 3], [None]])
@pytest.mark.parametrize("wanted", [1, 5, 64])
def test_a_pass_never_crosses_a_border(sizes, wanted):
    cache = KVCache(made_up_config(sizes), 200, "f32")
    while cache.length < 100:
        n_tokens = cache.begin(min(wanted, 100 - cache.length))
        assert 1 <= n_tokens <= wanted
        for size in filter(None, sizes):
            assert cache.length // size == (cache.length + n_tokens - 1) // size
        if sizes == [None]:
            assert n_tokens == min(wanted, 100 - cache.length)
        cache.commit(n_tokens)
    assert cache.length == 100


def test_a_position_has_its_place_in_the_chunk():
    chunked = KeysValues(attention(8), 64, find_kind("f32"))
    full = KeysValues(attention(None), 64, find_kind("f32"))
    for position, in_chunk in ((0, 0), (6, 6), (8, 0), (13, 5), (62, 6)):
        assert chunked.place(position) == in_chunk
        assert full.place(position) == position


# What the caches hold, through everything that can happen to a conversation.


@dataclass
class Conversation:
    """Runs passes of tokens whose keys tell token and position, and checks all that is seen."""

    config: ModelConfig
    cache: KVCache
    tokens: list[int] = field(default_factory=list)
    next_token: int = 1

    def run(self, n_tokens: int, n_batch: int) -> None:
        """New tokens, each unlike any other, in passes of at most ``n_batch``."""
        n_tokens = min(n_tokens, self.cache.context - self.cache.length)
        while n_tokens:
            count = self._begin(min(n_tokens, n_batch))
            for layer in range(len(self.cache.layers)):
                self._append(layer, count)
            self.cache.commit(count)
            n_tokens -= count

    def interrupted_run(self, n_tokens: int, n_layers_done: int) -> None:
        """A pass that only the first layers have taken in."""
        n_tokens = min(n_tokens, self.cache.context - self.cache.length)
        if n_tokens:
            count = self._begin(n_tokens)
            for layer in range(n_layers_done):
                self._append(layer, count)

    def rewind(self, length: int) -> None:
        wanted = min(length, self.cache.length)
        self.cache.rewind(length)
        assert 0 <= self.cache.length <= wanted
        self.tokens = self.tokens[: self.cache.length]

    def _begin(self, n_tokens: int) -> int:
        count = self.cache.begin(n_tokens)
        self.tokens = self.tokens[: self.cache.length]
        self.tokens += range(self.next_token, self.next_token + count)
        self.next_token += count
        return count

    def _append(self, i: int, count: int) -> None:
        """Adds the newest tokens to a layer, then checks every key that they see."""
        begin = self.cache.length
        keys = self._rows(range(begin, begin + count))
        layer = self.cache.layers[i]
        place = layer.place(begin)
        write_cache(keys, layer.keys, place, NO_WINDOW)
        write_cache(-keys, layer.values, place, NO_WINDOW)
        chunk_size = self.config.layers[i].attention.chunk_size
        first_seen = begin // chunk_size * chunk_size if chunk_size else 0
        assert place == begin - first_seen
        expected = self._rows(range(first_seen, begin + count)).transpose(1, 0, 2)
        n_held = place + count
        np.testing.assert_array_equal(layer.keys.array[:, :n_held, :HEAD_DIM], expected)
        np.testing.assert_array_equal(layer.values.array[:, :n_held, :HEAD_DIM], -expected)

    def _rows(self, positions: Sequence[int]) -> np.ndarray:
        rows = np.empty((len(positions), N_HEAD_KV, HEAD_DIM), np.float32)
        for row, position in zip(rows, positions, strict=True):
            row[:] = 1000 * position + self.tokens[position] + np.arange(HEAD_DIM) / 16
            row[1] += 0.5
        return rows


def conversation(chunk_sizes: Sequence[int | None], context: int = 60) -> Conversation:
    config = made_up_config(chunk_sizes)
    return Conversation(config, KVCache(config, context, "f32"))


SIZES = [(8,), (8, None), (6, 4, None), (8, 12), (1, 5), (100, None), (None,)]


@pytest.mark.parametrize("chunk_sizes", SIZES)
@pytest.mark.parametrize("seed", range(3))
def test_random_conversations_see_what_was_said(chunk_sizes, seed):
    rng = np.random.default_rng([seed, *(size or 0 for size in chunk_sizes)])
    talk = conversation(chunk_sizes)
    for _ in range(150):
        kind = rng.integers(4)
        if kind == 0:
            talk.rewind(int(rng.integers(0, talk.cache.length + 2)))
        elif kind == 1:
            n_layers_done = int(rng.integers(0, len(chunk_sizes) + 1))
            talk.interrupted_run(int(rng.integers(1, 12)), n_layers_done)
        else:
            talk.run(int(rng.integers(1, 20)), int(rng.integers(1, 12)))


def test_rewinding_within_the_last_chunk_loses_nothing():
    talk = conversation([8, None])
    talk.run(21, 64)
    talk.rewind(18)
    assert talk.cache.length == 18
    talk.run(3, 64)


def test_rewinding_to_an_earlier_chunk_goes_to_its_border():
    talk = conversation([8, None])
    talk.run(21, 64)
    talk.rewind(13)
    assert talk.cache.length == 8
    talk.run(10, 64)


def test_rewinding_to_a_border_loses_nothing():
    talk = conversation([8, None])
    talk.run(21, 64)
    talk.rewind(16)
    assert talk.cache.length == 16


@pytest.mark.parametrize(("first", "second", "kept"), [(16, 12, 8), (12, 4, 0), (18, 17, 17)])
def test_a_second_rewind_remembers_what_was_overwritten(first, second, kept):
    """Positions 16 to 19 took the places of 8 to 11, however far the first rewind went."""
    talk = conversation([8, None])
    talk.run(20, 64)
    talk.rewind(first)
    talk.rewind(second)
    assert talk.cache.length == kept
    talk.run(10, 3)


def test_an_interrupted_pass_may_have_begun_the_next_chunk():
    talk = conversation([8, 8, None])
    talk.run(16, 64)
    talk.interrupted_run(4, 1)  # one of two chunked layers is in chunk 2 now
    talk.rewind(14)
    assert talk.cache.length == 8
    talk.run(10, 64)


def test_a_whole_last_chunk_can_be_rewound():
    talk = conversation([8, None])
    talk.run(16, 64)
    talk.rewind(11)
    assert talk.cache.length == 11
    talk.run(7, 2)


def test_several_chunk_sizes_find_a_border_that_suits_all():
    talk = conversation([8, 12])
    talk.run(30, 64)  # chunks begin at 24 and 24
    talk.rewind(22)  # 8: back to 16, which for 12 means 12, which for 8 means 8, and so on
    assert talk.cache.length == 0
    talk.run(30, 64)


def test_without_chunks_any_length_can_be_kept():
    talk = conversation([None, None])
    talk.run(50, 64)
    for length in (49, 23, 23, 60, 1, 0):
        before = talk.cache.length
        talk.rewind(length)
        assert talk.cache.length == min(before, length)


# Saved and loaded.


@pytest.mark.parametrize("chunk_sizes", SIZES)
@pytest.mark.parametrize("seed", range(3))
def test_a_loaded_conversation_goes_on_and_back_as_the_saved_one(chunk_sizes, seed):
    """Also where a pass was broken off before, and with room for another number of tokens."""
    rng = np.random.default_rng([seed, *(size or 0 for size in chunk_sizes)])
    talk = conversation(chunk_sizes)
    for _ in range(12):
        talk.run(int(rng.integers(1, 20)), int(rng.integers(1, 12)))
        if rng.random() < 0.5:
            talk.interrupted_run(int(rng.integers(1, 12)), 1)
        other = conversation(chunk_sizes, context=70)
        other.tokens, other.next_token = list(talk.tokens), talk.next_token
        other.cache.load(talk.cache.save())
        assert other.cache.length == talk.cache.length
        length = int(rng.integers(0, talk.cache.length + 1))
        for either in (talk, other):
            either.rewind(length)
        assert other.cache.length == talk.cache.length
        other.run(5, 3)
        talk.run(5, 3)


def test_saving_copies():
    talk = conversation([8, None])
    talk.run(13, 64)
    saved = talk.cache.save()
    before = {name: array.copy() for name, array in saved.items()}
    assert saved["0.keys"].shape[1] == 5  # of the last chunk alone
    assert saved["1.values"].shape[1] == 13
    talk.rewind(0)
    talk.run(13, 64)
    for name, array in saved.items():
        np.testing.assert_array_equal(array, before[name])


def test_what_is_of_another_conversation_is_refused():
    talk = conversation([8, None])
    talk.run(13, 64)
    saved = talk.cache.save()
    config = talk.config
    spoilt = {
        "context of 60": saved | {"length": np.array(61)},
        "keys of": KVCache(config, 60, "f16").save() | {"length": saved["length"]},
        "values of": saved | {"1.values": saved["1.values"][:, :12]},
        "no length": {name: array for name, array in saved.items() if name != "length"},
        "not the arrays": {name: array for name, array in saved.items() if name != "1.keys"},
    }
    spoilt["keys of"]["0.n_written"] = saved["0.n_written"]
    for message, arrays in spoilt.items():
        cache = KVCache(config, 60, "f32")
        cache.load(saved)
        with pytest.raises(ValueError, match=message):
            cache.load(arrays)
        assert cache.length == 0


NOT_NUMBERS = [
    np.array([13]),
    np.array([13, 13]),
    np.array([], np.int64),
    np.array(13.0),
    np.array(np.nan),
    np.array(True),
    np.array("13"),
    np.array(None),
    13,
]


def written(**parts: int) -> Callable[[], KVCache]:
    """Makes an empty cache of two layers, the first with these ``parts`` of attention."""
    seen = dataclasses.replace(attention(None), **parts)
    layers = tuple(Layer(part, DenseFeedForward(8)) for part in (seen, attention(None)))
    config = dataclasses.replace(made_up_config([None]), layers=layers)
    return lambda: KVCache(config, WINDOW_ROOM + 200, "f32")


FULL, CHUNKED, WINDOWED = written(), written(chunk_size=8), written(window=40)
every_kind = pytest.mark.parametrize(
    "make", [FULL, CHUNKED, WINDOWED], ids=["full", "chunked", "windowed"]
)


def saved_after(make: Callable[[], KVCache], *n_tokens: int) -> dict[str, np.ndarray]:
    """What a cache saves after passes of so many tokens, whose rows are no zeros."""
    cache = make()
    for count in n_tokens:
        while count:
            done = cache.begin(count)
            cache.commit(done)
            count -= done
    for layer in cache.layers:
        layer.keys.array[...] = layer.values.array[...] = 1
    return cache.save()


def check_refused(
    make: Callable[[], KVCache], good: dict[str, np.ndarray], bad: dict[str, object], message: str
) -> None:
    """``bad`` gets one line, after which the cache is as one that never held a token."""
    cache = make()
    cache.load(good)
    with pytest.raises(ValueError, match=message) as refusal:
        cache.load(bad)
    assert "\n" not in str(refusal.value)
    empty = make().save()
    assert cache.length == 0
    assert {name: array.shape for name, array in cache.save().items()} == {
        name: array.shape for name, array in empty.items()
    }
    for name in ("0.n_written", "1.n_written"):
        assert cache.save()[name] == 0
    cache.load(good)
    for name, array in cache.save().items():
        np.testing.assert_array_equal(array, good[name])


@every_kind
@pytest.mark.parametrize("name", ["length", "0.n_written", "1.n_written"])
@pytest.mark.parametrize("value", NOT_NUMBERS, ids=repr)
def test_counts_that_are_no_whole_numbers_are_refused(make, name, value):
    good = saved_after(make, 13)
    check_refused(make, good, good | {name: value}, "n_written|length")


@every_kind
@pytest.mark.parametrize("name", ["length", "0.n_written", "1.n_written"])
@pytest.mark.parametrize("value", [-1, -(2**63), 0, 5, 12, 14, 2**62])
def test_counts_that_do_not_agree_are_refused(make, name, value):
    """Of each other, of the rows, of what a layer with chunks or a window may have forgotten."""
    good = saved_after(make, 13)
    check_refused(make, good, good | {name: np.array(value)}, "less than|does not hold|fit|not of")


def test_a_chunk_that_is_gone_and_a_window_that_is_gone_are_refused():
    for make, n_tokens in ((CHUNKED, 21), (WINDOWED, WINDOW_ROOM + 150)):
        good = saved_after(make, n_tokens)
        short = saved_after(make, 13)
        mixed = {name: good[name] if name[0] == "0" else short[name] for name in good}
        check_refused(make, good, mixed, f"written up to {n_tokens} does not hold 13 tokens")


def test_what_was_rewound_within_chunk_and_window_still_loads():
    for make, n_tokens, back in ((CHUNKED, 21, 18), (WINDOWED, WINDOW_ROOM + 150, 120)):
        cache, other = make(), make()
        cache.load(saved_after(make, n_tokens))
        cache.rewind(back if make is CHUNKED else n_tokens - 5)
        other.load(cache.save())
        assert other.length == cache.length > 0
        assert other.save()["0.n_written"] == n_tokens


@every_kind
def test_arrays_of_other_layers_and_stray_ones_are_refused(make):
    good = saved_after(make, 13)
    one_more = {name.replace("1.", "2."): good[name] for name in good if name[0] == "1"}
    check_refused(make, good, good | one_more, r"cache of 2 layers has no 2\.keys")
    for stray in ("keys", "00.keys", "10.keys", "-1.keys", "x", ""):
        check_refused(make, good, good | {stray: good["0.keys"]}, "a cache of 2 layers has no")
    for stray in ("1.more", "0.0.keys", "0."):
        check_refused(make, good, good | {stray: good["0.keys"]}, "not the arrays")


@pytest.mark.parametrize("name", ["0.keys", "1.values"])
def test_rows_that_are_no_such_arrays_are_refused(name):
    good = saved_after(FULL, 13)
    for bad in (
        good[name].tolist(),
        None,
        good[name][0],
        good[name][:, :0],
        good[name][:1],
        good[name][..., :-1],
        good[name].astype(np.float64),
        good[name].astype(">f4"),
        good[name].astype(object),
    ):
        check_refused(FULL, good, good | {name: bad}, name.split(".")[1])


# The same through a whole model: bits of a fresh run, whatever came before.

N_VOCAB = 300
GEOMETRY = Geometry(
    n_layers=5, n_embd=64, n_head=4, n_head_kv=2, head_dim=16, n_ff=64, n_expert=4, n_vocab=N_VOCAB
)


class Model:
    """A random Llama 4 whose chunks are short, with two expert slots for sixteen experts."""

    def __init__(self, folder, chunk_sizes: Sequence[int | None], kv_type: str) -> None:
        path = folder / "model.gguf"
        write_model(path, GEOMETRY, "q8_0")
        file = open_gguf(path)
        config = read_config(file)
        layers = [
            dataclasses.replace(
                layer, attention=dataclasses.replace(layer.attention, chunk_size=size)
            )
            for layer, size in zip(config.layers, chunk_sizes, strict=True)
        ]
        self.config = dataclasses.replace(config, layers=tuple(layers))
        method = METHODS["pread"](file.parts)
        self.store = ExpertStore(read_layout(file, self.config), 2, method)
        self.transformer = Transformer(file, self.config, self.store, n_batch=7, threads=1)
        self.kv_type = kv_type

    def session(self) -> Session:
        return Session(self.transformer, KVCache(self.config, 64, self.kv_type))

    def close(self) -> None:
        self.store.close()
        self.transformer.close()


MODELS = [((8, 8, 8, None, 8), "f32"), ((8, 12, None, None, 5), "q8_0")]


@pytest.fixture(scope="module", params=MODELS, ids=["f32", "q8_0"])
def model(request, tmp_path_factory) -> Iterator[Model]:
    made = Model(tmp_path_factory.mktemp("model"), *request.param)
    yield made
    made.close()


class Interruption:
    """Stands in for a transformer's layers: before one of the next calls something happens."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._layers = model.transformer._stack._layers

    def after(self, n_calls: int, event: Callable[[], None]) -> None:
        left = n_calls

        def watched(layer: Callable) -> Callable:
            def call(*arguments: object) -> None:
                nonlocal left
                if left == 0:
                    event()
                left -= 1
                layer(*arguments)

            return call

        self._model.transformer._stack._layers = [watched(layer) for layer in self._layers]

    def stop(self) -> None:
        self._model.transformer._stack._layers = self._layers


def fail() -> None:
    raise Error("the disk is gone")


def press_ctrl_c() -> None:
    signal.raise_signal(signal.SIGINT)


def logits_of(session: Session, ids: list[int], first: int = 0) -> np.ndarray:
    some: list[np.ndarray] = []
    last = session.feed(ids, consume=lambda logits: some.append(logits.copy()), first=first)
    logits = np.concatenate(some)
    np.testing.assert_array_equal(logits[-1], last)
    return logits


@pytest.fixture
def interruption(model) -> Iterator[Interruption]:
    made = Interruption(model)
    yield made
    made.stop()


@pytest.mark.parametrize("event", [fail, press_ctrl_c])
def test_random_sessions_give_the_bits_of_fresh_ones(model, interruption, event):
    """Prompts that share beginnings, steps, interrupted passes, in any order."""
    rng = np.random.default_rng(4)
    session = model.session()
    n_interrupted = 0
    for _ in range(40):
        kept = session.tokens[: rng.integers(0, len(session.tokens) + 1)]
        ids = [*kept, *rng.integers(0, N_VOCAB, rng.integers(1, 20)).tolist()][:50]
        if rng.random() < 0.4:
            interruption.after(int(rng.integers(0, 25)), event)
            try:
                session.feed(ids)
            except (Error, KeyboardInterrupt):
                n_interrupted += 1
            interruption.stop()
            assert session.tokens == ids[: len(session.tokens)]
            continue
        logits = session.feed(ids)
        np.testing.assert_array_equal(logits, model.session().feed(ids))
        assert session.tokens == ids
        for _ in range(rng.integers(0, 5)):
            logits = session.step(int(rng.integers(0, N_VOCAB)))
        np.testing.assert_array_equal(logits, model.session().feed(session.tokens))
    assert n_interrupted > 3


def test_after_ctrl_c_the_cache_holds_the_complete_batches(model, interruption):
    """A batch is 7 tokens here, or fewer at the border of a chunk, through 5 layers."""
    session = model.session()
    first_batch = min(7, *(layer.attention.chunk_size or 7 for layer in model.config.layers))
    interruption.after(5 + 2, press_ctrl_c)  # in the third layer of the second batch
    ids = list(range(40))
    with pytest.raises(KeyboardInterrupt):
        session.feed(ids)
    interruption.stop()
    assert session.tokens == ids[:first_batch]
    np.testing.assert_array_equal(session.feed(ids), model.session().feed(ids))


def test_ctrl_c_in_the_last_layer_of_a_step_leaves_a_usable_session(model, interruption):
    session = model.session()
    session.feed([1, 2, 3])
    interruption.after(4, press_ctrl_c)
    with pytest.raises(KeyboardInterrupt):
        session.step(4)
    interruption.stop()
    assert session.tokens == [1, 2, 3, 4]  # the step was complete
    for ids in ([1, 2, 3, 4, 5], [1, 2, 3, 9, 5]):
        np.testing.assert_array_equal(session.feed(ids), model.session().feed(ids))


@pytest.mark.parametrize("n_tokens", [1, 16, 23])
def test_a_loaded_cache_gives_the_bits_of_the_saved_one(model, n_tokens):
    ids = np.random.default_rng(6).integers(0, N_VOCAB, 40).tolist()
    talk, other = (KVCache(model.config, 64, model.kv_type) for _ in range(2))
    model.transformer.forward(ids[:n_tokens], talk)
    other.load(talk.save())
    for token in ids[n_tokens:]:
        expected = model.transformer.forward([token], talk)
        np.testing.assert_array_equal(model.transformer.forward([token], other), expected)


def test_tokens_in_batches_equal_tokens_one_by_one(model):
    ids = np.random.default_rng(5).integers(0, N_VOCAB, 30).tolist()
    together = logits_of(model.session(), ids)
    assert together.shape == (30, N_VOCAB)
    session = model.session()
    for position, token in enumerate(ids):
        np.testing.assert_array_equal(session.step(token), together[position])


@pytest.mark.parametrize("first", [1, 15, 16, 17, 29])
def test_logits_from_some_token_on_are_those_of_all(model, monkeypatch, first):
    monkeypatch.setattr(transformer, "_LOGITS_BYTES", 3 * 4 * N_VOCAB)  # three tokens at a time
    ids = np.random.default_rng(5).integers(0, N_VOCAB, 30).tolist()
    together = logits_of(model.session(), ids)
    np.testing.assert_array_equal(logits_of(model.session(), ids, first), together[first:])


def test_what_the_cache_holds_is_not_run_again(model):
    session = model.session()
    session.feed(list(range(20, 40)))
    assert session.counters.prompt_tokens == 20
    session.feed([*range(20, 40), 5, 6, 7])
    assert session.counters.prompt_tokens == 23
    session.feed([*range(20, 40), 5, 6, 7])  # the last token's logits are not kept
    assert session.counters.prompt_tokens == 24


def test_a_prompt_of_nothing_is_an_error_that_spoils_nothing(model):
    ids = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
    session = model.session()
    expected = session.feed(ids)
    for _ in range(2):
        with pytest.raises(Error, match="the prompt is empty"):
            session.feed([])
        assert session.tokens == []
    np.testing.assert_array_equal(session.feed(ids), expected)


def test_too_many_tokens_are_an_error_that_spoils_nothing(model):
    session = model.session()
    session.feed([1] * 10)
    with pytest.raises(Error, match=r"70 tokens do not fit into a context of 64; .*--context"):
        session.feed([1] * 70)
    with pytest.raises(Error, match=f"token {N_VOCAB} is not in the vocabulary of {N_VOCAB}"):
        session.feed([1, 2, N_VOCAB])
    with pytest.raises(Error, match="token -1 is not in the vocabulary"):
        session.feed([1, 2, -1])
    expected = model.session().feed([1] * 64)
    np.testing.assert_array_equal(session.feed([1] * 64), expected)
    with pytest.raises(Error, match="65 tokens do not fit"):
        session.step(1)
