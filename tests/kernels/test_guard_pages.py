"""No kernel touches memory beside its buffers: each buffer ends, or begins, at a forbidden page.

In a process of its own, which an access beyond ends: this file, as a script, says what it is at.
"""

import ctypes
import subprocess
import sys

import numpy as np
import pytest
from helpers.blocks import ALL, format_named, interleaved, random_blocks, random_tokens
from helpers.guard_pages import guarded
from helpers.scripts import script_environment

from q4run.kernels.products import activations
from q4run.kernels.products.activations import Int8Activations, empty_activations
from q4run.kernels.products.products import (
    PRODUCT,
    input_record,
    matmul,
    matrix_record,
    run_products,
)
from q4run.kernels.products.strips import interleave
from q4run.kernels.threads.pool import ALONE

N_ROWS = 21  # neither whole strips nor whole pairs of strips
PLACES = ("begin", "end")


def check_product(name: str, n_tokens: int, place: str) -> None:
    fmt = format_named(name)
    n_cols = 2 * 256 if fmt.int8_activations else 37
    rng = np.random.default_rng(0)
    raw, x = random_blocks(fmt, N_ROWS, n_cols, rng), random_tokens(n_tokens, n_cols, rng)
    expected = matmul(fmt, interleaved(fmt, raw), N_ROWS, x)

    weights = guarded(np.empty_like(interleaved(fmt, raw)), place)
    interleave(fmt, guarded(raw, place), weights)
    x = guarded(x, place)
    int8 = None
    if fmt.int8_activations:
        empty = empty_activations(n_tokens, n_cols)
        int8 = Int8Activations(*[guarded(array, place) for array in empty])
        activations._quantize(x, *int8)
    out = guarded(np.zeros((n_tokens, N_ROWS), np.float32), place)
    products = np.zeros(1, PRODUCT)
    products[0]["matrix"] = matrix_record(fmt, weights.ctypes.data, N_ROWS, n_cols)
    products[0]["input"] = input_record(x, int8)
    products[0]["out"] = out.ctypes.data
    run_products(ALONE, products)
    np.testing.assert_array_equal(out, expected)


def check_quantize(name: str, place: str) -> None:
    """Three blocks: less than a tile of the small ones."""
    fmt = format_named(name)
    values = random_tokens(1, 3 * fmt.block_size, np.random.default_rng(0))
    np.testing.assert_array_equal(fmt.quantize(guarded(values, place)), fmt.quantize(values))


def run_here(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, __file__, *arguments],
        env=script_environment({"PYTHONFAULTHANDLER": ""}),
        capture_output=True,
        text=True,
        timeout=500,
    )


@pytest.mark.parametrize("place", PLACES)
def test_products_stay_within_their_buffers(place):
    run = run_here(place)
    assert run.returncode == 0, f"while at {run.stdout.splitlines()[-1:]}: {run.stderr}"
    assert len(run.stdout.splitlines()) == 2 * len(ALL)


@pytest.mark.parametrize("place", PLACES)
def test_an_access_beyond_would_be_noticed(place):
    """One byte beside the buffer."""
    run = run_here(place, "beyond")
    assert run.stdout == "reading beyond\n"
    assert run.returncode < 0, "the process was not ended by a signal"


if __name__ == "__main__":
    if len(sys.argv) > 2:
        buffer = guarded(np.ones(100, np.uint8), sys.argv[1])
        assert ctypes.string_at(buffer.ctypes.data, 100) == bytes([1] * 100)
        print("reading beyond", flush=True)
        beside = -1 if sys.argv[1] == "begin" else 100
        ctypes.string_at(buffer.ctypes.data + beside, 1)
    else:
        for name in ALL:
            for n_tokens in (1, 5):
                print(name, n_tokens, flush=True)
                check_product(name, n_tokens, sys.argv[1])
            check_quantize(name, sys.argv[1])
