"""The converter's compiled passes over stored floats, against numpy."""

import ml_dtypes
import numpy as np
import pytest

from q4run.convert.widen import BFLOAT16, largest_bfloat, transpose_columns, widen

EVERY_HALF = np.arange(1 << 16, dtype=np.uint16)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_every_pattern_of_16_bits_is_the_same_value_as_float32(dtype):
    values, largest = widen(EVERY_HALF.view(dtype).reshape(16, -1))
    expected = EVERY_HALF.view(dtype).astype(np.float32).reshape(16, -1)
    assert values.dtype == np.float32
    assert np.array_equal(values, expected, equal_nan=True)
    assert np.array_equal(np.signbit(values), np.signbit(expected))
    assert np.isnan(largest)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (1, 8), (2, 17), (5, 64)])
def test_any_number_of_values(dtype, shape):
    stored = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    values, largest = widen(stored)
    assert np.array_equal(values, stored.astype(np.float32))
    assert largest == np.abs(values).max()


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, -np.nan])
def test_a_value_that_is_not_finite_is_the_largest(dtype, value):
    stored = np.full((3, 11), -2, dtype)
    stored[2, 9] = value
    assert not np.isfinite(widen(stored)[1])


def test_nothing_but_zeros():
    assert widen(np.array([[0.0, -0.0]], BFLOAT16))[1] == 0
    assert largest_bfloat(np.array([[0.0, -0.0]], BFLOAT16)) == 0


@pytest.mark.parametrize("value", [1.5, -3.25, 2e38, np.inf, -np.inf, np.nan])
def test_the_largest_of_bfloats_without_widening_them(value):
    stored = np.full((3, 37), -0.5, BFLOAT16)
    stored[1, 30] = value
    expected = abs(float(np.array(value, BFLOAT16)))
    assert np.array_equal(largest_bfloat(stored), expected, equal_nan=True)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.uint32])
@pytest.mark.parametrize(
    ("n_band", "n_columns", "first", "n_rows", "row_columns", "at"),
    [(1, 1, 0, 1, 1, 0), (64, 64, 0, 64, 64, 0), (70, 300, 33, 201, 100, 17), (3, 9, 8, 1, 5, 2)],
)
def test_columns_become_rows_and_nothing_else_changes(
    dtype, n_band, n_columns, first, n_rows, row_columns, at
):
    rng = np.random.default_rng(1)
    top = np.iinfo(dtype).max
    band = rng.integers(0, top, (n_band, n_columns), dtype, endpoint=True)
    rows = rng.integers(0, top, (n_rows, row_columns), dtype, endpoint=True)
    expected = rows.copy()
    expected[:, at : at + n_band] = band[:, first : first + n_rows].T
    transpose_columns(band, first, rows, at)
    assert np.array_equal(rows, expected)
