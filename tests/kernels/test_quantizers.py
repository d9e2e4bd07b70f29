"""The quantisers: their errors against other quantisers' and against every choice there is."""

import itertools
import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from helpers.blocks import QUANTIZED, format_named
from helpers.made_weights import importance_of_columns, relative_errors, weights_of_many_kinds

from q4run.kernels.formats.base import Format, Scales
from q4run.kernels.formats.quantize.ternary import MOST_GAIN

TERNARY = ["tq1_0", "tq2_0"]
IN_GGUF = ["q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "mxfp4"]
WITH_MINIMUM = ["q4_1", "q5_1", "q2_k", "q4_k", "q5_k"]
# One f16 scale for each block's codes: every choice can be tried.
PLAIN_SCALE = ["q4_0", "q5_0", "iq4_nl"]
LLAMA_CPP = json.loads((Path(__file__).parents[1] / "reference" / "quantizers.json").read_text())


def normal_rows(n_rows: int, n_cols: int, seed: int = 3) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n_rows, n_cols), dtype=np.float32)


def errors_of(fmt: Format, values: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    stored = fmt.dequantize(fmt.quantize(values, importance))
    return relative_errors(values, stored, importance)


def scaled_levels(fmt: Format, scales: Scales) -> np.ndarray:
    """What every code of each value's group stands for: float32 (n_blocks, block_size, levels)."""
    products = scales.scale[:, :, None] * fmt.levels + scales.minimum[:, :, None]
    return np.repeat(products, fmt.group_size, axis=1)


# The error.


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", QUANTIZED)
def test_no_kind_of_weights_is_worse_than_with_llama_cpp(name, weighted):
    """Its errors are stored (tests/reference/make_quantizers.py).

    Where both are all but exact, what is left is the rounding of the scales.
    """
    importance = importance_of_columns(256) if weighted else None
    for kind, values in weights_of_many_kinds().items():
        theirs = LLAMA_CPP[name][kind][weighted]
        ours = errors_of(format_named(name), values, importance).mean()
        assert ours <= 1.03 * theirs + 3e-6, kind
    if weighted or name != "q8_0":
        usual = weights_of_many_kinds()["usual"]
        ours = errors_of(format_named(name), usual, importance).mean()
        assert ours < 0.99 * LLAMA_CPP[name]["usual"][weighted]


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", IN_GGUF)
def test_no_block_is_worse_than_with_gguf(name, weighted):
    fmt = format_named(name)
    importance = importance_of_columns(256) if weighted else None
    weights = np.ones(256) if importance is None else importance.astype(np.float64)
    for kind, values in weights_of_many_kinds().items():

        def squares(rows: np.ndarray) -> np.ndarray:
            return (weights * rows.astype(np.float64) ** 2).reshape(-1, fmt.block_size).sum(axis=1)

        ours = squares(fmt.dequantize(fmt.quantize(values, importance)) - values)
        raw = gguf.quants.quantize(values, fmt.ggml_type)
        theirs = squares(gguf.quants.dequantize(raw, fmt.ggml_type) - values)
        # Sums are in float32, and weights below 2^-24 of the largest count for that.
        assert (ours <= theirs + 2e-6 * squares(values)).all(), kind


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", PLAIN_SCALE)
def test_the_scale_is_nearly_the_best_of_all_f16(name, weighted):
    """Against every f16 up to twice the extreme one, with the nearest codes for each."""
    fmt = format_named(name)
    values = normal_rows(1, 40 * 32).reshape(40, 32)
    values[20:] = np.random.default_rng(4).standard_t(3, (20, 32))
    importance = importance_of_columns(32) if weighted else None
    weights = np.ones(32) if importance is None else importance.astype(np.float64)
    halves = np.arange(1, 0x7C00, 7, dtype=np.uint16).view(np.float16).astype(np.float64)
    ours = errors_of(fmt, values, importance)
    ratios = []
    for row, error in zip(values.astype(np.float64), ours, strict=True):
        extreme = np.abs(row).max() / np.abs(fmt.levels).max()
        scales = halves[(halves > 0.4 * extreme) & (halves < 2 * extreme)]
        scales = np.concatenate([scales, -scales])
        scaled = row / scales[:, None]
        edges = (fmt.levels[1:] + fmt.levels[:-1]) / 2
        stored = fmt.levels[np.searchsorted(edges, scaled)] * scales[:, None]
        errors = (weights * (stored - row) ** 2).sum(axis=1)
        best = errors.min() / (weights * row**2).sum()
        ratios.append(error / best)
    assert np.mean(ratios) < 1.06
    assert max(ratios) < 2


@pytest.mark.parametrize("name", QUANTIZED)
def test_importance_moves_the_error_to_columns_that_matter_less(name):
    fmt, values = format_named(name), normal_rows(64, 512)
    importance = importance_of_columns(512)
    plain = relative_errors(values, fmt.dequantize(fmt.quantize(values)), importance).mean()
    weighted = errors_of(fmt, values, importance).mean()
    assert weighted < 0.99 * plain


def test_q8_0_scales_are_positive():
    """As every other writer's are: its levels are the same on both sides."""
    values, importance = normal_rows(50, 256), importance_of_columns(256)
    assert (format_named("q8_0").find_scales(values, importance).scale > 0).all()


@pytest.mark.parametrize("exponent", [-126, -20, 0, 20, 120])
def test_mxfp4_keeps_what_it_can_hold(exponent):
    """Every value of the type, in blocks whose largest value has the largest exponent."""
    halves = np.array([0, 1, 2, 3, 4, 6, 8, 12], np.float64) / 2
    rng = np.random.default_rng(13)
    values = rng.choice(np.concatenate([halves, -halves]), (200, 32))
    values[:, 0] = rng.choice([4, 6, -4, -6], 200)
    values[:, 1] = 0.5
    values = (values * 2.0**exponent).astype(np.float32)
    fmt = format_named("mxfp4")
    raw = fmt.quantize(values)
    assert (raw[:, 0] == exponent + 127).all()
    np.testing.assert_array_equal(fmt.dequantize(raw), values)


# Ternary blocks.


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("seed", range(8))
def test_ternary_codes_are_the_best_of_all(seed, weighted):
    """Against every one of the 3^7 codes of a block with 7 values that are not zero.

    A zero coded as anything else only adds error, so the other 249 need no search.
    """
    rng = np.random.default_rng(seed)
    values, places = np.zeros(256), rng.choice(256, 7, replace=False)
    values[places] = rng.standard_normal(7) * 10.0 ** rng.uniform(-1, 1, 7 if seed % 2 else 1)
    if seed % 3 == 0:
        values[places[:4]] = np.abs(values[places[0]]) * np.array([1, -1, 1, 1])  # equal ones
    values = values.astype(np.float32).astype(np.float64)
    importance = importance_of_columns(256) + np.float32(0.01) if weighted else None
    weights = np.ones(256) if importance is None else importance.astype(np.float64)
    every_code = np.array(list(itertools.product((-1, 0, 1), repeat=7)))
    best = falls(values[places], every_code, weights[places]).max()
    scales, signs = ternary_codes(values[None], importance)
    assert falls(values, signs[0], weights) >= best * (1 - 1e-6)
    np.testing.assert_allclose(scales[0], kept_gain(values, signs[0], weights), rtol=2.0**-10)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", weights_of_many_kinds())
def test_ternary_codes_are_the_best_of_all_numbers_of_kept_values(kind, weighted):
    values = weights_of_many_kinds()[kind].astype(np.float64)
    importance = importance_of_columns(256) + np.float32(1e-3) if weighted else None
    weights = np.ones(256) if importance is None else importance.astype(np.float64)
    order = np.argsort(-np.abs(values), axis=1)
    magnitudes = np.take_along_axis(np.abs(values), order, axis=1)
    sorted_weights = np.take_along_axis(np.broadcast_to(weights, values.shape), order, axis=1)
    products = np.cumsum(magnitudes * sorted_weights, axis=1)
    best = (products**2 / np.cumsum(sorted_weights, axis=1)).max(axis=1)
    _, signs = ternary_codes(values, importance)
    # A scale that f16 holds coarsely, or not at all, has other nearest codes.
    held = np.abs(values).max(axis=1) > 1e-3
    assert (falls(values, signs, weights) >= best * (1 - 1e-5))[held].all()


def ternary_codes(
    values: np.ndarray, importance: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The stored scales, (n,), and signs, (n, 256), as tq2_0 has them."""
    fmt = format_named("tq2_0")
    raw = fmt.quantize(values.astype(np.float32), importance)
    scales, _ = fmt.unpack_scales(raw)
    codes = raw[:, :64].reshape(-1, 2, 1, 32) >> np.arange(0, 8, 2).reshape(4, 1) & 3
    return scales[:, 0], codes.reshape(-1, 256).astype(np.float64) - 1


def kept_gain(values: np.ndarray, signs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The scale with which the product with the values is what theirs is with themselves, but at
    most `MOST_GAIN` times that of least squares."""
    product = (weights * values * signs).sum(axis=-1)
    least_squares = product / (weights * (signs != 0)).sum(axis=-1)
    return np.minimum((weights * values**2).sum(axis=-1) / product, MOST_GAIN * least_squares)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", weights_of_many_kinds())
def test_ternary_scales_keep_the_gain(kind, weighted):
    values = weights_of_many_kinds()[kind].astype(np.float64)
    # Where f16 holds the scale exactly enough.
    values = values[(np.abs(values).max(axis=1) > 1e-2) & (np.abs(values).max(axis=1) < 3e4)]
    importance = importance_of_columns(256) + np.float32(1e-3) if weighted else None
    weights = np.ones(256) if importance is None else importance.astype(np.float64)
    scales, signs = ternary_codes(values, importance)
    some = (signs != 0).any(axis=1)
    expected = kept_gain(values[some], signs[some], weights)
    np.testing.assert_allclose(scales[some], expected, rtol=3e-3)
    assert (scales[~some] == 0).all()


def falls(values: np.ndarray, signs: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """By how much the weighted error falls, from all zeros, with the best scale for ``signs``."""
    products, kept = (weights * values * signs).sum(axis=-1), (weights * (signs != 0)).sum(axis=-1)
    result: np.ndarray = np.maximum(products, 0) ** 2 / np.where(kept > 0, kept, 1)
    return result


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", TERNARY)
@pytest.mark.parametrize("a", [1.0, 0.037, 65504.0, 2.0**-14, 2.0**-24])
def test_ternary_blocks_are_coded_without_loss(name, a, weighted):
    a = float(np.float16(a))
    rng = np.random.default_rng(12)
    values = (a * rng.integers(-1, 2, (300, 512))).astype(np.float32)
    values[0, :256] = 0
    values[1] = 0
    values[1, [0, 255, 256, 511]] = [a, -a, -a, a]
    values[2] = a
    fmt = format_named(name)
    raw = fmt.quantize(values, importance_of_columns(512) if weighted else None)
    np.testing.assert_array_equal(fmt.dequantize(raw), values)
    np.testing.assert_array_equal(gguf.quants.dequantize(raw, fmt.ggml_type), values)


@pytest.mark.parametrize("weighted", [False, True])
def test_both_ternary_types_hold_the_same_values(weighted):
    values = np.concatenate(list(weights_of_many_kinds().values()))
    importance = importance_of_columns(256) if weighted else None
    first, second = (format_named(name) for name in TERNARY)
    np.testing.assert_array_equal(
        first.dequantize(first.quantize(values, importance)),
        second.dequantize(second.quantize(values, importance)),
    )


# Scales found once, codes chosen by somebody else.


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", [n for n in QUANTIZED if n not in ("q8_0", *TERNARY)])
def test_the_nearest_codes_for_the_scales_are_what_quantize_stores(name, weighted):
    fmt, values = format_named(name), normal_rows(6, 512)
    values[3] *= 1e-3
    importance = importance_of_columns(512) if weighted else None
    scales = fmt.find_scales(values, importance)
    assert scales.scale.shape == scales.minimum.shape
    assert scales.scale.shape == (6 * 512 // fmt.block_size, fmt.block_size // fmt.group_size)
    assert scales.scale.dtype == scales.minimum.dtype == np.float32
    assert scales.minimum.any() == (name in WITH_MINIMUM)
    blocks = values.reshape(-1, fmt.block_size)
    errors = np.abs(scaled_levels(fmt, scales) - blocks[:, :, None])
    stored = fmt.dequantize_blocks(fmt.pack(scales, errors.argmin(axis=2).astype(np.uint8)))
    expected = fmt.dequantize(fmt.quantize(values, importance)).reshape(blocks.shape)
    # Of two codes equally near either may be taken.
    np.testing.assert_allclose(
        np.abs(stored - blocks), np.abs(expected - blocks), rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize("name", QUANTIZED)
def test_any_codes_are_packed_without_loss(name):
    fmt = format_named(name)
    scales = fmt.find_scales(normal_rows(5, 512), importance_of_columns(512))
    rng = np.random.default_rng(5)
    codes = rng.integers(0, len(fmt.levels), (len(scales.scale), fmt.block_size)).astype(np.uint8)
    raw = fmt.pack(scales, codes)
    expected = np.take_along_axis(scaled_levels(fmt, scales), codes[:, :, None].astype(int), 2)
    np.testing.assert_array_equal(fmt.dequantize_blocks(raw), expected[:, :, 0])
    np.testing.assert_array_equal(gguf.quants.dequantize(raw, fmt.ggml_type), expected[:, :, 0])
    again = fmt.unpack_scales(raw)
    np.testing.assert_array_equal(again[0], scales.scale)
    np.testing.assert_array_equal(again[1], scales.minimum)


@pytest.mark.parametrize("name", QUANTIZED)
def test_codes_that_do_not_fit_are_refused(name):
    fmt = format_named(name)
    scales = fmt.find_scales(normal_rows(2, 256))
    shape = (len(scales.scale), fmt.block_size)
    with pytest.raises(ValueError, match="codes of the shape"):
        fmt.pack(scales, np.zeros((shape[0] + 1, shape[1]), np.uint8))
    with pytest.raises(ValueError, match="codes of the shape"):
        fmt.pack(scales, np.zeros(shape, np.int64))
    if len(fmt.levels) < 255:
        with pytest.raises(ValueError, match=f"has {len(fmt.levels)} levels only"):
            fmt.pack(scales, np.full(shape, len(fmt.levels), np.uint8))


def test_levels_ascend():
    for name in QUANTIZED:
        levels = format_named(name).levels
        assert levels.dtype == np.float32
        assert (np.diff(levels) > 0).all()
    assert format_named("q4_0").levels.tolist() == list(range(-8, 8))
    assert format_named("q6_k").levels.tolist() == list(range(-32, 32))
    assert format_named("q4_k").levels.tolist() == list(range(16))
    assert format_named("tq1_0").levels.tolist() == [-1, 0, 1]


# What a row's bytes depend on.


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", QUANTIZED)
def test_rows_are_quantised_alone_as_among_others(name, weighted):
    """Also where a row is not a whole number of tiles, and where the last tile is not full."""
    fmt = format_named(name)
    n_cols = 768 if fmt.block_size == 256 else 7 * 32
    values = normal_rows(11, n_cols) * np.linspace(0.1, 3, 11, dtype=np.float32)[:, None]
    importance = importance_of_columns(n_cols) if weighted else None
    whole = fmt.quantize(values, importance)
    for bounds in ([0, 1, 2, 3, 11], [0, 4, 9, 11], [0, 10, 11]):
        parts = [
            fmt.quantize(values[start:stop], importance)
            for start, stop in itertools.pairwise(bounds)
        ]
        np.testing.assert_array_equal(np.concatenate(parts), whole)
    np.testing.assert_array_equal(fmt.quantize(values[::-1], importance)[::-1], whole)
    cube = values[:10].reshape(2, 5, n_cols)
    np.testing.assert_array_equal(fmt.quantize(cube, importance).reshape(10, -1), whole[:10])


@pytest.mark.parametrize("name", QUANTIZED)
def test_columns_that_all_count_alike_are_as_without_importance(name):
    """Or better: without one, fewer scales are tried for some types."""
    fmt, values = format_named(name), normal_rows(4, 512)
    plain = errors_of(fmt, values, None).mean()
    expected = fmt.quantize(values, np.ones(512, np.float32))
    assert 0.88 * plain < relative_errors(values, fmt.dequantize(expected), None).mean() <= plain
    for weight in (0, 1e-38, 1e-30, 7, 1e30):
        importance = np.full(512, weight, np.float32)
        np.testing.assert_array_equal(fmt.quantize(values, importance), expected)


@pytest.mark.parametrize("name", QUANTIZED)
def test_only_ratios_of_the_importance_matter(name):
    fmt, values = format_named(name), normal_rows(4, 512)
    importance = importance_of_columns(512)
    expected = fmt.quantize(values, importance)
    for power in (-60, 60):
        scaled = importance * np.float32(2.0**power)
        np.testing.assert_array_equal(fmt.quantize(values, scaled), expected)


@pytest.mark.parametrize("name", QUANTIZED)
def test_a_block_without_importance_is_quantised_as_if_there_were_none(name):
    fmt, values = format_named(name), normal_rows(3, 512)
    importance = importance_of_columns(512)
    importance[:256] = 0
    first = fmt.quantize(values, importance)[:, : fmt.row_bytes(256)]
    equal = np.ones(256, np.float32)
    np.testing.assert_array_equal(first, fmt.quantize(values[:, :256], equal))


@pytest.mark.parametrize("name", ["q2_k", "q4_k", "q6_k"])
def test_a_group_without_importance_keeps_its_values_all_the_same(name):
    fmt, values = format_named(name), normal_rows(50, 256)
    importance = np.ones(256, np.float32)
    importance[64:96] = 0
    stored = fmt.dequantize(fmt.quantize(values, importance))
    dead = relative_errors(values[:, 64:96], stored[:, 64:96], None).mean()
    assert dead < 1.5 * errors_of(fmt, values, None).mean()


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize(
    "importance",
    [
        np.ones(511, np.float32),
        np.ones((1, 512), np.float32),
        np.where(np.arange(512) == 7, -1, 1),
        np.where(np.arange(512) == 7, np.nan, 1),
        np.where(np.arange(512) == 7, np.inf, 1),
    ],
    ids=["short", "matrix", "negative", "nan", "inf"],
)
def test_an_importance_that_makes_no_sense_is_refused(name, importance):
    with pytest.raises(ValueError, match="importance"):
        format_named(name).quantize(normal_rows(1, 512), importance)


# Borders.


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("n_rows", [0, 1, 3])
def test_few_rows(name, n_rows):
    fmt = format_named(name)
    raw = fmt.quantize(normal_rows(n_rows, fmt.block_size))
    assert raw.shape == (n_rows, fmt.type_size)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("value", [1.0, -1.0, 0.1, -37.5, 65504.0, -65504.0, 1e-3])
def test_constant_blocks_stay_nearly_constant(name, value, weighted):
    fmt = format_named(name)
    values = np.full((2, 512), value, np.float32)
    importance = importance_of_columns(512) if weighted else None
    stored = fmt.dequantize(fmt.quantize(values, importance))
    assert np.isfinite(stored).all()
    if name == "mxfp4":  # powers of two times a few numbers: between 4 and 6 nothing is nearer
        np.testing.assert_allclose(stored, value, rtol=0.2)
    else:
        np.testing.assert_allclose(stored, value, rtol=0.03)


@pytest.mark.parametrize("name", QUANTIZED)
def test_the_largest_values_stay_finite(name):
    fmt, rng = format_named(name), np.random.default_rng(6)
    values = (65504 * rng.choice([-1, 1], (20, 512))).astype(np.float32)
    values[10:] *= rng.random((10, 512), dtype=np.float32)
    for importance in (None, importance_of_columns(512)):
        stored = fmt.dequantize(fmt.quantize(values, importance))
        assert np.isfinite(stored).all()
        assert errors_of(fmt, values, importance).max() < 0.3


@pytest.mark.parametrize("name", QUANTIZED)
def test_a_huge_outlier_costs_its_own_block_only(name):
    fmt, values = format_named(name), normal_rows(1, 768)
    values[0, 300] = 60000
    stored = fmt.dequantize(fmt.quantize(values))
    np.testing.assert_allclose(stored[0, 300], 60000, rtol=0.2)
    first, last = 300 // fmt.block_size * fmt.block_size, (300 // fmt.block_size + 1)
    last *= fmt.block_size
    apart = np.concatenate([values[:, :first], values[:, last:]], axis=1)
    expected = fmt.dequantize(fmt.quantize(apart))
    np.testing.assert_array_equal(np.delete(stored, np.s_[first:last], axis=1), expected)


@pytest.mark.parametrize("name", QUANTIZED)
@pytest.mark.parametrize("magnitude", [1e-3, 1e-6, 1e-7, 1e-8, 1e-20, 1e-38, 1e-44])
def test_small_values_never_become_worse_than_zeros(name, magnitude):
    """F16 scales end at 6e-8: below, a block is zeros, and nothing divides by them."""
    fmt = format_named(name)
    values = (normal_rows(20, 512) * magnitude).astype(np.float32)
    for importance in (None, importance_of_columns(512)):
        stored = fmt.dequantize(fmt.quantize(values, importance))
        assert np.isfinite(stored).all()
        if magnitude >= 1e-8:
            assert (relative_errors(values, stored, importance) <= 1 + 1e-6).all()
        else:
            assert name == "mxfp4" or not stored.any()


@pytest.mark.parametrize("ratio", [1e-30, 1e-10, 1e-3, 1e3, 1e10, 1e30])
@pytest.mark.parametrize("name", QUANTIZED)
def test_columns_of_very_different_importance(name, ratio):
    """Where a few columns are nearly all that matters, they are kept nearly exactly."""
    fmt, values = format_named(name), normal_rows(30, 512)
    importance = np.ones(512, np.float32)
    importance[5::32] = ratio
    stored = fmt.dequantize(fmt.quantize(values, importance))
    assert np.isfinite(stored).all()
    plain = errors_of(fmt, values, None).mean()
    assert relative_errors(values, stored, importance).mean() < 1.01 * plain
    if ratio > 1e6 and name in PLAIN_SCALE:
        matters = relative_errors(values[:, 5::32], stored[:, 5::32], None)
        assert matters.mean() < 1e-3
