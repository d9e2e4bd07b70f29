"""The scratch memory of a pass: as large as planned, large enough, and each thing has its place."""

import tracemalloc
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from q4run.kernels.products.activations import GROUP
from q4run.layers import workspace as workspace_module
from q4run.layers.workspace import Workspace, shared_begin, workspace_bytes
from q4run.models.config import ModelConfig
from q4run.models.parts import (
    Attention,
    DenseFeedForward,
    Experts,
    Layer,
    Router,
    SharedExpert,
)
from q4run.models.rope import Rope

ATTENTION = Attention(4, 2, 16, 16, Rope(16, 10000.0))


def dense(n_ff: int, attention: Attention = ATTENTION) -> Layer:
    return Layer(attention, DenseFeedForward(n_ff))


def sparse(
    n_expert: int, k: int, n_ff: int, n_ff_shared: int = 0, attention: Attention = ATTENTION
) -> Layer:
    shared = SharedExpert(n_ff_shared) if n_ff_shared else None
    return Layer(attention, Experts(n_expert, k, n_ff, Router(), shared))


BASE = ModelConfig(
    architecture="llama",
    n_vocab=100,
    n_embd=64,
    rms_norm_eps=1e-5,
    context_length=64,
    tied_embeddings=False,
    layers=(),
)
MODELS = {
    "dense": replace(BASE, layers=(dense(160), dense(96))),
    "experts": replace(BASE, layers=(sparse(4, 2, 96),) * 2),
    "shared expert": replace(BASE, layers=(sparse(16, 1, 96, 128),) * 2),
    "mixed": replace(BASE, layers=(dense(500), sparse(3, 3, 32, 64), sparse(70, 1, 8), dense(1))),
    "odd": replace(
        BASE,
        n_embd=45,
        layers=(sparse(5, 2, 37, 29, Attention(3, 1, 7, 7)), dense(11, Attention(3, 1, 7, 7))),
    ),
    "wide heads": replace(BASE, layers=(dense(1, Attention(32, 32, 64, 64)),)),
    "heads unlike": replace(
        BASE, layers=(dense(8, Attention(8, 2, 16, 4)), dense(8, Attention(4, 4, 12, 24)))
    ),
}
pytestmark = pytest.mark.parametrize("n_batch", [1, 2, 7, 64])


@pytest.fixture(params=MODELS)
def config(request) -> ModelConfig:
    return MODELS[request.param]


def test_it_takes_what_is_planned_and_nothing_later(config, n_batch, monkeypatch):
    # Memory maps are not traced.
    monkeypatch.setattr(workspace_module, "empty_bytes", lambda n, huge: np.empty(n, np.uint8))
    tracemalloc.start()
    try:
        workspace = Workspace(config, n_batch)
        taken = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    planned = workspace_bytes(config, n_batch)
    assert planned <= taken <= planned + 12_000  # Python's own objects
    assert workspace.n_batch == n_batch


def test_every_buffer_has_the_room_that_kernels_write_to(config, n_batch):
    w = Workspace(config, n_batch)
    n_embd = n_batch * config.n_embd
    assert w.attention.normed.size >= n_embd
    assert w.attention.update.size >= n_embd
    check_int8(w.attention.normed_int8, n_embd)
    for layer in config.layers:
        part = layer.attention
        assert w.attention.q.size >= n_batch * part.n_head * part.key_dim
        assert w.attention.k.size >= n_batch * part.n_head_kv * part.key_dim
        assert w.attention.v.size >= n_batch * part.n_head_kv * part.value_dim
        attended = n_batch * part.n_head * part.value_dim
        assert w.attention.attended.size >= attended
        check_int8(w.attention.attended_int8, attended)
        if moe := layer.experts:
            n_rows = n_batch * moe.n_expert_used
            # The shared expert's values, whole groups after those of the experts' rows.
            begin = shared_begin(moe, n_batch)
            assert begin % GROUP == 0
            assert 0 <= begin - n_rows * moe.n_ff < GROUP
            n_hidden = begin + n_batch * (moe.shared.n_ff if moe.shared else 0)
            assert w.experts.input.size >= n_rows * config.n_embd
            assert w.experts.output.size >= n_rows * config.n_embd
            check_int8(w.experts.input_int8, n_rows * config.n_embd)
            assert w.routing.logits.size >= n_batch * moe.n_expert
            assert w.routing.first_row.size >= moe.n_expert + 1
            assert w.routing.experts.size >= moe.n_expert
            for name in ("chosen", "weights", "rows"):
                assert getattr(w.routing, name).size >= n_rows
        else:
            n_hidden = n_batch * layer.feed_forward.n_ff
        assert w.experts.hidden.size >= n_hidden
        assert w.experts.up.size >= n_hidden
        check_int8(w.experts.hidden_int8, n_hidden)
    check_int8(w.experts.normed_int8, n_embd)


def check_int8(int8: tuple[np.ndarray, np.ndarray, np.ndarray], n_values: int) -> None:
    n_groups = -(-n_values // GROUP)
    assert [part.dtype for part in int8] == [np.int8, np.float32, np.int32]
    q, scales, sums = (part.size for part in int8)
    assert scales >= n_groups
    assert (q, sums) == (GROUP * scales, 2 * scales)


def arrays(parts) -> list[np.ndarray]:
    """The arrays of nested tuples."""
    return [
        array for part in parts for array in (arrays(part) if isinstance(part, tuple) else [part])
    ]


def test_what_is_in_use_at_once_lies_apart_on_cache_lines_of_its_own(config, n_batch):
    w = Workspace(config, n_batch)
    for in_use in ((w.attention,), (w.experts, w.routing)):
        ranges = sorted((array.ctypes.data, array.nbytes) for array in arrays(in_use))
        for (begin, n_bytes), (after, _) in pairwise([one for one in ranges if one[1]]):
            assert begin % 64 == 0
            assert begin + n_bytes <= after
    # A layer's attention is over before its feed-forward begins.
    first = w.experts.input if w.experts.input.size else w.experts.hidden
    assert w.attention.q.ctypes.data == first.ctypes.data
    # What the norm gives and what is added to the stream are the same buffers for both.
    assert w.attention.normed is w.experts.normed
    assert w.attention.update is w.experts.update
    both = arrays((w.attention, w.experts, w.routing))
    end = max(array.ctypes.data + array.nbytes for array in both)
    assert end - w.attention.normed.ctypes.data <= workspace_bytes(config, n_batch)
