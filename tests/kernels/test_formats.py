"""The block formats: codecs against gguf's own, and what holds of every quantiser."""

import gguf
import numpy as np
import pytest
from helpers.blocks import ALL, QUANTIZED, format_named
from helpers.made_weights import weights_of_many_kinds

from q4run.cli import convert_options
from q4run.convert.types.recipe import FILE_TYPES, RECIPES, check_type
from q4run.errors import UnsupportedError
from q4run.kernels.formats import find_format, find_format_named
from q4run.kernels.formats.base import Format

LIKE_GGUF = ["f16", "bf16", "q8_0"]


def random_bytes(fmt: Format, n_rows: int, n_blocks: int, seed: int = 0) -> np.ndarray:
    shape = (n_rows, n_blocks * fmt.type_size)
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


@pytest.mark.parametrize("name", LIKE_GGUF)
def test_quantize_is_gguf_bit_for_bit(name):
    fmt, values = format_named(name), np.concatenate(list(weights_of_many_kinds().values()))
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


@pytest.mark.parametrize("name", ALL)
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


@pytest.mark.parametrize("name", QUANTIZED)
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


def test_types_that_cannot_be_written_say_so():
    fmt = find_format(gguf.GGMLQuantizationType.IQ2_XS)
    assert fmt is not None
    assert not fmt.can_quantize
    with pytest.raises(NotImplementedError):
        fmt.quantize(np.zeros((1, fmt.block_size), np.float32))
    with pytest.raises(UnsupportedError, match="the type 'iq2_xs' is not supported"):
        check_type("iq2_xs")


def test_the_converter_offers_what_can_be_written():
    assert all(format_named(name).can_quantize for name in ALL)
    assert sorted(FILE_TYPES) == ALL
    assert all(check_type(name) == name for name in ALL)
    assert sorted(convert_options.type_names()) == ALL
    recipes = (f"{name} ({purpose})" for name, (_, _, purpose) in RECIPES.items())
    assert ", ".join(recipes) == convert_options._RECIPES


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
