"""Gated feed-forwards, several at once, against float64 stage by stage and bit against bit."""

from typing import Any

import numpy as np
import pytest
from helpers.activations import ACTIVATIONS
from helpers.made_matrices import MadeMatrix, check_feed_forward, flat_int8, input_record

from q4run.kernels.elementwise import SILU
from q4run.kernels.feed_forward import FEED_FORWARD, run_feed_forwards
from q4run.kernels.products.activations import quantize_activations

EPS = np.float32(1e-3)
# Types of gate, up and down; n_embd, n_ff.
SHAPES = {
    "f32": (("f32", "f32", "f32"), 45, 37),
    "f16 of one column": (("f16", "f16", "f16"), 1, 1),
    "q8_0": (("q8_0", "q8_0", "q8_0"), 64, 96),
    "q4_0": (("q4_0", "q4_0", "q4_0"), 96, 352),  # many pieces
    "few hidden": (("q8_0", "q8_0", "f16"), 320, 8),
    "float gate": (("bf16", "q8_0", "q4_0"), 32, 64),
    "float down": (("q8_0", "q4_0", "f32"), 64, 101),
    "k types": (("q4_k", "q4_k", "q6_k"), 256, 512),
}


class FeedForward:
    """One feed-forward over ``n_tokens`` tokens, with room of its own."""

    def __init__(self, shape: str, x: np.ndarray, seed: int = 0) -> None:
        types, n_embd, n_ff = SHAPES[shape]
        n_tokens = len(x)
        sizes = ((n_ff, n_embd), (n_ff, n_embd), (n_embd, n_ff))
        self.matrices = tuple(
            MadeMatrix(name, *size, seed=seed + i)
            for i, (name, size) in enumerate(zip(types, sizes, strict=True))
        )
        self.x = x
        gate, up, down = self.matrices
        takes_int8 = gate.fmt.int8_activations or up.fmt.int8_activations
        self._x_int8 = quantize_activations(x) if takes_int8 else None
        # One token more than there are.
        self._hidden = np.full((n_tokens + 1) * n_ff, np.nan, np.float32)
        hidden_int8 = flat_int8(self._hidden.size) if down.fmt.int8_activations else None
        self._hidden_int8 = hidden_int8
        self._up = np.full((n_tokens + 1) * n_ff, np.nan, np.float32)
        self._out = np.full((n_tokens + 1) * n_embd, np.nan, np.float32)
        self.job = np.zeros(1, FEED_FORWARD)
        for place, matrix in zip(("gate", "up", "down"), self.matrices, strict=True):
            self.job[place] = matrix.record
        self.job["input"] = input_record(x.ravel(), self._x_int8, n_tokens)
        self.job["hidden"] = input_record(self._hidden, hidden_int8, n_tokens)
        self.job["up_out"] = self._up.ctypes.data
        self.job["out"] = self._out.ctypes.data
        self._more: dict[str, Any] = {}

    def add_biases(self) -> None:
        """To gate, up and down."""
        n_embd, n_ff = self.x.shape[1], self.matrices[0].record["n_rows"]
        self._biases = [normal(1, n)[0] for n in (n_ff, n_ff, n_embd)]
        names = ("gate_bias", "up_bias", "down_bias")
        for name, bias in zip(names, self._biases, strict=True):
            self.job[name] = bias.ctypes.data
        self._more["biases"] = self._biases

    def set_activation(self, code: int) -> None:
        self.job["activation"] = code
        self._more["activation"] = ACTIVATIONS[code]

    def add_norm(self) -> None:
        """Of what comes before down."""
        self._norm = normal(2, self.matrices[0].record["n_rows"])[0]
        self.job["sub_norm"], self.job["eps"] = self._norm.ctypes.data, EPS
        self._more["norm"] = self._normed

    def _normed(self, hidden: np.ndarray) -> np.ndarray:
        return hidden / np.sqrt((hidden**2).mean(axis=1, keepdims=True) + EPS) * self._norm

    @property
    def out(self) -> np.ndarray:
        return self._out[: self.x.size].reshape(self.x.shape)

    def check(self) -> None:
        n_tokens, n_embd = self.x.shape
        n_ff = self._hidden.size // (n_tokens + 1)
        hidden = self._hidden[: n_tokens * n_ff].reshape(n_tokens, n_ff)
        check_feed_forward(self.matrices, self.x, hidden, self.out, **self._more)
        for array, n_cols in ((self._hidden, n_ff), (self._up, n_ff), (self._out, n_embd)):
            assert np.isnan(array[n_tokens * n_cols :]).all()
        if self._hidden_int8:
            expected = quantize_activations(hidden)
            n_groups = n_tokens * n_ff // 32
            for got, values in zip(self._hidden_int8, expected, strict=True):
                np.testing.assert_array_equal(got[: values.size], values.ravel())
            assert (self._hidden_int8.q[32 * n_groups :] == -128).all()


def normal(n_tokens: int, n_embd: int) -> np.ndarray:
    rng = np.random.default_rng([n_tokens, n_embd])
    return rng.standard_normal((n_tokens, n_embd), dtype=np.float32)


@pytest.mark.parametrize("n_tokens", [0, 1, 2, 7, 33])
@pytest.mark.parametrize("shape", SHAPES)
def test_one_feed_forward(pool, shape, n_tokens):
    feed_forward = FeedForward(shape, normal(n_tokens, SHAPES[shape][1]))
    run_feed_forwards(pool, feed_forward.job)
    feed_forward.check()
    for i in range(n_tokens):
        alone = FeedForward(shape, feed_forward.x[i : i + 1])
        run_feed_forwards(pool, alone.job)
        np.testing.assert_array_equal(alone.out[0], feed_forward.out[i])


@pytest.mark.parametrize("n_tokens", [0, 1, 9])
@pytest.mark.parametrize("shape", ["f32", "q4_0", "float down"])
@pytest.mark.parametrize("form", ["biases", *ACTIVATIONS, "norm", "all"])
def test_other_forms(pool, form, shape, n_tokens):
    """Biases, other activations, and a norm before down."""

    def made(x: np.ndarray) -> FeedForward:
        feed_forward = FeedForward(shape, x)
        if form in ("biases", "all"):
            feed_forward.add_biases()
        if form in ("norm", "all"):
            feed_forward.add_norm()
        feed_forward.set_activation(form if form in ACTIVATIONS else SILU)
        return feed_forward

    feed_forward = made(normal(n_tokens, SHAPES[shape][1]))
    run_feed_forwards(pool, feed_forward.job)
    feed_forward.check()
    for i in range(n_tokens):
        alone = made(feed_forward.x[i : i + 1])
        run_feed_forwards(pool, alone.job)
        np.testing.assert_array_equal(alone.out[0], feed_forward.out[i])


def test_many_at_once_are_each_as_alone(pool):
    """Of different types, sizes and numbers of tokens, some without tokens."""
    shapes = [*SHAPES, *SHAPES, *SHAPES]
    counts = [3, 1, 9, 33, 0, 2, 1, 9, 0, 1, 20, 1, 7, 1, 4, 1, 5, 1, 0, 6, 2, 1, 1, 0]
    together = [
        FeedForward(shape, normal(n_tokens, SHAPES[shape][1]), seed)
        for seed, (shape, n_tokens) in enumerate(zip(shapes, counts, strict=True))
    ]
    run_feed_forwards(pool, jobs := np.concatenate([one.job for one in together]))
    assert len(jobs) == 24
    for seed, (shape, one) in enumerate(zip(shapes, together, strict=True)):
        one.check()
        alone = FeedForward(shape, one.x, seed)
        run_feed_forwards(pool, alone.job)
        np.testing.assert_array_equal(alone.out, one.out)


def test_none_at_all(pool):
    run_feed_forwards(pool, np.zeros(0, FEED_FORWARD))
