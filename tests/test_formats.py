"""The block formats: codecs against gguf's own, quantisers against what they are to do."""

import itertools

import gguf
import numpy as np
import pytest
from blocks import ALL, QUANTIZED, format_named

from q4run.cli import convert as convert_command
from q4run.convert.recipe import FILE_TYPES, check_type
from q4run.errors import UnsupportedError
from q4run.kernels.formats import find_format, find_format_named
from q4run.kernels.formats.base import Format
from q4run.kernels.formats.iq4_values import VALUES
from q4run.kernels.formats.ternary import ternarize

LIKE_GGUF = ["f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "mxfp4"]
TERNARY = ["tq1_0", "tq2_0"]
READ_ONLY = ["q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_xs"]
WRITABLE = [name for name in ALL if name not in READ_ONLY]


def random_bytes(fmt: Format, n_rows: int, n_blocks: int, seed: int = 0) -> np.ndarray:
    shape = (n_rows, n_blocks * fmt.type_size)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def weights_of_many_kinds() -> np.ndarray:
    """float32 (n, 256): usual weights, outliers, ties, one sign only, zeros, every magnitude."""
    rng = np.random.default_rng(7)
    usual = rng.standard_normal((400, 256))
    outliers = usual[:100] * np.where(rng.random((100, 256)) < 0.01, 50, 1)
    ties = rng.integers(-254, 255, (100, 256)) / 2  # halves of a scale of 1 in q8_0
    ties[:, ::32] = 127
    eighths = rng.integers(-16, 17, (100, 256)) / 2  # halves of a scale of -1 or 1 in q4_0
    eighths[:, ::32] = 8 * np.sign(rng.standard_normal((100, 8)))
    one_sign = np.abs(usual[:50])
    magnitudes = usual[:200] * 10.0 ** rng.uniform(-12, 4, (200, 1))
    sparse = usual[:50] * (rng.random((50, 256)) < 0.05)
    rows = [usual, outliers, ties, eighths, one_sign, -one_sign, magnitudes, sparse]
    edges = np.zeros((2, 256))
    edges[1] = 1
    # No -0: gguf and ggml differ in the sign of the scale of a q4_0 block that begins with one.
    return np.concatenate([*rows, edges]).astype(np.float32) + np.float32(0)


@pytest.mark.parametrize("name", LIKE_GGUF)
def test_quantize_is_gguf_bit_for_bit(name):
    fmt, values = format_named(name), weights_of_many_kinds()
    expected = gguf.quants.quantize(values, fmt.ggml_type)
    np.testing.assert_array_equal(fmt.quantize(values), expected.view(np.uint8))


def test_q8_0_rounds_the_largest_float_below_a_half_down():
    values = np.zeros((1, 32), np.float32)
    values[0, :3] = [127, np.nextafter(np.float32(0.5), np.float32(0)), 0.5]
    codes = format_named("q8_0").quantize(values)[0, 2:]
    assert codes[:3].tolist() == [127, 0, 1]


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_every_pattern_of_a_16_bit_type_survives(name):
    fmt = format_named(name)
    patterns = np.arange(65536).astype(np.uint16)
    values = fmt.dequantize(patterns.view(np.uint8))
    is_nan = np.isnan(values)
    with np.errstate(invalid="ignore"):
        back = fmt.quantize(values).view(np.uint16)
    np.testing.assert_array_equal(back[~is_nan], patterns[~is_nan])
    assert np.isnan(fmt.dequantize(back[is_nan].view(np.uint8))).all()


def test_bf16_rounds_random_floats_as_gguf_does():
    fmt = format_named("bf16")
    bits = np.random.default_rng(8).integers(0, 2**32, 200_000, dtype=np.uint32)
    values = bits.view(np.float32)
    finite = values[np.isfinite(values)]
    finite = np.concatenate([finite, np.array([3.4e38, -3.4e38, np.inf, -np.inf], np.float32)])
    expected = gguf.quants.quantize(finite, fmt.ggml_type)
    np.testing.assert_array_equal(fmt.quantize(finite), expected.view(np.uint8))


def test_f16_overflows_to_infinity_without_a_warning(recwarn):
    values = np.array([65504, 65519.99, 65520, 1e30, -1e30], np.float32)
    fmt = format_named("f16")
    got = fmt.dequantize(fmt.quantize(values))
    assert got.tolist() == [65504, 65504, np.inf, np.inf, -np.inf]
    assert not recwarn.list


@pytest.mark.parametrize("name", ALL)
def test_dequantize_is_gguf_on_any_bytes(name):
    """Scales that are infinite or NaN included."""
    fmt = format_named(name)
    raw = random_bytes(fmt, 7, 500)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(raw, fmt.ggml_type)
        got = fmt.dequantize(raw)
    assert got.dtype == np.float32
    is_nan = np.isnan(expected)
    np.testing.assert_array_equal(np.isnan(got), is_nan)
    # Bits, so that zeros have their sign too.
    np.testing.assert_array_equal(got[~is_nan].view(np.uint32), expected[~is_nan].view(np.uint32))


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("extreme", [np.inf, -np.inf, 3e38, 1e-40, 65504.0 * 127])
def test_extreme_values_stay_within_their_block(name, extreme):
    """What f16 scales cannot hold spoils one block, and nothing crashes or warns."""
    fmt = format_named(name)
    values = np.ones((1, 3 * fmt.block_size), np.float32)
    values[0, fmt.block_size + 5] = extreme
    with np.errstate(all="ignore"):
        got = fmt.dequantize(fmt.quantize(values)).reshape(3, fmt.block_size)
    np.testing.assert_allclose(got[[0, 2]], 1, rtol=1e-3)


@pytest.mark.parametrize("name", QUANTIZED)
def test_zeros_stay_zeros(name):
    fmt = format_named(name)
    values = np.zeros((2, 2 * fmt.block_size), np.float32)
    values[1] = -0.0
    raw = fmt.quantize(values)
    assert not fmt.dequantize(raw).any()
    assert not gguf.quants.dequantize(raw, fmt.ggml_type).any()


# The largest error, in units of the block's largest magnitude: half a step, and f16's rounding.
# Q4_0 has no code for +8: a value opposite to the extreme may be off by one whole step; so has
# Q5_0. A Q4_1 or Q5_1 block may reach from -1 to 1. MXFP4 has nothing above 6, and a block's
# largest may be all but 8. IQ4_NL's widest gap is 24 of 127, and its scale may shrink a little.
STEPS = {
    "q8_0": 0.5 / 127,
    "q4_0": 1 / 8,
    "q5_0": 1 / 16,
    "q4_1": 1 / 15 + 2.0**-10,
    "q5_1": 1 / 31 + 2.0**-10,
    "mxfp4": 1 / 4,
    "iq4_nl": 0.15,
}


@pytest.mark.parametrize("name", STEPS)
def test_quantisation_error_is_bounded(name):
    fmt = format_named(name)
    values = np.random.default_rng(9).standard_normal((500, fmt.block_size), dtype=np.float32)
    errors = np.abs(fmt.dequantize(fmt.quantize(values)) - values).max(axis=1)
    assert (errors <= np.abs(values).max(axis=1) * (STEPS[name] + 2.0**-11)).all()


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("leading", [(), (3,), (2, 3), (0,), (2, 0), (1, 1, 1)])
def test_shapes(name, leading):
    fmt = format_named(name)
    n_cols = 2 * fmt.block_size
    rng = np.random.default_rng(10)
    raw = rng.integers(0, 60, (*leading, fmt.row_bytes(n_cols))).astype(np.uint8)
    back = fmt.dequantize(raw)
    assert back.dtype == np.float32
    assert back.shape == (*leading, n_cols)
    flat = fmt.dequantize(raw.reshape(-1, fmt.type_size))
    np.testing.assert_array_equal(back.ravel(), flat.ravel())
    if fmt.can_quantize:
        again = fmt.quantize(back)
        assert again.dtype == np.uint8
        assert again.shape == raw.shape
        np.testing.assert_array_equal(again.ravel(), fmt.quantize(flat).ravel())


@pytest.mark.parametrize("name", WRITABLE)
def test_any_strides_and_float_types_are_taken(name):
    fmt = format_named(name)
    values = np.random.default_rng(11).integers(-9, 10, (4, 2 * fmt.block_size)).astype(np.float32)
    expected = fmt.quantize(values)
    for same in (values.astype(np.float64), values.astype(np.float16), np.asfortranarray(values)):
        np.testing.assert_array_equal(fmt.quantize(same), expected)
    every_other = np.repeat(values, 2, axis=1)[:, ::2]
    np.testing.assert_array_equal(fmt.quantize(every_other), expected)
    spaced = np.repeat(expected, 2, axis=0)[::2]
    np.testing.assert_array_equal(fmt.dequantize(spaced), fmt.dequantize(expected))


@pytest.mark.parametrize("name", [*QUANTIZED, *READ_ONLY])
def test_a_row_must_be_whole_blocks(name):
    fmt = format_named(name)
    assert fmt.fits(3 * fmt.block_size)
    for n_cols in (1, fmt.block_size - 1, fmt.block_size + 1):
        assert not fmt.fits(n_cols)
        with pytest.raises(ValueError, match=rf"{n_cols} values are not whole {name} blocks"):
            fmt.row_bytes(n_cols)
        with pytest.raises(ValueError, match=rf"{n_cols} values are not whole {name} blocks"):
            fmt.quantize(np.zeros((2, n_cols), np.float32))


@pytest.mark.parametrize("name", ALL)
def test_the_registry_knows_gguf_types(name):
    fmt = format_named(name)
    assert find_format(gguf.GGMLQuantizationType[name.upper()]) is fmt
    assert (fmt.block_size, fmt.type_size) == gguf.GGML_QUANT_SIZES[fmt.ggml_type]
    assert fmt.bits_per_weight == 8 * fmt.type_size / fmt.block_size


def test_unknown_types_are_not_found():
    assert find_format(gguf.GGMLQuantizationType.I32) is None
    assert find_format_named("q9_9") is None
    assert find_format_named("Q4_0") is None  # names are GGUF's in lower case


@pytest.mark.parametrize("name", READ_ONLY)
def test_types_that_cannot_be_written_say_so(name):
    fmt = format_named(name)
    assert not fmt.can_quantize
    with pytest.raises(NotImplementedError):
        fmt.quantize(np.zeros((1, fmt.block_size), np.float32))
    with pytest.raises(UnsupportedError, match=f"^{name} cannot be written yet; choose f32, f16, "):
        check_type(name)


def test_the_converter_offers_what_can_be_written():
    assert [name for name in ALL if format_named(name).can_quantize] == WRITABLE
    assert sorted(FILE_TYPES) == WRITABLE
    assert all(check_type(name) == name for name in WRITABLE)
    assert ", ".join(FILE_TYPES) == convert_command._TYPES


@pytest.mark.parametrize(
    "name", ["iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s"]
)
def test_types_without_kernels_are_read_all_the_same(name):
    fmt = find_format(gguf.GGMLQuantizationType[name.upper()])
    assert fmt is not None
    assert name not in ALL
    assert fmt.in_ram is format_named("q8_0")
    assert not fmt.can_quantize
    raw = random_bytes(fmt, 3, 7)
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(raw, fmt.ggml_type)
    np.testing.assert_array_equal(fmt.dequantize(raw), expected)


# The quantisers that gguf does not have.


def test_iq4_nl_codes_are_the_nearest_and_the_scale_fits_them_best():
    values = weights_of_many_kinds().reshape(-1, 32)
    extremes = np.take_along_axis(values, np.abs(values).argmax(axis=1)[:, None], axis=1)
    # The scale is an f16: of subnormal ones only a few bits are left.
    values, extremes = (kind[np.abs(extremes[:, 0]) > 0.01] for kind in (values, extremes))
    table = VALUES.astype(np.float64)
    scaled = values / extremes.astype(np.float64) * table[0]
    raw = format_named("iq4_nl").quantize(values)
    codes = np.concatenate([raw[:, 2:] & 15, raw[:, 2:] >> 4], axis=1)
    errors = np.abs(table - scaled[:, :, None])
    chosen = np.take_along_axis(errors, codes[:, :, None].astype(np.intp), axis=2)[:, :, 0]
    assert (chosen <= errors.min(axis=2) + 1e-4).all()
    weights, wanted = values.astype(np.float64) ** 2, table[codes]
    best = (weights * wanted * values).sum(axis=1) / (weights * wanted**2).sum(axis=1)
    scales = raw[:, :2].copy().view(np.float16)[:, 0]
    np.testing.assert_allclose(scales.astype(np.float64), best, rtol=2.0**-11 + 1e-5)


@pytest.mark.parametrize("exponent", [-126, -20, 0, 20, 120])
def test_mxfp4_keeps_what_it_can_hold(exponent):
    """Every value of the type, in blocks whose largest value has the largest exponent."""
    halves = np.array([0, 1, 2, 3, 4, 6, 8, 12], np.float64) / 2
    rng = np.random.default_rng(13)
    values = rng.choice(np.concatenate([halves, -halves]), (200, 32))
    values[:, 0] = rng.choice([4, 6, -4, -6], 200)
    values = (values * 2.0**exponent).astype(np.float32)
    fmt = format_named("mxfp4")
    raw = fmt.quantize(values)
    assert (raw[:, 0] == exponent + 127).all()
    np.testing.assert_array_equal(fmt.dequantize(raw), values)


# The ternary quantiser.


def least_squares_fall(values: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """By how much the squared error falls, from all zeros, with the best scale for ``signs``."""
    products, kept = (values * signs).sum(axis=-1), (signs != 0).sum(axis=-1)
    return np.maximum(products, 0) ** 2 / np.maximum(kept, 1)


@pytest.mark.parametrize("seed", range(12))
def test_ternary_codes_are_the_best_of_all(seed):
    """Against every one of the 3^7 codes of a block with 7 values that are not zero.

    A zero coded as anything else only adds error, so the other 249 need no search.
    """
    rng = np.random.default_rng(seed)
    values = np.zeros(256)
    places = rng.choice(256, 7, replace=False)
    values[places] = rng.standard_normal(7) * 10.0 ** rng.uniform(-1, 1, 7 if seed % 2 else 1)
    if seed % 3 == 0:
        values[places[:4]] = np.abs(values[places[0]]) * np.array([1, -1, 1, 1])  # equal ones
    values = values.astype(np.float32).astype(np.float64)
    every_code = np.array(list(itertools.product((-1, 0, 1), repeat=7)))
    best = least_squares_fall(values[places], every_code).max()

    scales, codes = ternarize(values.astype(np.float32)[None])
    signs = codes[0].astype(np.float64) - 1
    assert least_squares_fall(values, signs) >= best * (1 - 1e-12)
    scale = (values * signs).sum() / np.count_nonzero(signs)
    assert scales[0, 0] == np.float16(np.float32(scale))


def test_ternary_codes_are_the_best_of_all_numbers_of_kept_values():
    values = weights_of_many_kinds().astype(np.float64)
    order = np.argsort(-np.abs(values), axis=1)
    sorted_magnitudes = np.take_along_axis(np.abs(values), order, axis=1)
    falls = np.cumsum(sorted_magnitudes, axis=1) ** 2 / np.arange(1, 257)
    _, codes = ternarize(values.astype(np.float32))
    signs = codes.astype(np.float64) - 1
    assert (least_squares_fall(values, signs) >= falls.max(axis=1) * (1 - 1e-12)).all()


@pytest.mark.parametrize("name", TERNARY)
@pytest.mark.parametrize("a", [1.0, 0.037, 65504.0, 2.0**-14, 2.0**-24])
def test_ternary_blocks_are_coded_without_loss(name, a):
    a = float(np.float16(a))
    rng = np.random.default_rng(12)
    values = (a * rng.integers(-1, 2, (300, 512))).astype(np.float32)
    values[0, :256] = 0
    values[1] = 0
    values[1, [0, 255, 256, 511]] = [a, -a, -a, a]
    values[2] = a
    fmt = format_named(name)
    raw = fmt.quantize(values)
    np.testing.assert_array_equal(fmt.dequantize(raw), values)
    np.testing.assert_array_equal(gguf.quants.dequantize(raw, fmt.ggml_type), values)


@pytest.mark.parametrize("name", TERNARY)
def test_ternary_is_never_worse_than_the_absolute_maximum(name):
    fmt = format_named(name)
    values = weights_of_many_kinds()
    peaks = np.abs(values).max(axis=1)
    values = values[(peaks == 0) | (peaks > 1e-4)]  # within the range of f16 scales

    def squared_errors(raw: np.ndarray) -> np.ndarray:
        difference = gguf.quants.dequantize(raw, fmt.ggml_type).astype(np.float64) - values
        return (difference**2).sum(axis=1)

    ours = squared_errors(fmt.quantize(values))
    theirs = squared_errors(gguf.quants.quantize(values, fmt.ggml_type))
    energy = (values.astype(np.float64) ** 2).sum(axis=1)
    assert (ours <= theirs + 1e-6 * energy).all()
    # And by far better on usual weights: a normal distribution leaves 0.19 of its energy.
    assert ours[:400].sum() < 0.2 * energy[:400].sum() < 0.5 * theirs[:400].sum()


def test_both_ternary_types_hold_the_same_values():
    values = weights_of_many_kinds()
    first, second = (format_named(name) for name in TERNARY)
    np.testing.assert_array_equal(
        first.dequantize(first.quantize(values)), second.dequantize(second.quantize(values))
    )
