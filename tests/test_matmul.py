"""Matrix products and the int8 activations they take, against float64, and bit against bit."""

import gguf
import numba
import numpy as np
import pytest

from q4run.kernels.activations import quantize_activations
from q4run.kernels.formats import all_formats, find_format_named
from q4run.kernels.formats.base import Format
from q4run.kernels.matmul import matmul

pytestmark = pytest.mark.usefixtures("kernel_form")

ALL = sorted(fmt.name for fmt in all_formats())
FLOATS = [name for name in ALL if not find_format_named(name).int8_activations]
INTEGERS = [name for name in ALL if name not in FLOATS]


def format_named(name: str) -> Format:
    fmt = find_format_named(name)
    assert fmt is not None
    return fmt


def made_up(name: str, n_rows: int, n_tokens: int, n_cols: int, seed: int = 0):
    """A format, weight bytes and activations; each row and token of a magnitude of its own."""
    fmt = format_named(name)
    rng = np.random.default_rng([seed, n_rows, n_tokens, n_cols])
    values = rng.standard_normal((n_rows, n_cols)) * 10.0 ** rng.uniform(-2, 2, (n_rows, 1))
    x = rng.standard_normal((n_tokens, n_cols)) * 10.0 ** rng.uniform(-2, 2, (n_tokens, 1))
    return fmt, fmt.quantize(values.astype(np.float32)), x.astype(np.float32)


def exact_product(fmt: Format, weights: np.ndarray, x: np.ndarray):
    """The product in float64 of what the kernel multiplies, and the sum of all magnitudes."""
    if fmt.int8_activations:
        q, scales, _ = quantize_activations(x)
        wide = np.repeat(scales.astype(np.float64), 32, axis=1) * q
    else:
        wide = x.astype(np.float64)
    # gguf's own reading of the bytes: the reference shares nothing with the code under test.
    values = gguf.quants.dequantize(weights, fmt.ggml_type).astype(np.float64)
    values = values.reshape(len(weights), -1)
    return wide @ values.T, np.abs(wide) @ np.abs(values).T


def assert_close_to_exact(fmt: Format, weights: np.ndarray, x: np.ndarray) -> None:
    got = matmul(fmt, weights, x)
    assert got.dtype == np.float32
    assert got.shape == (len(x), len(weights))
    expected, magnitude = exact_product(fmt, weights, x)
    assert (np.abs(got - expected) <= 1e-6 * magnitude).all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("n_rows", [1, 3, 17])
@pytest.mark.parametrize("n_tokens", [1, 2, 3, 5, 64])
def test_products_with_tails(name, n_rows, n_tokens):
    for n_blocks in (1, 3):
        n_cols = n_blocks * format_named(name).block_size
        assert_close_to_exact(*made_up(name, n_rows, n_tokens, n_cols))


@pytest.mark.parametrize("name", FLOATS)
@pytest.mark.parametrize("n_cols", [1, 7, 8, 9, 33, 300])
@pytest.mark.parametrize("n_tokens", [1, 2, 6])
def test_float_products_of_any_width(name, n_cols, n_tokens):
    assert_close_to_exact(*made_up(name, 5, n_tokens, n_cols))


@pytest.mark.parametrize("name", ALL)
def test_a_large_product(name):
    """Many tasks and an odd number of blocks."""
    assert_close_to_exact(*made_up(name, 131, 7, 256 * 9))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("n_rows", "n_tokens"), [(0, 1), (0, 5), (4, 0)])
def test_empty_products(name, n_rows, n_tokens):
    fmt = format_named(name)
    weights = np.zeros((n_rows, fmt.row_bytes(256)), np.uint8)
    assert matmul(fmt, weights, np.ones((n_tokens, 256), np.float32)).shape == (n_tokens, n_rows)


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("n_tokens", [1, 4])
def test_any_bytes_multiply_as_gguf_reads_them(name, n_tokens):
    """Codes that no quantiser writes, such as -128 in q8_0 and 3 in tq2_0."""
    fmt = format_named(name)
    rng = np.random.default_rng(20)
    raw = rng.integers(0, 256, (9, 6, fmt.type_size)).astype(np.uint8)
    raw[1], raw[2], raw[3] = 0x80, 0xFF, 0x7F
    scale_at = fmt.type_size - 2 if name in ("tq1_0", "tq2_0") else 0
    scales = rng.uniform(-2, 2, (9, 6, 1)).astype(np.float16)
    raw[:, :, scale_at : scale_at + 2] = scales.view(np.uint8)
    x = rng.standard_normal((n_tokens, 6 * fmt.block_size), dtype=np.float32)
    x[0] = -1  # every activation code at its extreme
    assert_close_to_exact(fmt, raw.reshape(9, -1), x)


@pytest.mark.parametrize("name", FLOATS)
def test_one_hot_tokens_read_the_weights_exactly(name):
    fmt, weights, _ = made_up(name, 6, 1, 19)
    got = matmul(fmt, weights, np.eye(19, dtype=np.float32))
    np.testing.assert_array_equal(got.T, fmt.dequantize(weights))


# The same bits, however the work is cut.


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("n_rows", [3, 37])
def test_a_token_alone_equals_the_token_in_a_batch(name, n_rows):
    widths = [512] if name in INTEGERS else [512, 77, 5]
    for n_cols in widths:
        fmt, weights, x = made_up(name, n_rows, 11, n_cols)
        together = matmul(fmt, weights, x)
        for i in range(len(x)):
            np.testing.assert_array_equal(matmul(fmt, weights, x[i : i + 1])[0], together[i])
        for n_tokens in (2, 3, 5):
            np.testing.assert_array_equal(matmul(fmt, weights, x[:n_tokens]), together[:n_tokens])


@pytest.mark.parametrize("name", ALL)
def test_a_row_alone_equals_the_row_in_a_matrix(name):
    fmt, weights, x = made_up(name, 21, 5, 512)
    for tokens in (x, x[:1]):
        together = matmul(fmt, weights, tokens)
        for row in (0, 1, 3, 15, 16, 20):
            alone = matmul(fmt, weights[row : row + 1], tokens)
            np.testing.assert_array_equal(alone[:, 0], together[:, row])


@pytest.fixture
def set_threads():
    before = numba.get_num_threads()
    yield numba.set_num_threads
    numba.set_num_threads(before)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("n_tokens", [1, 9])
def test_any_number_of_threads_gives_the_same_bits(monkeypatch, set_threads, name, n_tokens):
    fmt, weights, x = made_up(name, 133, n_tokens, 512)
    results = [matmul(fmt, weights, x)]  # small work: one thread
    monkeypatch.setattr("q4run.kernels.compile._SMALL_WORK", -1)
    for n_threads in range(1, numba.config.NUMBA_NUM_THREADS + 1):
        set_threads(n_threads)
        results.append(matmul(fmt, weights, x))
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("n_tokens", [1, 5])
def test_weights_may_lie_at_any_address(name, n_tokens):
    fmt, weights, x = made_up(name, 5, n_tokens, 512)
    buffer = np.empty(weights.size + 1, np.uint8)
    unaligned = buffer[1:].reshape(weights.shape)
    unaligned[:] = weights
    assert unaligned.ctypes.data % 2 != buffer.ctypes.data % 2
    np.testing.assert_array_equal(matmul(fmt, unaligned, x), matmul(fmt, weights, x))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("n_tokens", [1, 6])
def test_nothing_is_written_past_the_result(name, n_tokens):
    """Tiles are larger than the borders leave room for."""
    fmt, weights, x = made_up(name, 5, n_tokens, 256)
    guarded = np.full((n_tokens + 2, 5), np.float32(77))
    matmul(fmt, weights, x, out=guarded[1:-1])
    np.testing.assert_array_equal(guarded[1:-1], matmul(fmt, weights, x))
    assert (guarded[[0, -1]] == 77).all()


@pytest.mark.parametrize("name", ALL)
def test_activations_may_be_quantized_beforehand(name):
    fmt, weights, x = made_up(name, 5, 3, 256)
    expected = matmul(fmt, weights, x)
    got = matmul(fmt, weights, x, quantize_activations(x))
    np.testing.assert_array_equal(got, expected)


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
    np.testing.assert_array_equal(sums, expected.astype(np.int32).sum(axis=2))
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
    assert not sums[:, 0].any()
    assert np.isfinite(scales).all()
    np.testing.assert_array_equal(q[:, 32:], np.rint(np.arange(32) * 127 / 31)[None].repeat(2, 0))


def test_no_activations():
    q, scales, sums = quantize_activations(np.empty((0, 64), np.float32))
    assert (q.shape, scales.shape, sums.shape) == ((0, 64), (0, 2), (0, 2))
