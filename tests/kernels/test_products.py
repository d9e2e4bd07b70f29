"""Matrix products and the int8 activations they take, against float64, and bit against bit."""

import numpy as np
import pytest
from helpers.blocks import (
    ALL,
    FLOATS,
    INTEGERS,
    exact_product,
    format_named,
    interleaved,
    random_blocks,
    random_tokens,
    with_factors,
)

from q4run.kernels.formats.base import Format
from q4run.kernels.products.activations import quantize_activations
from q4run.kernels.products.products import (
    PRODUCT,
    input_record,
    matmul,
    matrix_record,
    run_products,
)
from q4run.kernels.products.strips import padded_rows
from q4run.kernels.threads.pool import ALONE, ThreadPool

TOKENS = [1, 2, 3, 4, 5, 8, 9]


@pytest.fixture(scope="module", params=[2, 3], ids=["2 threads", "3 threads"])
def several_threads(request):
    with ThreadPool(request.param) as threads:
        yield threads.state


def made_up(name: str, n_rows: int, n_tokens: int, n_cols: int, seed: int = 0):
    """A format, the bytes of a matrix and activations."""
    fmt = format_named(name)
    rng = np.random.default_rng([seed, n_rows, n_tokens, n_cols])
    return fmt, random_blocks(fmt, n_rows, n_cols, rng), random_tokens(n_tokens, n_cols, rng)


def product(fmt: Format, raw: np.ndarray, x: np.ndarray, pool: np.ndarray = ALONE) -> np.ndarray:
    return matmul(fmt, interleaved(fmt, raw), len(raw), x, pool)


def assert_close_to_exact(fmt: Format, raw: np.ndarray, x: np.ndarray) -> np.ndarray:
    got = product(fmt, raw, x)
    assert got.dtype == np.float32
    assert got.shape == (len(x), len(raw))
    expected, magnitude = exact_product(fmt, raw, x)
    assert (np.abs(got - expected) <= 1e-6 * magnitude).all()
    return got


# Against float64.


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("n_tokens", TOKENS)
def test_products_with_every_tail_of_rows(name, n_tokens):
    for n_blocks in (1, 3):
        n_cols = n_blocks * format_named(name).block_size
        for n_rows in range(1, 18):
            assert_close_to_exact(*made_up(name, n_rows, n_tokens, n_cols))


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("n_tokens", [1, 2, 6])
def test_float_products_of_any_width(name, n_tokens):
    for n_cols in (1, 7, 8, 9, 33, 255, 256, 257, 300):
        assert_close_to_exact(*made_up(name, 5, n_tokens, n_cols))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("n_tokens", [1, 7])
def test_a_large_product(name, n_tokens):
    """Several panels, the last of them not full, and many strips."""
    assert_close_to_exact(*made_up(name, 131, n_tokens, 256 * 9))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("n_rows", "n_tokens"), [(0, 1), (0, 5), (4, 0), (0, 0)])
def test_empty_products(name, n_rows, n_tokens):
    fmt = format_named(name)
    raw = np.zeros((n_rows, fmt.row_bytes(256)), np.uint8)
    assert product(fmt, raw, np.ones((n_tokens, 256), np.float32)).shape == (n_tokens, n_rows)


@pytest.mark.parametrize("name", ALL)
def test_a_matrix_of_another_shape_is_refused(name):
    fmt, raw, x = made_up(name, 9, 2, 512)
    weights = interleaved(fmt, raw)
    for n_rows, tokens in ((8, x), (17, x), (9, x[:, :256])):
        with pytest.raises(ValueError, match="is not a matrix of"):
            matmul(fmt, weights, n_rows, tokens)


def extreme_tokens(n_tokens: int, n_cols: int) -> np.ndarray:
    """Activation codes at their extremes: of one sign, of both in turn, and zeros."""
    x = np.ones((n_tokens, n_cols), np.float32)
    x[0] = -1
    x[-1, ::2] = -1
    if n_tokens > 2:
        x[1] = 0
    return x


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("n_tokens", [1, 3])
def test_extreme_codes(name, n_tokens):
    """Codes that no quantiser writes, too, such as -128 in q8_0 and 3 in tq2_0."""
    fmt = format_named(name)
    rng = np.random.default_rng(20)
    for codes in (0x00, 0xFF, 0x80, 0x7F, 0x08, 0xF0):
        raw = random_blocks(fmt, 9, 3 * fmt.block_size, rng, codes)
        assert_close_to_exact(fmt, raw, extreme_tokens(n_tokens, 3 * fmt.block_size))
        assert_close_to_exact(fmt, raw, random_tokens(n_tokens, 3 * fmt.block_size, rng))


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("n_tokens", [1, 3])
@pytest.mark.parametrize("scale", [0.0, 2.0**-24, -(2.0**-24), 1e-6, 2.0**-14, 65504.0])
def test_extreme_scales(name, n_tokens, scale):
    """Zeros, subnormal f16 and the largest; in MXFP4 subnormal f32."""
    fmt = format_named(name)
    raw = random_blocks(fmt, 9, 3 * fmt.block_size, np.random.default_rng(21))
    blocks = raw.reshape(9, 3, fmt.type_size)
    raw = with_factors(fmt, blocks, np.full((9, 3), scale)).reshape(9, -1)
    x = random_tokens(n_tokens, 3 * fmt.block_size, np.random.default_rng(22))
    if name == "mxfp4" and scale == 0:
        x *= np.float32(1e20)  # so that the results are normal numbers
        for exponent in (0, 1, 2):
            raw[:, :: fmt.type_size] = exponent
            assert np.abs(assert_close_to_exact(fmt, raw, x)).max() > 0
        return
    got = assert_close_to_exact(fmt, raw, x)
    assert (np.abs(got).max() > 0) == (scale != 0)


@pytest.mark.parametrize("name", FLOATS)
def test_one_hot_tokens_read_the_weights_exactly(name):
    fmt, raw, _ = made_up(name, 6, 1, 19)
    got = product(fmt, raw, np.eye(19, dtype=np.float32))
    np.testing.assert_array_equal(got.T, fmt.dequantize(raw))


# The same bits, however the work is cut.


@pytest.mark.parametrize("name", ALL)
def test_a_token_alone_equals_the_token_in_a_batch(name):
    widths = [256, 256 * 5] if name in INTEGERS else [512, 77, 5]
    for n_cols in widths:
        for n_rows in (3, 37):
            fmt, raw, x = made_up(name, n_rows, 11, n_cols)
            together = product(fmt, raw, x)
            for i in range(len(x)):
                np.testing.assert_array_equal(product(fmt, raw, x[i : i + 1])[0], together[i])
            for n_tokens in (2, 3, 5):
                np.testing.assert_array_equal(product(fmt, raw, x[:n_tokens]), together[:n_tokens])


@pytest.mark.parametrize("name", ALL)
def test_a_row_alone_equals_the_row_in_a_matrix(name):
    fmt, raw, x = made_up(name, 21, 5, 512)
    for tokens in (x, x[:1]):
        together = product(fmt, raw, tokens)
        for row in (0, 1, 7, 8, 15, 16, 20):
            alone = product(fmt, raw[row : row + 1], tokens)
            np.testing.assert_array_equal(alone[:, 0], together[:, row])


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("n_tokens", [1, 9])
def test_any_number_of_threads_gives_the_same_bits(several_threads, name, n_tokens):
    """Rows for several pieces, the last of them a single row."""
    fmt, raw, x = made_up(name, 32 * 33 + 1, n_tokens, 512)
    np.testing.assert_array_equal(product(fmt, raw, x, several_threads), product(fmt, raw, x))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("n_tokens", [1, 5])
def test_weights_may_lie_at_any_address(name, n_tokens):
    fmt, raw, x = made_up(name, 5, n_tokens, 512)
    weights = interleaved(fmt, raw)
    buffer = np.empty(weights.size + 1, np.uint8)
    unaligned = buffer[1:].reshape(weights.shape)
    unaligned[:] = weights
    assert unaligned.ctypes.data % 2 == 1
    np.testing.assert_array_equal(matmul(fmt, unaligned, 5, x), product(fmt, raw, x))


# Several products at once.


def test_products_of_all_formats_in_one_region(several_threads):
    """Of different sizes and numbers of tokens, empty ones between; as if each ran alone."""
    rng = np.random.default_rng(23)
    expected, got, alive = [], [], []
    products = np.zeros(2 * len(ALL), PRODUCT)
    for i in range(len(products)):
        n_rows, n_tokens = int(rng.integers(1, 700)), int(rng.integers(1, 7))
        if i % 5 == 2:
            n_rows = 0
        if i % 7 == 3:
            n_tokens = 0
        fmt, raw, x = made_up(ALL[i // 2], n_rows, n_tokens, 512, seed=i)
        weights = interleaved(fmt, raw)
        int8 = quantize_activations(x) if fmt.int8_activations else None
        out = np.full((n_tokens + 2, n_rows), np.float32(77))
        alive.append((weights, x, int8))
        products[i]["matrix"] = matrix_record(fmt, weights.ctypes.data, n_rows, 512)
        products[i]["input"] = input_record(x, int8)
        products[i]["out"] = out[1:].ctypes.data
        expected.append(product(fmt, raw, x))
        got.append(out)
    for _ in range(20):
        run_products(several_threads, products)
        for result, out in zip(expected, got, strict=True):
            np.testing.assert_array_equal(out[1:-1], result)
            assert (out[[0, -1]] == 77).all()  # nothing is written beside a result
            out[1:-1] = 0


def test_no_products():
    run_products(ALONE, np.zeros(0, PRODUCT))


# Activations in int8.


def activations(n_tokens: int) -> np.ndarray:
    rng = np.random.default_rng([30, n_tokens])
    x = rng.standard_normal((n_tokens, 320)) * 10.0 ** rng.uniform(-6, 6, (n_tokens, 1))
    x[0, :32] = 0
    x[0, 32:64] = np.arange(32) / 2  # some on the border between two codes
    x[-1, 64:96] = -0.0
    x[-1, 95] = 3.4e38
    return x.astype(np.float32)


@pytest.mark.parametrize("n_tokens", [1, 2, 5])
def test_activations_by_definition(n_tokens):
    x = activations(n_tokens)
    q, scales, sums = quantize_activations(x)
    groups = x.reshape(n_tokens, 10, 32)
    largest = np.abs(groups).max(axis=2)
    expected_scales = largest / np.float32(127)
    np.testing.assert_array_equal(scales, expected_scales)
    with np.errstate(divide="ignore"):
        inverse = np.where(expected_scales > 0, np.float32(1) / expected_scales, np.float32(0))
    expected = np.rint(groups * inverse[:, :, None]).astype(np.int8)
    np.testing.assert_array_equal(q.reshape(groups.shape), expected)
    wide = expected.astype(np.int32)
    both = np.stack([wide.sum(axis=2), wide[:, :, 16:].sum(axis=2)], axis=2)
    np.testing.assert_array_equal(sums, both.reshape(n_tokens, 20))
    assert q.min() >= -127  # what the dot products of the SIMD layer count on


def test_activations_are_within_half_a_step():
    x = activations(5)
    q, scales, _ = quantize_activations(x)
    steps = np.repeat(scales.astype(np.float64), 32, axis=1)
    assert (np.abs(q * steps - x) <= 0.5001 * steps).all()


def test_activations_too_small_for_an_inverse_count_as_zeros():
    x = np.full((2, 64), 1e-38, np.float32)
    x[:, 32:] = np.arange(32) * np.float32(2.0**-115)
    q, scales, sums = quantize_activations(x)
    assert not q[:, :32].any()
    assert not sums[:, :2].any()
    assert np.isfinite(scales).all()
    np.testing.assert_array_equal(q[:, 32:], np.rint(np.arange(32) * 127 / 31)[None].repeat(2, 0))


def test_no_activations():
    q, scales, sums = quantize_activations(np.empty((0, 64), np.float32))
    assert (q.shape, scales.shape, sums.shape) == ((0, 64), (0, 2), (0, 4))


def test_a_row_s_padding_is_the_strip_s_own():
    """The rows that fill a strip up are part of the matrix's bytes and of no result."""
    fmt, raw, x = made_up("q4_0", 9, 2, 256)
    weights = interleaved(fmt, raw)
    assert len(weights) == padded_rows(9) == 16
    expected = matmul(fmt, weights, 9, x)
    noise = interleaved(fmt, np.concatenate([raw, np.full_like(raw[:7], 0x3B)]))
    np.testing.assert_array_equal(matmul(fmt, noise, 9, x), expected)
