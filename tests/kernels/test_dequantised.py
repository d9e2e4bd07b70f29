"""Types without kernels: read by gguf's dequantiser, held in RAM as Q8_0."""

import gguf
import numpy as np
import pytest

from q4run.bench.models.random_blocks import random_blocks
from q4run.kernels.formats import all_formats, find_format
from q4run.kernels.products.products import matmul
from q4run.kernels.products.strips import padded_rows, to_strips

NAMES = ["iq2_xxs", "iq2_s", "iq3_xxs", "iq3_s", "iq1_s"]


def format_of(name: str):
    fmt = find_format(gguf.GGMLQuantizationType[name.upper()])
    assert fmt is not None
    return fmt


@pytest.mark.parametrize("name", NAMES)
def test_products_are_those_of_the_dequantised_weights(name):
    fmt = format_of(name)
    rng = np.random.default_rng(0)
    n_rows, n_cols = 13, 512
    rows = random_blocks(name, n_rows * n_cols // fmt.block_size, 1.0, rng).reshape(n_rows, -1)
    strips = np.empty((padded_rows(n_rows), fmt.in_ram.row_bytes(n_cols)), np.uint8)
    to_strips(fmt, rows, strips)
    x = rng.standard_normal((3, n_cols), dtype=np.float32)
    got = matmul(fmt.in_ram, strips, n_rows, x)
    weights = gguf.quants.dequantize(rows, fmt.ggml_type).astype(np.float64)
    expected = x.astype(np.float64) @ weights.T
    # The rounding of weights and of activations to eight bits, and no more.
    assert np.abs(got - expected).max() < 0.01 * np.abs(expected).max() + 0.01 * n_cols**0.5


def test_they_are_not_offered_as_formats_with_kernels():
    named = {fmt.name for fmt in all_formats()}
    assert not named & set(NAMES)
    assert all(fmt.in_ram is fmt for fmt in all_formats())


def test_bytes_that_are_no_numbers_raise_nothing():
    fmt = format_of("iq2_xxs")
    rows = np.full((8, fmt.row_bytes(256)), 255, np.uint8)  # scales that are NaN
    strips = np.empty((8, fmt.in_ram.row_bytes(256)), np.uint8)
    with np.errstate(all="raise"):
        to_strips(fmt, rows, strips)
