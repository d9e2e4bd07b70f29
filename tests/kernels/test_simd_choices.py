"""Lane-wise choices and the transposition of eight vectors."""

import numpy as np

from q4run.kernels.compiling.compile import kernel
from q4run.kernels.simd.compare import clamp, steps, where_greater
from q4run.kernels.simd.memory import load_f32x8, load_i32x8, store
from q4run.kernels.simd.transpose import transpose

SPECIAL = np.array([np.nan, -np.inf, np.inf, -2, -1, 0, 0.5, 3], np.float32)
_levels = steps([-1.0, 0.0, 2.5], [-10.0, -20.0, 30.0, 40.0])


@kernel()
def _clamp(a, low, high, out):
    store(out, 0, clamp(load_f32x8(a, 0), load_f32x8(low, 0), load_f32x8(high, 0)))


@kernel()
def _where_greater(a, b, yes, no, out):
    chosen = where_greater(
        load_f32x8(a, 0), load_f32x8(b, 0), load_f32x8(yes, 0), load_f32x8(no, 0)
    )
    store(out, 0, chosen)


@kernel()
def _steps(a, out):
    store(out, 0, _levels(load_f32x8(a, 0)))


@kernel()
def _transpose(numbers, floats, integers):
    rows = transpose(
        load_i32x8(numbers, 0),
        load_i32x8(numbers, 8),
        load_i32x8(numbers, 16),
        load_i32x8(numbers, 24),
        load_i32x8(numbers, 32),
        load_i32x8(numbers, 40),
        load_i32x8(numbers, 48),
        load_i32x8(numbers, 56),
    )
    for i in range(8):
        store(integers, 8 * i, rows[i])
    columns = transpose(
        load_f32x8(floats, 0),
        load_f32x8(floats, 8),
        load_f32x8(floats, 16),
        load_f32x8(floats, 24),
        load_f32x8(floats, 32),
        load_f32x8(floats, 40),
        load_f32x8(floats, 48),
        load_f32x8(floats, 56),
    )
    for i in range(8):
        store(floats, 8 * i, columns[i])


def test_clamp_takes_nan_to_the_lowest():
    low, high, out = np.full(8, -1, np.float32), np.full(8, 2, np.float32), np.empty(8, np.float32)
    _clamp(SPECIAL, low, high, out)
    assert out.tolist() == [-1, -1, 2, -1, -1, 0, 0.5, 2]


def test_where_greater_says_no_for_equal_and_for_nan():
    yes, no = np.arange(8, dtype=np.float32), -np.arange(8, dtype=np.float32)
    bounds = np.array([0, 0, 0, np.nan, -1, -1, 0.5, 2], np.float32)
    out = np.empty(8, np.float32)
    _where_greater(SPECIAL, bounds, yes, no, out)
    assert out.tolist() == [0, -1, 2, -3, -4, 5, -6, 7]


def test_steps_count_the_thresholds_below():
    out = np.empty(8, np.float32)
    _steps(SPECIAL, out)
    assert out.tolist() == [-10, -10, 40, -10, -10, -20, 30, 40]


def test_transpose():
    numbers = np.arange(64, dtype=np.int32)
    floats, integers = numbers.astype(np.float32), np.empty(64, np.int32)
    _transpose(numbers, floats, integers)
    expected = numbers.reshape(8, 8).T.ravel()
    assert integers.tolist() == expected.tolist()
    assert floats.tolist() == expected.tolist()
