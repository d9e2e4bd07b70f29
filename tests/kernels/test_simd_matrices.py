"""Lanes by turns, and eight columns at a time where the machine multiplies small matrices."""

import numpy as np
import pytest

from q4run.kernels.compiling.compile import kernel
from q4run.kernels.simd.matrices import HAS_MATRICES, by_turns, dot_matrices, taken_apart
from q4run.kernels.simd.memory import i8_pointer, load_i32x8_bytes, load_u8x32, store

FIRST = np.arange(8, dtype=np.int32)
SECOND = FIRST + 100


@kernel()
def _turn(source, turned, back):
    a, b = by_turns(load_i32x8_bytes(source, 0), load_i32x8_bytes(source, 32))
    store(turned, 0, a)
    store(turned, 8, b)
    a, b = taken_apart(a, b)
    store(back, 0, a)
    store(back, 8, b)


@kernel()
def _turn_bytes(source, out):
    a, b = by_turns(load_u8x32(source, 0), load_u8x32(source, 32))
    store(out, 0, a)
    store(out, 32, b)


def test_lanes_by_turns_and_back():
    source = np.concatenate([FIRST, SECOND])
    turned, back = np.zeros(16, np.int32), np.zeros(16, np.int32)
    _turn(source.view(np.uint8), turned, back)
    np.testing.assert_array_equal(turned, np.stack([FIRST, SECOND], axis=1).ravel())
    np.testing.assert_array_equal(back, source)


def test_bytes_move_in_fours():
    source = np.arange(64, dtype=np.uint8)
    out = np.zeros(64, np.uint8)
    _turn_bytes(source, out)
    expected = source.reshape(2, 8, 4).transpose(1, 0, 2)
    np.testing.assert_array_equal(out, expected.ravel())


@pytest.mark.skipif(not HAS_MATRICES, reason="this machine has no products of small matrices")
def test_eight_columns_times_two_tokens():
    @kernel()
    def run(sums, codes, x, at, other, out):
        low, high = by_turns(load_u8x32(codes, 0), load_u8x32(codes, 32))
        first, second = by_turns(load_i32x8_bytes(sums, 0), load_i32x8_bytes(sums, 32))
        first, second = dot_matrices(first, second, low, high, x_pointer(x), at, other)
        first, second = taken_apart(first, second)
        store(out, 0, first)
        store(out, 8, second)

    @kernel()
    def x_pointer(x):
        return i8_pointer(x.ctypes.data)

    rng = np.random.default_rng(1)
    rows = rng.integers(0, 128, (8, 8)).astype(np.uint8)
    codes = np.concatenate([rows[:, :4].ravel(), rows[:, 4:].ravel()])
    x = rng.integers(-127, 128, 40).astype(np.int8)
    sums = rng.integers(-1000, 1000, 16).astype(np.int32)
    out = np.zeros(16, np.int32)
    run(sums.view(np.uint8), codes, x, 3, 21, out)
    tokens = np.stack([x[3:11], x[21:29]]).astype(np.int32)
    expected = sums.reshape(2, 8) + tokens @ rows.T.astype(np.int32)
    np.testing.assert_array_equal(out, expected.ravel())
