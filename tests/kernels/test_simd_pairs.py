"""Sums of pairs in 16 bits, which AVX2 has, and how many of them a format may add up."""

import numpy as np
import pytest

from q4run.kernels.compiling.compile import kernel
from q4run.kernels.formats import all_formats
from q4run.kernels.simd.memory import load_i8x32, load_i32x8, load_u8x32, store
from q4run.kernels.simd.ops import add, shift_right_signed
from q4run.kernels.simd.pairs import HAS_PAIRS, pair_products, pairs_at_once, sum_of_pairs

needs_pairs = pytest.mark.skipif(not HAS_PAIRS, reason="this target has no products of pairs")


@kernel()
def _sums(a, b, n, out):
    pairs = pair_products(load_u8x32(a, 0), load_i8x32(b, 0))
    for i in range(1, n):
        pairs = add(pairs, pair_products(load_u8x32(a, 32 * i), load_i8x32(b, 32 * i)))
    store(out, 0, sum_of_pairs(pairs))


@kernel()
def _shift(a, out):
    store(out, 0, shift_right_signed(load_i32x8(a, 0), 2))


@needs_pairs
@pytest.mark.parametrize("largest", [3, 12, 15, 31, 63, 127])
@pytest.mark.parametrize("sign", [-127, 127, 0])
def test_so_many_sums_of_pairs_are_exact(largest, sign):
    """At the extremes, and at random."""
    n = pairs_at_once(largest)
    rng = np.random.default_rng(largest)
    a = rng.integers(0, largest + 1, (n, 32)).astype(np.uint8)
    b = rng.integers(-127, 128, (n, 32)).astype(np.int8)
    if sign:
        a[:], b[:] = largest, sign
    out = np.empty(8, np.int32)
    _sums(a.reshape(-1), b.reshape(-1), n, out)
    expected = (a.astype(np.int64) * b).sum(axis=0).reshape(8, 4).sum(axis=1)
    np.testing.assert_array_equal(out, expected)


@needs_pairs
def test_one_more_would_not_fit():
    for largest in (3, 12, 15, 31, 63, 127):
        assert (pairs_at_once(largest) + 1) * 2 * largest * 127 > 2**15 - 1


@needs_pairs
def test_formats_say_what_they_have_room_for():
    at_once = {fmt.name: fmt.pairs_at_once for fmt in all_formats() if fmt.int8_activations}
    assert (at_once["q4_0"], at_once["q5_0"], at_once["q6_k"], at_once["q8_0"]) == (8, 4, 2, 0)


def test_signed_shifts_keep_the_sign():
    numbers, out = np.array([-8, -5, -4, -1, 0, 3, 4, 2**31 - 1], np.int32), np.empty(8, np.int32)
    _shift(numbers, out)
    assert out.tolist() == (numbers >> 2).tolist()
