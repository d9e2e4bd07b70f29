"""Mixtures of experts as compiled functions: each stage against float64, and bit against bit."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest
from helpers.activations import ACTIVATIONS
from helpers.made_matrices import Int8, MadeMatrix, check_feed_forward, flat_int8, input_record

from q4run.kernels.elementwise import CLAMPED_SWIGLU, GELU, SILU
from q4run.kernels.experts import MIXTURE, combine, moe_layer, route, run_experts
from q4run.kernels.feed_forward import FEED_FORWARD
from q4run.kernels.products.activations import GROUP, Int8Activations, quantize_activations
from q4run.kernels.routing import SIGMOID, SOFTMAX
from q4run.kernels.threads.pool import ALONE, Pool
from q4run.layers.workspace import ExpertBuffers, Routing

N_EXPERT = 5
EPS = np.float32(1e-5)
NO_INT8 = Int8Activations(np.empty(0, np.int8), np.empty(0, np.float32), np.empty(0, np.int32))


@dataclass(frozen=True)
class Shape:
    """Sizes, and the types of the experts' gate, up and down, then of the shared expert's."""

    n_embd: int
    n_ff: int
    types: tuple[str, str, str]
    n_ff_shared: int
    shared_types: tuple[str, str, str]


SHAPES = {
    "floats of odd sizes": Shape(45, 37, ("f32",) * 3, 29, ("f16",) * 3),
    "int8": Shape(64, 96, ("q8_0",) * 3, 160, ("q4_0",) * 3),
    "mixed": Shape(32, 64, ("f32", "q8_0", "q4_0"), 33, ("q8_0", "bf16", "f32")),
    "int8 only in the shared expert": Shape(32, 21, ("f32",) * 3, 32, ("q8_0",) * 3),
}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


@dataclass(frozen=True)
class Form:
    """What few mixtures have; ``softmax`` or sigmoids that multiply the input."""

    softmax: bool
    activation: int = SILU
    biases: bool = False
    shared_gate: bool = False
    residual_scale: float = 0.0


FORMS = {
    "sigmoid": Form(softmax=False),
    "softmax": Form(softmax=True),
    "gpt-oss": Form(softmax=True, activation=CLAMPED_SWIGLU, biases=True),
    "gated": Form(softmax=True, shared_gate=True, residual_scale=0.3),
    "gelu": Form(softmax=False, activation=GELU, biases=True, residual_scale=3.0),
}


class Mixture:
    """The weights of one layer."""

    def __init__(self, shape: Shape, k: int, form: str, has_shared: bool) -> None:
        self.shape, self.k, self.form, self.has_shared = shape, k, FORMS[form], has_shared
        self.biases = [
            normal(N_EXPERT, n, seed=10 + i)
            for i, n in enumerate((shape.n_ff, shape.n_ff, shape.n_embd))
        ]
        self.shared_gate = normal(shape.n_embd, seed=9)
        self.norm = normal(shape.n_embd, seed=1)
        self.router = MadeMatrix("f32", N_EXPERT, shape.n_embd)
        n_embd, n_ff, n_ff_shared = shape.n_embd, shape.n_ff, shape.n_ff_shared
        sizes = ((n_ff, n_embd), (n_ff, n_embd), (n_embd, n_ff))
        self.experts = [self._matrices(shape.types, sizes, 3 * e) for e in range(N_EXPERT)]
        self._slots = [np.concatenate([m.strips.ravel() for m in e]) for e in self.experts]
        self.addresses = np.array([slot.ctypes.data for slot in self._slots])
        sizes = ((n_ff_shared, n_embd), (n_ff_shared, n_embd), (n_embd, n_ff_shared))
        self.shared = self._matrices(shape.shared_types, sizes, 100)

    def _matrices(self, types, sizes, seed: int) -> tuple[MadeMatrix, MadeMatrix, MadeMatrix]:
        gate, up, down = (
            MadeMatrix(name, *size, seed=seed + i)
            for i, (name, size) in enumerate(zip(types, sizes, strict=True))
        )
        return gate, up, down


def takes_int8(*matrices: MadeMatrix) -> bool:
    return any(matrix.fmt.int8_activations for matrix in matrices)


class Pass:
    """One batch through a mixture, with room of its own: full of NaN, and for one row more."""

    def __init__(self, mixture: Mixture, x: np.ndarray) -> None:
        self.mixture, self.x = mixture, x
        n_tokens, n_embd = x.shape
        shape, n_rows = mixture.shape, n_tokens * mixture.k
        self.n_tokens, self.n_rows = n_tokens, n_rows
        self.begin = -(-n_rows * shape.n_ff // GROUP) * GROUP  # of the shared expert's values
        n_hidden = self.begin + n_tokens * shape.n_ff_shared
        gate, up, down = mixture.experts[0]
        normed_int8 = mixture.has_shared and takes_int8(*mixture.shared[:2])
        self.buffers = ExpertBuffers(
            normed=room(n_tokens + 1, n_embd),
            normed_int8=int8_room(normed_int8, (n_tokens + 1) * n_embd),
            input=room(n_rows + 1, n_embd),
            input_int8=int8_room(takes_int8(gate, up), (n_rows + 1) * n_embd),
            hidden=room(n_hidden + GROUP, 1),
            hidden_int8=int8_room(takes_int8(down, mixture.shared[2]), n_hidden + GROUP),
            up=room(n_hidden + GROUP, 1),
            output=room(n_rows + 1, n_embd),
            update=room(n_tokens + 1, n_embd),
        )
        self.routing = Routing(
            logits=room(n_tokens + 1, N_EXPERT),
            chosen=np.full(n_rows + 1, -1),
            weights=room(n_rows + 1, 1),
            rows=np.full(n_rows + 1, -1),
            experts=np.full(N_EXPERT, -1),
            first_row=np.full(N_EXPERT + 1, -1),
        )
        self._record = np.zeros(1, MIXTURE)
        self._jobs = np.zeros(N_EXPERT + 1, FEED_FORWARD)
        record, form = self._record[0], mixture.form
        record["norm"], record["eps"] = mixture.norm.ctypes.data, EPS
        record["residual_scale"] = form.residual_scale
        record["update"] = self.buffers.update.ctypes.data
        for name in ("chosen", "weights", "rows", "experts", "first_row"):
            record[name] = getattr(self.routing, name).ctypes.data
        expert = self._job(mixture.experts[0], self.buffers.input, 0)
        offset = 0
        for name, matrix in zip(("gate", "up", "down"), mixture.experts[0], strict=True):
            expert[name]["weights"] = offset
            offset += matrix.strips.size
        expert["out"] = self.buffers.output.ctypes.data
        if form.biases:
            for name, bias in zip(("gate", "up", "down"), mixture.biases, strict=True):
                expert[f"{name}_bias"] = bias.ctypes.data
        record["expert"] = expert
        if mixture.has_shared:
            record["shared"] = self._job(mixture.shared, self.buffers.normed, self.begin)
            if form.shared_gate:
                record["shared_gate"] = mixture.shared_gate.ctypes.data
        router = record["router"]
        router["n_used"] = mixture.k
        router["scores"] = SOFTMAX if form.softmax else SIGMOID
        router["renormalise"], router["on_input"] = form.softmax, not form.softmax
        router["product"]["matrix"] = mixture.router.record
        int8 = self.buffers.normed_int8 if normed_int8 else None
        router["product"]["input"] = input_record(self.buffers.normed, int8)
        router["product"]["out"] = self.routing.logits.ctypes.data

    def _job(self, matrices, source: np.ndarray, begin: int) -> np.void:
        gate, up, down = matrices
        buffers, job = self.buffers, np.zeros(1, FEED_FORWARD)[0]
        for name, matrix in zip(("gate", "up", "down"), matrices, strict=True):
            job[name] = matrix.record
        int8 = buffers.normed_int8 if source is buffers.normed else buffers.input_int8
        job["input"] = input_record(source, int8 if takes_int8(gate, up) else None)
        job["hidden"] = input_record(
            buffers.hidden, buffers.hidden_int8 if takes_int8(down) else None, begin=begin
        )
        job["up_out"] = buffers.up[begin:].ctypes.data
        job["out"] = buffers.update.ctypes.data
        job["activation"] = self.mixture.form.activation
        return job

    def route(self, pool: Pool) -> int:
        return route(pool, self.x, self._record)

    def run_whole_layer(self, pool: Pool, addresses: np.ndarray) -> tuple[int, bool]:
        return moe_layer(pool, self.x, self._record, addresses, self._jobs)

    def run(self, pool: Pool, lists: Sequence[Sequence[int]]) -> None:
        """lists: which experts are computed together, by their places among those chosen; the
        shared expert joins the first."""
        with_shared, addresses = self.mixture.has_shared, self.mixture.addresses
        for some in lists:
            places = np.array(some, np.int64)
            arguments = (with_shared, places, addresses, self._jobs)
            run_experts(pool, self.n_tokens, self._record, *arguments)
            with_shared = False

    def combine(self, pool: Pool) -> None:
        combine(pool, self.x, self._record)


def room(n_rows: int, n_cols: int) -> np.ndarray:
    return np.full(n_rows * n_cols, np.nan, np.float32)


def int8_room(needed: bool, n_values: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return tuple(flat_int8(n_values) if needed else NO_INT8)


def check_rows(flat: np.ndarray, n_rows: int, n_cols: int) -> np.ndarray:
    """The first rows of a buffer, after which nothing was written."""
    assert np.isnan(flat[n_rows * n_cols :]).all()
    return flat[: n_rows * n_cols].reshape(n_rows, n_cols)


def check_int8(int8: Int8, rows: np.ndarray) -> None:
    """The same rows in int8, after which nothing was written; or no room for them."""
    q, scales, sums = int8
    if len(q) == 0:
        return
    expected = quantize_activations(rows)
    for got, values, before in zip(
        (q, scales, sums), expected, (-128, np.nan, 1 << 30), strict=True
    ):
        np.testing.assert_array_equal(got[: values.size], values.ravel())
        np.testing.assert_array_equal(got[values.size :], np.full_like(got[values.size :], before))


def run_through(mixture: Mixture, x: np.ndarray, pool: Pool, lists=None) -> np.ndarray:
    """The stream after a pass; by default all experts at once."""
    batch = Pass(mixture, x.copy())
    n_experts = batch.route(pool)
    batch.run(pool, [range(n_experts)] if lists is None else lists(n_experts))
    batch.combine(pool)
    return batch.x


EACH_FORM = pytest.mark.parametrize("form", FORMS)


@pytest.mark.parametrize("n_tokens", [0, 1, 7, 33])
@pytest.mark.parametrize("has_shared", [False, True], ids=["alone", "shared"])
@EACH_FORM
@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_every_stage(shape, k, form, has_shared, n_tokens, pool):
    mixture = Mixture(SHAPES[shape], k, form, has_shared)
    n_embd, n_ff = mixture.shape.n_embd, mixture.shape.n_ff
    x = normal(n_tokens, n_embd, seed=2) * np.float32(3)
    batch = Pass(mixture, x.copy())
    buffers, routing = batch.buffers, batch.routing
    n_rows = n_tokens * k

    n_experts = batch.route(pool)
    np.testing.assert_array_equal(batch.x, x)
    wide = x.astype(np.float64)
    rms = np.sqrt((wide**2).mean(axis=1, keepdims=True) + EPS)
    normed = check_rows(buffers.normed, n_tokens, n_embd)
    np.testing.assert_allclose(normed, wide / rms * mixture.norm, rtol=2e-6)
    check_int8(buffers.normed_int8, normed)
    logits = check_rows(routing.logits, n_tokens, N_EXPERT)
    np.testing.assert_allclose(logits, mixture.router.product(normed), rtol=1e-5, atol=1e-5)
    chosen = routing.chosen[:n_rows].reshape(n_tokens, k)
    np.testing.assert_array_equal(chosen, np.argsort(-logits, axis=1, kind="stable")[:, :k])
    weights = check_rows(routing.weights, n_tokens, k)
    best = np.take_along_axis(logits, chosen, axis=1).astype(np.float64)
    expected = np.exp(best) / np.exp(best).sum(axis=1, keepdims=True)
    softmax = mixture.form.softmax
    expected = expected if softmax else 1 / (1 + np.exp(-best))
    np.testing.assert_allclose(weights, expected, rtol=1e-6)

    # Rows are grouped by expert, within each in the order of tokens.
    assert routing.experts[:n_experts].tolist() == sorted(set(chosen.ravel().tolist()))
    order = np.argsort(chosen.ravel(), kind="stable")
    rows = routing.rows[:n_rows]
    np.testing.assert_array_equal(rows[order], np.arange(n_rows))
    ends = np.searchsorted(chosen.ravel()[order], routing.experts[:n_experts], side="right")
    assert routing.first_row[: n_experts + 1].tolist() == [0, *ends.tolist()]
    inputs = check_rows(buffers.input, n_rows, n_embd)
    scale = np.float32(1) if softmax else weights.reshape(-1, 1)
    np.testing.assert_array_equal(inputs[rows], normed.repeat(k, axis=0) * scale)
    check_int8(buffers.input_int8, inputs)

    batch.run(pool, [range(n_experts)])
    np.testing.assert_array_equal(batch.x, x)
    activation = ACTIVATIONS[mixture.form.activation]
    outputs = check_rows(buffers.output, n_rows, n_embd)
    hidden = buffers.hidden[: n_rows * n_ff].reshape(n_rows, n_ff)
    for place, (first, end) in enumerate(pairwise(routing.first_row[: n_experts + 1])):
        some = slice(first, end)
        expert = routing.experts[place]
        biases = [bias[expert] if mixture.form.biases else 0.0 for bias in mixture.biases]
        check_feed_forward(
            mixture.experts[expert], inputs[some], hidden[some], outputs[some], biases, activation
        )
    assert np.isnan(buffers.hidden[n_rows * n_ff : batch.begin]).all()
    n_shared = n_tokens * mixture.shape.n_ff_shared if has_shared else 0
    assert np.isnan(buffers.hidden[batch.begin + n_shared :]).all()
    updates = np.zeros((n_tokens, n_embd))
    if has_shared:
        updates = check_rows(buffers.update, n_tokens, n_embd).astype(np.float64)
        shared_hidden = buffers.hidden[batch.begin : batch.begin + n_shared]
        shared_hidden = shared_hidden.reshape(n_tokens, -1 if n_tokens else 1)
        if n_tokens:
            check_feed_forward(
                mixture.shared, normed, shared_hidden, updates, activation=activation
            )
        if mixture.form.shared_gate:
            gates = normed.astype(np.float64) @ mixture.shared_gate
            updates /= 1 + np.exp(-gates)[:, None]

    batch.combine(pool)
    weighted = outputs[rows].astype(np.float64) * (weights.reshape(-1, 1) if softmax else 1)
    updates = updates + weighted.reshape(n_tokens, k, n_embd).sum(axis=1)
    expected = x + updates * (mixture.form.residual_scale or 1)
    np.testing.assert_allclose(batch.x, expected, rtol=1e-6, atol=2e-6)
    check_rows(buffers.update, n_tokens, n_embd)


@pytest.mark.parametrize("has_shared", [False, True], ids=["alone", "shared"])
@EACH_FORM
@pytest.mark.parametrize("shape", SHAPES)
def test_any_order_and_grouping_gives_the_same_bits(shape, form, has_shared, pool):
    """As experts come from the disk: one by one, in any order, or none while others are read."""
    mixture = Mixture(SHAPES[shape], 2, form, has_shared)
    x = normal(33, mixture.shape.n_embd, seed=3)
    at_once = run_through(mixture, x, pool)
    assert not np.array_equal(at_once, x)
    for lists in (
        lambda n: [[place] for place in range(n)],
        lambda n: [[], *([place] for place in reversed(range(n)))],
        lambda n: [[2, 0], [], range(3, n), [1]],
    ):
        np.testing.assert_array_equal(run_through(mixture, x, pool, lists), at_once)


@pytest.mark.parametrize("k", [1, 2])
@EACH_FORM
@pytest.mark.parametrize("shape", SHAPES)
def test_a_token_alone_has_the_bits_it_has_in_a_batch(shape, form, k, pool):
    mixture = Mixture(SHAPES[shape], k, form, True)
    x = normal(33, mixture.shape.n_embd, seed=4)
    together = run_through(mixture, x, pool)
    for i in range(33):
        np.testing.assert_array_equal(run_through(mixture, x[i : i + 1], pool)[0], together[i])


@EACH_FORM
@pytest.mark.parametrize("shape", SHAPES)
def test_any_number_of_threads_gives_the_same_bits(shape, form, three_threads):
    mixture = Mixture(SHAPES[shape], 2, form, True)
    for n_tokens in (1, 33):
        x = normal(n_tokens, mixture.shape.n_embd, seed=5)
        alone = run_through(mixture, x, ALONE)
        for _ in range(5):
            np.testing.assert_array_equal(run_through(mixture, x, three_threads), alone)


@pytest.mark.parametrize("has_shared", [False, True], ids=["alone", "shared"])
@EACH_FORM
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n_tokens", [0, 1, 33])
def test_a_whole_layer_at_once_where_all_chosen_experts_are_in_ram(
    n_tokens, shape, form, has_shared, pool
):
    mixture = Mixture(SHAPES[shape], 2, form, has_shared)
    x = normal(n_tokens, mixture.shape.n_embd, seed=8)
    batch = Pass(mixture, x.copy())
    n_experts = batch.route(ALONE)
    chosen = batch.routing.experts[:n_experts]
    addresses = np.zeros_like(mixture.addresses)
    addresses[chosen] = mixture.addresses[chosen]  # the others need not be there
    assert batch.run_whole_layer(pool, addresses) == (n_experts, True)
    np.testing.assert_array_equal(batch.x, run_through(mixture, x, ALONE))
    for absent in chosen:
        some = addresses.copy()
        some[absent] = 0
        batch = Pass(mixture, x.copy())
        assert batch.run_whole_layer(pool, some) == (n_experts, False)
        np.testing.assert_array_equal(batch.x, x)  # and nothing was computed but the routing
        np.testing.assert_array_equal(batch.routing.experts[:n_experts], chosen)


@EACH_FORM
def test_large_logits_give_weights_of_zero_and_one(form, pool):
    mixture = Mixture(SHAPES["floats of odd sizes"], 2, form, False)
    mixture.router.strips.view(np.float32)[:] *= 3000
    batch = Pass(mixture, normal(33, 45, seed=6))
    with np.errstate(all="ignore"):
        batch.route(pool)
    weights = batch.routing.weights[:-1].reshape(33, 2)
    assert np.isfinite(weights).all()
    assert (weights[:, 0] == 1).any()
    assert (weights < 1e-30).any()
    if mixture.form.softmax:
        np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-6)


def test_a_router_that_is_no_number_names_experts_that_exist(pool):
    mixture = Mixture(SHAPES["floats of odd sizes"], 2, "softmax", False)
    mixture.router.strips.view(np.float32)[:] = np.nan
    batch = Pass(mixture, normal(7, 45, seed=7))
    n_experts = batch.route(pool)
    assert 0 < n_experts <= N_EXPERT
    assert sorted(batch.routing.rows[:-1].tolist()) == list(range(14))
    batch.run(pool, [range(n_experts)])
    batch.combine(pool)
    assert np.isnan(batch.x).all()
