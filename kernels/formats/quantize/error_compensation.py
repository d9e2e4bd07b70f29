"""Choosing codes column by column, each error passed on to the columns that are still open.

Frantar et al., GPTQ (arXiv:2210.17323). With H the mean of x x^T over a matrix's inputs x and U the
upper Cholesky factor of H^-1, rounding column j of a row by e changes its outputs least if every
later column k changes by -e U[j, k] / U[j, j]. Rows are independent of each other.
"""

import numpy as np

from q4run.kernels.compiling.compile import inline, kernel


@kernel()
def compensate_columns(values, factor, scales, minima, levels, middles, codes, errors):
    """Codes for a run of columns, which the errors of earlier columns have changed already.

    values: float32 (n_rows, n_cols), changed to what was aimed at when each column was rounded;
    factor: float32 (n_cols, n_cols), U of these columns; scales, minima: float32 (n_rows, n_cols);
    levels: float32, ascending; middles: float32, halfway between two levels each. Fills codes,
    uint8 (n_rows, n_cols), and errors, float32 (n_rows, n_cols): later columns change by
    -errors @ U[these columns, later ones], and their squares add up to the outputs' error.
    """
    n_rows, n_cols = values.shape
    for row in range(n_rows):
        row_values = values[row]
        for column in range(n_cols):
            step, offset = scales[row, column], minima[row, column]
            value = row_values[column]
            level = np.float32(0)
            if step != 0:
                level = (value - offset) / step
            code = _nearest(level, middles)
            codes[row, column] = code
            error = (value - (step * levels[code] + offset)) / factor[column, column]
            errors[row, column] = error
            factor_row = factor[column]
            for later in range(column + 1, n_cols):
                row_values[later] -= error * factor_row[later]


@inline
def _nearest(level, middles):
    """How many middles are at or below ``level``: the index of the nearest level."""
    low, high = 0, len(middles)
    while low < high:
        middle = (low + high) >> 1
        if middles[middle] <= level:
            low = middle + 1
        else:
            high = middle
    return np.uint8(low)
