"""Codes for a matrix whose outputs, not whose weights, shall be as they were.

GPTQ (Frantar et al., arXiv:2210.17323): columns are rounded one after another, and each error is
made up for by the columns still open. They are taken by falling importance, while every column
keeps the scale of its group in the file, found beforehand. Then, with the codes known, each
group's scale is moved to where the outputs are nearest, and the codes are chosen anew; for a type
of few levels that gains as much again as the first pass.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from q4run.kernels.formats import Format
from q4run.kernels.formats.base import Scales
from q4run.kernels.formats.quantize.error_compensation import compensate_columns
from q4run.machine.cores import choose_threads

# How much of the mean importance is added to every column's: more, and less is compensated.
DAMPING = 0.02
# How often the scales are moved and the codes chosen anew.
N_ROUNDS = 2
# With three or four levels the nearest is often far: larger scales leave smaller errors behind.
FEW_LEVELS, LARGER = 4, 1.2
# The error that is left makes a ternary matrix's outputs too small; those of types with more levels
# hardly, and making them larger costs more than it gains.
TERNARY_LEVELS, LEAST_GAIN, MOST_GAIN = 3, 0.9, 2.0
_N_COLUMNS = 128
# Fewer rows are not worth handing to another thread.
_ROWS_PER_TASK = 256


@dataclass(frozen=True)
class Inputs:
    """What a matrix's inputs are like. hessian: float32 (n_cols, n_cols), damped; order: int64
    (n_cols,), columns by falling importance; factor: float32 (n_cols, n_cols), the upper Cholesky
    factor of the inverse of the hessian in that order."""

    hessian: np.ndarray
    order: np.ndarray
    factor: np.ndarray


def prepare_inputs(hessian: np.ndarray) -> Inputs:
    """hessian: float32 (n_cols, n_cols), the mean of x x^T over inputs x; it is damped in place."""
    diagonal = np.einsum("ii->i", hessian)
    diagonal += np.float32(max(DAMPING * float(diagonal.mean()), 1e-30))
    order = np.argsort(-diagonal, kind="stable")
    return Inputs(hessian, order, _inverse_factor(hessian, order))


def _inverse_factor(hessian: np.ndarray, order: np.ndarray) -> np.ndarray:
    """U, upper triangular, with U^T U the inverse of the hessian in ``order``; float32.

    With the order reversed the hessian is L L^T, and U is the inverse of L read backwards: one
    float64 copy, and its factor, are all that is held.
    """
    backwards = order[::-1]
    factor = np.linalg.cholesky(hessian[np.ix_(backwards, backwards)].astype(np.float64))
    _invert_lower(factor)
    return np.ascontiguousarray(factor[::-1, ::-1], dtype=np.float32)


def _invert_lower(matrix: np.ndarray) -> None:
    """Replaces a lower triangular matrix by its inverse, halves at a time."""
    n = len(matrix)
    if n <= 256:
        matrix[:] = np.tril(np.linalg.inv(matrix))
        return
    half = n // 2
    upper_left, lower_right = matrix[:half, :half], matrix[half:, half:]
    _invert_lower(upper_left)
    _invert_lower(lower_right)
    matrix[half:, :half] = -lower_right @ (matrix[half:, :half] @ upper_left)


def can_compensate(fmt: Format) -> bool:
    """Whether a type has codes to choose (floats have none)."""
    return len(fmt.levels) > 0


def compensate(fmt: Format, values: np.ndarray, inputs: Inputs) -> tuple[np.ndarray, float]:
    """float32 (n_rows, n_cols) -> uint8 (n_rows, row_bytes), and the squared error of the outputs.

    The error is summed over the rows, for one average input.
    """
    importance = np.einsum("ii->i", inputs.hessian).copy()
    best = _choose_codes(fmt, values, fmt.find_scales(values, importance), inputs)
    if len(fmt.levels) <= FEW_LEVELS and best.errors.any():
        larger = best.scales._replace(scale=best.scales.scale * np.float32(LARGER))
        codes = _nearest_codes(fmt, values, best.scales)
        scales = fmt.find_scales(_stored(fmt, larger, codes), importance)
        best = _better_rows(best, _choose_codes(fmt, values, scales, inputs))
    for _ in range(N_ROUNDS):
        if not best.errors.any():
            break  # weights that were of this type already
        moved = _move_scales(fmt, values, best, inputs)
        # As the type stores them: it finds them again in values that lie on their grid.
        scales = fmt.find_scales(_stored(fmt, moved, best.codes), importance)
        best = _better_rows(best, _choose_codes(fmt, values, scales, inputs))
    if len(fmt.levels) == TERNARY_LEVELS:
        best = _keep_gain(fmt, values, best, inputs, importance)
    raw = fmt.pack(best.scales, best.codes.reshape(-1, fmt.block_size))
    return raw.reshape(len(values), -1), float(best.errors.sum())


@dataclass(frozen=True)
class _Choice:
    """Scales, codes, uint8 (n_rows, n_cols), and each row's squared error, float64 (n_rows,)."""

    scales: Scales
    codes: np.ndarray
    errors: np.ndarray


def _better_rows(a: _Choice, b: _Choice) -> _Choice:
    """Each row from the one where its error is less."""
    is_b = b.errors < a.errors
    blocks = np.repeat(is_b, len(a.scales.fields) // len(is_b))[:, None]
    scales = (np.where(blocks, own, other) for own, other in zip(b.scales, a.scales, strict=True))
    return _Choice(
        Scales(*scales),
        np.where(is_b[:, None], b.codes, a.codes),
        np.where(is_b, b.errors, a.errors),
    )


def _choose_codes(fmt: Format, values: np.ndarray, scales: Scales, inputs: Inputs) -> _Choice:
    """One pass over the columns with given scales."""
    n_rows, n_cols = values.shape
    levels = fmt.levels
    scale, minimum = (part.reshape(n_rows, -1) for part in scales[:2])
    open_values = values[:, inputs.order]
    codes = np.empty((n_rows, n_cols), np.uint8)
    squares = np.zeros(n_rows)
    with ThreadPoolExecutor(choose_threads(None)) as threads:
        for start in range(0, n_cols, _N_COLUMNS):
            columns = slice(start, min(start + _N_COLUMNS, n_cols))
            group = inputs.order[columns] // fmt.group_size
            factor = np.ascontiguousarray(inputs.factor[columns, columns])
            values_there = np.ascontiguousarray(open_values[:, columns])
            there = _Columns(
                values_there,
                scale[:, group],
                minimum[:, group],
                np.empty(values_there.shape, np.uint8),
                np.empty_like(values_there),
            )
            _compensate(threads, there, factor, levels)
            codes[:, inputs.order[columns]] = there.codes
            squares += np.square(there.errors).sum(axis=1, dtype=np.float64)
            open_values[:, columns.stop :] -= there.errors @ inputs.factor[columns, columns.stop :]
    return _Choice(scales, codes, squares)


class _Columns(NamedTuple):
    """Some columns of all rows, as ``compensate_columns`` takes them: each (n_rows, n_cols)."""

    values: np.ndarray
    scales: np.ndarray
    minima: np.ndarray
    codes: np.ndarray
    errors: np.ndarray


def _compensate(
    threads: ThreadPoolExecutor, columns: _Columns, factor: np.ndarray, levels: np.ndarray
) -> None:
    """Fills ``columns.codes`` and ``columns.errors``, runs of rows at a time."""
    middles = _middles(levels)

    def run(start: int) -> None:
        rows = _Columns(*(part[start : start + _ROWS_PER_TASK] for part in columns))
        compensate_columns(
            rows.values, factor, rows.scales, rows.minima, levels, middles, rows.codes, rows.errors
        )

    starts = range(0, len(columns.values), _ROWS_PER_TASK)
    if len(starts) == 1:
        run(0)
    else:
        list(threads.map(run, starts))


def _middles(levels: np.ndarray) -> np.ndarray:
    """Halfway between two neighbours each."""
    middles: np.ndarray = (levels[1:] + levels[:-1]) / 2
    return middles


def _move_scales(fmt: Format, values: np.ndarray, choice: _Choice, inputs: Inputs) -> Scales:
    """Each group's scale in turn where the outputs are nearest, for these codes."""
    n_rows, scales = len(values), choice.scales
    levels = fmt.levels[choice.codes]
    scale = scales.scale.reshape(n_rows, -1).copy()
    # How the squared error of the outputs falls with each value that is stored.
    slope = (values - _stored(fmt, scales, choice.codes)) @ inputs.hessian
    for group in range(scale.shape[1]):
        columns = slice(group * fmt.group_size, (group + 1) * fmt.group_size)
        own = levels[:, columns]
        effect = own @ inputs.hessian[columns]
        curvature = np.einsum("ij,ij->i", effect[:, columns], own)
        wanted = np.einsum("ij,ij->i", slope[:, columns], own)
        change = np.divide(wanted, curvature, out=np.zeros_like(wanted), where=curvature > 0)
        scale[:, group] += change
        slope -= change[:, None] * effect
    return scales._replace(scale=scale.reshape(scales.scale.shape))


def _keep_gain(
    fmt: Format, values: np.ndarray, choice: _Choice, inputs: Inputs, importance: np.ndarray
) -> _Choice:
    """Each row's scales times what lets its outputs keep their size."""
    stored = _stored(fmt, choice.scales, choice.codes)
    effect = values @ inputs.hessian
    square, product = np.einsum("ij,ij->i", effect, values), np.einsum("ij,ij->i", effect, stored)
    gain = np.divide(square, product, out=np.ones_like(square), where=product > 0)
    stored *= np.clip(gain, LEAST_GAIN, MOST_GAIN)[:, None]
    scales = fmt.find_scales(stored, importance)
    lost = values - _stored(fmt, scales, choice.codes)
    errors = np.einsum("ij,ij->i", lost @ inputs.hessian, lost, dtype=np.float64)
    return _Choice(scales, choice.codes, errors)


def _stored(fmt: Format, scales: Scales, codes: np.ndarray) -> np.ndarray:
    """What scales and codes stand for: float32 (n_rows, n_cols)."""
    n_rows = len(codes)
    scale, minimum = (part.reshape(n_rows, -1, 1) for part in scales[:2])
    levels = fmt.levels[codes].reshape(n_rows, -1, fmt.group_size)
    stored: np.ndarray = (scale * levels + minimum).reshape(codes.shape)
    return stored


def _nearest_codes(fmt: Format, values: np.ndarray, scales: Scales) -> np.ndarray:
    n_rows = len(values)
    scale, minimum = (part.reshape(n_rows, -1, 1) for part in scales[:2])
    groups = values.reshape(n_rows, -1, fmt.group_size) - minimum
    levels = np.divide(groups, scale, out=np.zeros_like(groups), where=scale != 0)
    codes: np.ndarray = np.searchsorted(_middles(fmt.levels), levels.reshape(values.shape), "right")
    return codes.astype(np.uint8)
