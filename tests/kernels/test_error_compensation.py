"""Error compensation: against a plain numpy statement of GPTQ, and what it must achieve."""

import numpy as np
import pytest

from q4run.convert.calibration.compensation import (
    DAMPING,
    can_compensate,
    compensate,
    prepare_inputs,
)
from q4run.kernels.formats import all_formats, find_format_named
from q4run.kernels.formats.quantize.error_compensation import compensate_columns

COMPENSATED = [fmt.name for fmt in all_formats() if can_compensate(fmt)]


def correlated_inputs(n_tokens: int, n_cols: int, seed: int = 0) -> np.ndarray:
    """Inputs whose columns go together and differ in size, as a model's do."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((n_cols // 4, n_cols)) / n_cols**0.5
    x = random.standard_normal((n_tokens, n_cols // 4)) @ mixing
    x += 0.1 * random.standard_normal((n_tokens, n_cols))
    return (x * random.gamma(1.0, 1.0, n_cols)).astype(np.float32)


def hessian_of(x: np.ndarray) -> np.ndarray:
    return x.T @ x / np.float32(len(x))


def output_error(values: np.ndarray, stored: np.ndarray, x: np.ndarray) -> float:
    lost = x.astype(np.float64) @ (values - stored).T.astype(np.float64)
    return float(np.square(lost).sum() / len(x))


@pytest.mark.parametrize("n_cols", [1, 2, 64, 257, 600])
def test_the_factor_is_of_the_inverse_in_order(n_cols):
    hessian = hessian_of(correlated_inputs(4 * n_cols + 8, max(n_cols, 4)))[:n_cols, :n_cols]
    inputs = prepare_inputs(hessian.copy())
    damped = hessian.astype(np.float64)
    damped += DAMPING * np.diag(damped).mean() * np.eye(n_cols)
    assert np.allclose(inputs.hessian, damped, rtol=1e-5)
    assert (np.diff(np.diag(inputs.hessian)[inputs.order]) <= 0).all()
    assert (np.tril(inputs.factor, -1) == 0).all()
    product = inputs.factor.astype(np.float64).T @ inputs.factor
    inverse = np.linalg.inv(damped[np.ix_(inputs.order, inputs.order)])
    assert np.abs(product - inverse).max() < 1e-4 * np.abs(inverse).max()


def test_inputs_that_are_all_zero_are_no_error():
    inputs = prepare_inputs(np.zeros((32, 32), np.float32))
    fmt = find_format_named("q8_0")
    assert fmt is not None
    raw, error = compensate(fmt, np.ones((2, 32), np.float32), inputs)
    assert error == pytest.approx(0.0, abs=1e-20)
    assert fmt.dequantize(raw) == pytest.approx(np.ones((2, 32)), rel=0.01)


def test_the_kernel_does_what_the_paper_says():
    random = np.random.default_rng(3)
    n_rows, n_cols = 5, 24
    values = random.standard_normal((n_rows, n_cols)).astype(np.float32)
    levels = np.array([-3, -1, 0, 0.5, 4], np.float32)
    scales = random.uniform(0.1, 0.5, (n_rows, n_cols)).astype(np.float32)
    scales[1] *= -1
    scales[2, :7] = 0
    minima = random.uniform(-0.2, 0.2, (n_rows, n_cols)).astype(np.float32)
    factor = np.triu(random.standard_normal((n_cols, n_cols))).astype(np.float32)
    factor[np.diag_indices(n_cols)] = random.uniform(0.5, 2, n_cols)

    expected_codes = np.empty((n_rows, n_cols), int)
    open_values = values.astype(np.float64)
    expected_errors = np.empty((n_rows, n_cols))
    for column in range(n_cols):
        grid = scales[:, column, None] * levels.astype(np.float64) + minima[:, column, None]
        distance = np.abs(open_values[:, column, None] - grid)
        distance[scales[:, column] == 0] = np.abs(levels)  # then any level will do: the middle one
        code = distance.argmin(axis=1)
        stored = np.take_along_axis(grid, code[:, None], axis=1)[:, 0]
        error = (open_values[:, column] - stored) / factor[column, column]
        open_values[:, column:] -= np.outer(error, factor[column, column:])
        expected_codes[:, column], expected_errors[:, column] = code, error

    codes, errors = np.empty((n_rows, n_cols), np.uint8), np.empty((n_rows, n_cols), np.float32)
    middles = (levels[1:] + levels[:-1]) / 2
    compensate_columns(values, factor, scales, minima, levels, middles, codes, errors)
    assert np.array_equal(codes, expected_codes)
    assert np.abs(errors - expected_errors).max() < 1e-3 * np.abs(expected_errors).max()


@pytest.mark.parametrize("name", COMPENSATED)
def test_outputs_are_nearer_than_by_rounding(name):
    fmt = find_format_named(name)
    assert fmt is not None
    x = correlated_inputs(2000, 512)
    values = np.random.default_rng(1).standard_normal((9, 512)).astype(np.float32)
    inputs = prepare_inputs(hessian_of(x))
    raw, error = compensate(fmt, values, inputs)
    assert raw.shape == (9, fmt.row_bytes(512))
    stored = fmt.dequantize(raw)
    rounded = fmt.dequantize(fmt.quantize(values))
    assert output_error(values, stored, x) < 0.5 * output_error(values, rounded, x)
    lost = (values - stored).astype(np.float64)
    assert error == pytest.approx(np.einsum("ij,jk,ik->", lost, inputs.hessian, lost), rel=1e-2)


@pytest.mark.parametrize("name", ["q4_0", "tq2_0"])
def test_a_row_depends_on_no_other(name):
    fmt = find_format_named(name)
    assert fmt is not None
    inputs = prepare_inputs(hessian_of(correlated_inputs(900, 256)))
    values = np.random.default_rng(1).standard_normal((600, 256)).astype(np.float32)
    values[3] = 0
    together, _ = compensate(fmt, values, inputs)
    for rows in (slice(0, 1), slice(3, 4), slice(250, 600)):
        alone, _ = compensate(fmt, values[rows], inputs)
        assert np.mean(alone == together[rows]) > 0.99  # BLAS sums differently by size
    assert (fmt.dequantize(together[3]) == 0).all()


@pytest.mark.parametrize("name", ["tq1_0", "tq2_0"])
def test_ternary_weights_lose_nothing(name):
    fmt = find_format_named(name)
    assert fmt is not None
    random = np.random.default_rng(2)
    scales = random.uniform(0.01, 1, (7, 2, 1)).astype(np.float16).astype(np.float32)
    values = (random.integers(-1, 2, (7, 2, 256)) * scales).reshape(7, 512).astype(np.float32)
    inputs = prepare_inputs(hessian_of(correlated_inputs(900, 512)))
    raw, error = compensate(fmt, values, inputs)
    assert np.array_equal(fmt.dequantize(raw), values)
    assert error == 0
