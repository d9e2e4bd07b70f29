"""The SIMD layer: every operation on every target of this machine against numpy.

The targets differ by an environment variable that is read at import, so each runs in a process of
its own: this file, as a script, writes what the operations gave to an npz file.
"""

import subprocess
import sys

import numpy as np
import pytest
from helpers.blocks import format_named, interleaved, random_blocks
from helpers.scripts import script_environment
from numba.core.errors import TypingError

from q4run.kernels.compiling import target
from q4run.kernels.compiling.compile import kernel
from q4run.kernels.products.products import matmul
from q4run.kernels.simd.casts import (
    as_signed,
    bfloats_to_float,
    floats_to_half,
    halved_power_of_two,
    halves_to_float,
    to_float,
    to_int,
)
from q4run.kernels.simd.lowering import BIAS
from q4run.kernels.simd.math import exp, silu
from q4run.kernels.simd.memory import (
    address_of,
    copy_bytes,
    interleave_sixteen,
    load_f32x8,
    load_f32x8_bytes,
    load_four,
    load_half,
    load_i8x32,
    load_i32x8_bytes,
    load_u8x32,
    load_u16x8,
    load_u16x8_bytes,
    load_wide_i8,
    load_wide_u8,
    load_wide_u16,
    prefetch,
    stack_bytes,
    store,
    store_low_bytes,
    u8_pointer,
)
from q4run.kernels.simd.ops import (
    add,
    add_where_set,
    biased,
    bit_and,
    bit_field,
    bit_field_at,
    bit_or,
    byte_table,
    divide,
    dot_biased,
    dot_unsigned,
    lane,
    maximum,
    minimum,
    reduce_add,
    reduce_add_int,
    reduce_max,
    round_even,
    shift_left,
    shift_right,
    splat,
    ternary_digit,
    ternary_digits,
    with_lane,
)
from q4run.kernels.simd.tails import load_some, store_some
from q4run.kernels.simd.vector import f32x8, i32x8, u8x32

# What the exponential promises in its docstring, and what silu built on it may lose.
EXP_ULPS = 2.0
SILU_ULPS = 3.0
TABLE = [-127, -104, 0, 1, 127, 255, 200, 128, -128, 5, 77, -1, 13, 25, 38, 64]
_table = byte_table(TABLE)
POWERS = np.array([1, 3, 9, 27, 81], np.uint16)


@kernel()
def _dots(unsigned, signed, b, accumulators, out_unsigned, out_biased):
    for i in range(len(accumulators)):
        x = load_i8x32(b, 32 * i)
        start = splat(i32x8, accumulators[i])
        store(out_unsigned, 8 * i, dot_unsigned(start, load_u8x32(unsigned, 32 * i), x))
        store(out_biased, 8 * i, dot_biased(start, biased(load_i8x32(signed, 32 * i)), x))


@kernel()
def _widen(patterns, pattern_bytes, halves, scalar_halves, bfloats, powers):
    for i in range(0, len(patterns), 8):
        store(halves, i, halves_to_float(load_u16x8(patterns, i)))
        store(bfloats, i, bfloats_to_float(load_u16x8_bytes(pattern_bytes, 2 * i)))
    for i in range(len(patterns)):
        scalar_halves[i] = load_half(pattern_bytes, 2 * i)
    for i in range(0, len(powers), 8):
        exponents = load_wide_u16(pattern_bytes, 2 * i)
        store(powers, i, halved_power_of_two(exponents))


@kernel()
def _narrow(floats, out):
    for i in range(0, len(floats), 8):
        store(out, i, floats_to_half(load_f32x8(floats, i)))


@kernel()
def _functions(x, exponentials, silus):
    for i in range(0, len(x), 8):
        store(exponentials, i, exp(load_f32x8(x, i)))
        store(silus, i, silu(load_f32x8(x, i)))


@kernel()
def _lanes(x, y, out, sums, largest, int_sums, low_bytes):
    for i in range(0, len(x), 8):
        a, b = load_f32x8(x, i), load_f32x8(y, i)
        rounded = to_int(round_even(a))
        store(out[0], i, maximum(a, b))
        store(out[1], i, minimum(a, b))
        store(out[2], i, divide(a, b))
        store(out[3], i, to_float(add(shift_left(rounded, 3), splat(i32x8, 5))))
        store_low_bytes(low_bytes, i, rounded)
        sums[i // 8] = reduce_add(a)
        largest[i // 8] = reduce_max(a)
        int_sums[i // 8] = reduce_add_int(rounded)


@kernel()
def _bytes(a, b, out):
    for i in range(0, len(a), 32):
        x, y = load_u8x32(a, i), load_u8x32(b, i)
        store(out[0], i, bit_or(bit_and(x, splat(u8x32, 240)), shift_right(y, 4)))
        store(out[1], i, _table(bit_and(x, splat(u8x32, 15))))
        store(out[2], i, as_signed(y))
        d0, d1, d2, d3, d4 = ternary_digits(x)
        store(out[3], i, d0)
        store(out[4], i, d1)
        store(out[5], i, d2)
        store(out[6], i, d3)
        store(out[7], i, d4)
        for n in range(5):
            store(out[8 + n], i, ternary_digit(x, POWERS[n]))


@kernel()
def _bit_fields(a, out):
    """Every field of a byte, and at every place."""
    n = 0
    for shift in range(8):
        for width in range(1, 9 - shift):
            for i in range(0, len(a), 32):
                store(out[n], i, bit_field(load_u8x32(a, i), shift, (1 << width) - 1))
            n += 1
            for place in range(9 - width):
                for i in range(0, len(a), 32):
                    field = bit_field_at(load_u8x32(a, i), shift, (1 << width) - 1, place)
                    store(out[n], i, field)
                n += 1
    return n


@kernel()
def _words(words, a, sums, wide, shifted):
    for i in range(0, len(words), 32):
        word, x = load_i32x8_bytes(words, i), load_u8x32(a, i)
        store(sums[0], i, add_where_set(x, 16, word, 0))
        store(sums[1], i, add_where_set(x, 4, word, 4))
        store(sums[2], i, add_where_set(x, 1, word, 20))
        store(sums[3], i, add_where_set(x, 255, word, 28))
        store(wide[0], i // 4, load_wide_u8(words, i))
        store(wide[1], i // 4, load_wide_i8(words, i))
        store(wide[2], i // 4, load_wide_u16(words, i))
        store(shifted[0], i // 4, shift_right(word, 9))
        store(shifted[1], i // 4, bit_or(shift_left(word, 5), splat(i32x8, 3)))


@kernel()
def _pointers(source, stride, fours, by_four, by_two, copied, on_stack):
    """Functions that take addresses; ``source`` begins at any address."""
    pointer = u8_pointer(source.ctypes.data)
    prefetch(pointer, 1 << 40)
    interleave_sixteen(pointer, 3, stride, u8_pointer(by_four.ctypes.data), 1, 4)
    interleave_sixteen(pointer, 3, stride, u8_pointer(by_two.ctypes.data), 1, 2)
    copy_bytes(pointer, 2, u8_pointer(copied.ctypes.data), 1, len(copied) - 2)
    memory = stack_bytes(192)
    for i in range(192):
        memory[i] = source[i]
    for i in range(0, 192, 32):
        store(on_stack, i, load_u8x32(memory, i))
    for i in range(8):
        store(fours, 32 * i, load_four(source.view(np.int8), i))
    return address_of(memory) % 64


@kernel()
def _tails(x, loaded, stored, lanes):
    for n in range(11):
        vector = load_some(x, 3, n)
        store(loaded, 8 * n, vector)
        store_some(stored, 12 * n + 2, load_f32x8(x, 3), n)
    for i in range(8):
        lanes[i] = lane(load_f32x8_bytes(x.view(np.uint8), 4), i)
        store(lanes, 8 + 8 * i, with_lane(splat(f32x8, 1.0), i, x[0]))


def _dot_inputs():
    """Every pair of extreme values in every lane, then random ones, all within the contract."""
    rng = np.random.default_rng(1)
    b_edges = np.array([-127, -126, -1, 0, 1, 126, 127], np.int8)
    pairs = np.array(np.meshgrid([0, 1, 126, 127], b_edges), dtype=np.int8).reshape(2, -1)
    signed_pairs = np.array(np.meshgrid([-128, -127, -1, 0, 127], b_edges)).reshape(2, -1)
    n = 512
    unsigned = rng.integers(0, 128, (n, 32)).astype(np.uint8)
    signed = rng.integers(-128, 128, (n, 32)).astype(np.int8)
    b = rng.integers(-127, 128, (n, 32)).astype(np.int8)
    k, m = pairs.shape[1], signed_pairs.shape[1]
    unsigned[:k], b[:k] = pairs[0][:, None], pairs[1][:, None]
    signed[k : k + m], b[k : k + m] = signed_pairs[0][:, None], signed_pairs[1][:, None]
    # Extremes of alternating sign: pairs that cancel, and pairs that add, in 16 bits.
    unsigned[k + m] = 127
    b[k + m] = np.tile([127, -127], 16)
    accumulators = rng.integers(-(2**30), 2**30, n).astype(np.int32)
    accumulators[:4] = [2**31 - 1, -(2**31), 0, -1]
    return unsigned, signed, b, accumulators


def _half_inputs():
    """Floats around every tie and border of the f16 grid, and random bit patterns."""
    grid = np.arange(0x7C01, dtype=np.uint16).view(np.float16).astype(np.float64)
    grid[-1] = 65536  # where the next half would lie: 65520 is the tie with infinity
    ties = ((grid[:-1] + grid[1:]) / 2).astype(np.float32)
    floats = [
        ties,
        np.nextafter(ties, np.float32(0)),
        np.nextafter(ties, np.float32(np.inf)),
        grid.astype(np.float32),
        np.array([0, 1e-45, 1e-40, 2.0**-25, 2.0**-24, 65504, 1e30, np.inf], np.float32),
        np.array([0x7F800001, 0x7FC00000, 0x7FFFFFFF, 0x7FA5A5A5], np.uint32).view(np.float32),
        np.random.default_rng(2).integers(0, 2**31, 100_000, dtype=np.uint32).view(np.float32),
    ]
    positive = np.concatenate(floats)
    both = np.concatenate([positive, -positive])
    return np.concatenate([both, np.zeros(-len(both) % 8, np.float32)])


def _exp_inputs():
    rng = np.random.default_rng(3)
    spread = rng.uniform(-87, 88, 400_000)
    near_zero = rng.standard_normal(100_000) * 10.0 ** rng.uniform(-8, 0, 100_000)
    # Halfway between multiples of ln 2, where the remainder is largest.
    halfway = (np.arange(-124, 126) + 0.5) * np.log(2)
    edges = [0.0, -0.0, 88.0, -87.0, 1e-30, -1e-30]
    x = np.concatenate([spread, near_zero, halfway, edges]).astype(np.float32)
    return np.concatenate([x, np.zeros(-len(x) % 8, np.float32)])


def _lane_inputs():
    rng = np.random.default_rng(4)
    x = (rng.standard_normal(4096) * 100).astype(np.float32)
    x[:16] = np.arange(16, dtype=np.float32) - 8 + np.float32(0.5)  # ties of the rounding
    y = (rng.standard_normal(4096) * 100).astype(np.float32)
    return x, y


def _byte_inputs():
    """Every pair of bytes."""
    return np.repeat(np.arange(256, dtype=np.uint8), 256), np.tile(
        np.arange(256, dtype=np.uint8), 256
    )


def _word_inputs():
    rng = np.random.default_rng(11)
    words = rng.integers(0, 256, 4096).astype(np.uint8)
    words[:64] = np.repeat([0, 255], 32)
    return words, rng.integers(0, 256, 4096).astype(np.uint8)


def _pointer_inputs():
    return np.random.default_rng(12).integers(0, 256, 1000).astype(np.uint8)[1:]


def _tail_inputs():
    return np.arange(1, 20, dtype=np.float32)


# Formats that between them use every form that a product has; each takes seconds to compile.
FORMATS = ["q2_k", "iq4_nl", "tq1_0", "f16"]


def _product(name, n_tokens):
    rng = np.random.default_rng(5)
    fmt = format_named(name)
    raw = random_blocks(fmt, 13, 512, rng)
    x = rng.standard_normal((n_tokens, 512), dtype=np.float32)
    return matmul(fmt, interleaved(fmt, raw), 13, x)


def _write_results(path: str) -> None:
    """What this process's target makes of all inputs."""
    results: dict[str, np.ndarray] = {"target": np.array(target.TARGET), "bias": np.array(BIAS)}

    unsigned, signed, b, accumulators = _dot_inputs()
    dots = np.empty((2, len(b), 8), np.int32)
    _dots(
        unsigned.ravel(), signed.ravel(), b.ravel(), accumulators, dots[0].ravel(), dots[1].ravel()
    )
    results["dot_unsigned"], results["dot_biased"] = dots

    patterns = np.arange(65536).astype(np.uint16)
    wide = np.empty((3, 65536), np.float32)
    powers = np.empty(256, np.float32)
    _widen(patterns, patterns.view(np.uint8), *wide, powers)
    results |= {"widened": wide, "powers": powers}

    floats = _half_inputs()
    results["halves"] = np.empty(len(floats), np.uint16)
    _narrow(floats, results["halves"])

    x = _exp_inputs()
    results["exp"], results["silu"] = np.empty_like(x), np.empty_like(x)
    _functions(x, results["exp"], results["silu"])
    results["clamped_exp"], unused = np.empty((2, 8), np.float32)
    edges = np.array([-np.inf, -1e30, -88, -87, 88, 89, 1e30, np.inf], np.float32)
    _functions(edges, results["clamped_exp"], unused)

    a, y = _lane_inputs()
    out = np.empty((4, len(a)), np.float32)
    sums, largest = np.empty((2, len(a) // 8), np.float32)
    int_sums, low_bytes = np.empty(len(a) // 8, np.int32), np.empty(len(a), np.int8)
    _lanes(a, y, out, sums, largest, int_sums, low_bytes)
    results |= {"lanes": out, "sums": sums, "largest": largest}
    results |= {"int_sums": int_sums, "low_bytes": low_bytes}

    byte_a, byte_b = _byte_inputs()
    results["bytes"] = np.empty((13, len(byte_a)), np.uint8)
    _bytes(byte_a, byte_b, results["bytes"])

    fields = np.empty((240, 256), np.uint8)
    n_fields = _bit_fields(np.arange(256, dtype=np.uint8), fields)
    results["bit_fields"] = fields[:n_fields]

    words, added = _word_inputs()
    sums = np.empty((4, len(words)), np.uint8)
    wide, shifted = (
        np.empty((3, len(words) // 4), np.int32),
        np.empty((2, len(words) // 4), np.int32),
    )
    _words(words, added, sums, wide, shifted)
    results |= {"sums_where_set": sums, "wide": wide, "shifted": shifted}

    source = _pointer_inputs()
    interleaved_bytes = np.full((2, 130), 77, np.uint8)
    copied, on_stack = np.full(51, 77, np.uint8), np.empty(192, np.uint8)
    fours = np.empty(256, np.int8)
    misaligned = _pointers(source, 101, fours, *interleaved_bytes, copied, on_stack)
    results |= {"interleaved": interleaved_bytes, "copied": copied, "on_stack": on_stack}
    results |= {"fours": fours, "misaligned": np.array(misaligned)}

    loaded, stored = np.empty(88, np.float32), np.full(140, 77, np.float32)
    lanes = np.empty(72, np.float32)
    _tails(_tail_inputs(), loaded, stored, lanes)
    results |= {"loaded": loaded, "stored": stored, "single_lanes": lanes}

    for name in FORMATS:
        for n_tokens in (1, 3):
            results[f"{name} {n_tokens}"] = _product(name, n_tokens)
    np.savez(path, **results)


if __name__ == "__main__":
    _write_results(sys.argv[1])


# An x86-64 without AVX, FMA or F16C: what "generic" is for. numba compiles for it on request.
OLD_PROCESSOR = {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": ""}


# Not what this machine takes, and long to compile.
_OTHERS = [
    pytest.param(name, marks=pytest.mark.exhaustive)
    for name in ("generic", "generic, old processor")
]


@pytest.fixture(
    scope="module", params=[*(name for name in target.TARGETS if name != "generic"), *_OTHERS]
)
def results(request, tmp_path_factory):
    """What one target gave, as a dict of arrays."""
    name = request.param.split(",")[0]
    environment = {"Q4RUN_SIMD": name}
    if request.param.endswith("old processor"):
        environment |= OLD_PROCESSOR
        if "avx2" not in target.available_targets():
            pytest.skip("this machine is no newer x86-64 itself")
    if name not in target.available_targets():
        pytest.skip(f"this machine does not run {name}")
    path = tmp_path_factory.mktemp("simd") / "results.npz"
    subprocess.run(
        [sys.executable, __file__, str(path)],
        env=script_environment(environment),
        check=True,
        timeout=300,
    )
    with np.load(path) as file:
        results = dict(file)
    assert str(results["target"]) == name
    return results


def _ulps(got, exact):
    """Errors of float32 ``got`` in units of the last place of the float64 ``exact``."""
    unit = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    return np.abs(got.astype(np.float64) - exact) / unit


def test_dots_are_exact_for_all_the_contract_allows(results):
    unsigned, signed, b, accumulators = _dot_inputs()
    for name, a, bias in (
        ("dot_unsigned", unsigned, 0),
        ("dot_biased", signed, int(results["bias"])),
    ):
        products = ((a.astype(np.int64) + bias) * b).reshape(-1, 8, 4).sum(axis=2)
        expected = (accumulators[:, None] + products).astype(np.int32)  # wraps as the hardware
        np.testing.assert_array_equal(results[name], expected)


def test_every_half_and_bfloat_widens_exactly(results):
    patterns = np.arange(65536).astype(np.uint16)
    halves, scalar_halves, bfloats = results["widened"]
    for got in (halves, scalar_halves):
        np.testing.assert_array_equal(got, patterns.view(np.float16).astype(np.float32))
        signs = np.signbit(got[~np.isnan(got)])
        np.testing.assert_array_equal(signs, (patterns >= 0x8000)[~np.isnan(got)])
    expected = patterns.astype(np.uint32) << 16
    np.testing.assert_array_equal(bfloats.view(np.uint32), expected)


def test_powers_of_two_down_to_subnormal_ones(results):
    expected = np.ldexp(np.float32(1), np.arange(256) - 128)
    np.testing.assert_array_equal(results["powers"], expected)
    assert (results["powers"] > 0).all()


def test_floats_round_to_halves_as_in_numpy(results):
    floats = _half_inputs()
    with np.errstate(over="ignore"):
        expected = floats.astype(np.float16)
    got = results["halves"].view(np.float16)
    is_nan = np.isnan(floats)
    assert np.isnan(got[is_nan]).all()
    np.testing.assert_array_equal(got[~is_nan].view(np.uint16), expected[~is_nan].view(np.uint16))


def test_exp_keeps_its_promise(results):
    x = _exp_inputs()
    errors = _ulps(results["exp"], np.exp(x.astype(np.float64)))
    print(f"exp: at most {errors.max():.3f} ulp, {errors.mean():.3f} on average")
    assert errors.max() <= EXP_ULPS
    assert results["exp"][x == 0].tolist() == [1.0] * np.count_nonzero(x == 0)
    low, high = np.exp(np.array([-87.0, 88.0]))
    np.testing.assert_allclose(results["clamped_exp"], [low] * 4 + [high] * 4, rtol=1e-6)


def test_silu(results):
    x = _exp_inputs().astype(np.float64)
    errors = _ulps(results["silu"], x / (1 + np.exp(-x)))
    print(f"silu: at most {errors.max():.3f} ulp, {errors.mean():.3f} on average")
    assert errors.max() <= SILU_ULPS


def test_operations_on_lanes(results):
    x, y = _lane_inputs()
    rounded = np.rint(x).astype(np.int32)
    largest, smallest, quotient, shifted = results["lanes"]
    np.testing.assert_array_equal(largest, np.maximum(x, y))
    np.testing.assert_array_equal(smallest, np.minimum(x, y))
    np.testing.assert_array_equal(quotient, x / y)
    np.testing.assert_array_equal(shifted, (8 * rounded + 5).astype(np.float32))
    np.testing.assert_array_equal(
        results["low_bytes"], (rounded & 255).astype(np.uint8).view(np.int8)
    )


def test_reductions(results):
    x, _ = _lane_inputs()
    a = x.reshape(-1, 8)
    fours = a[:, :4] + a[:, 4:]
    twos = fours[:, :2] + fours[:, 2:]
    np.testing.assert_array_equal(results["sums"], twos[:, 0] + twos[:, 1])
    np.testing.assert_array_equal(results["largest"], a.max(axis=1))
    np.testing.assert_array_equal(results["int_sums"], np.rint(a).astype(np.int32).sum(axis=1))


def test_operations_on_bytes(results):
    a, b = _byte_inputs()
    mixed, looked_up, same, *digits = results["bytes"]
    np.testing.assert_array_equal(mixed, a & 240 | b >> 4)
    table = np.array([value & 255 for value in TABLE], np.uint8)
    np.testing.assert_array_equal(looked_up, table[a & 15])
    np.testing.assert_array_equal(same, b)
    for i, power in enumerate(POWERS):
        expected = (a * power % 256) * 3 >> 8
        np.testing.assert_array_equal(digits[i], expected)
        np.testing.assert_array_equal(digits[5 + i], expected)


def test_every_bit_field(results):
    a = np.arange(256)
    expected = []
    for shift in range(8):
        for width in range(1, 9 - shift):
            field = a >> shift & (1 << width) - 1
            expected += [field] + [field << place for place in range(9 - width)]
    np.testing.assert_array_equal(results["bit_fields"], expected)


def test_bytes_and_words(results):
    words, added = _word_inputs()
    bits = np.unpackbits(words, bitorder="little").reshape(-1, 32)
    for got, first, value in zip(
        results["sums_where_set"], (0, 4, 20, 28), (16, 4, 1, 255), strict=True
    ):
        is_set = bits[:, first : first + 4].ravel()
        np.testing.assert_array_equal(got, added + is_set * np.uint8(value))
    groups = words.reshape(-1, 32)
    unsigned, signed, pairs = results["wide"]
    np.testing.assert_array_equal(unsigned, groups[:, :8].ravel())
    np.testing.assert_array_equal(signed, groups[:, :8].ravel().view(np.int8))
    np.testing.assert_array_equal(pairs, groups[:, :16].ravel().view(np.uint16))
    right, left = results["shifted"].view(np.uint32)
    np.testing.assert_array_equal(right, words.view(np.uint32) >> 9)
    np.testing.assert_array_equal(left, words.view(np.uint32) << 5 | 3)


def test_what_takes_addresses(results):
    source = _pointer_inputs()
    rows = np.stack([source[3 + 101 * row :][:16] for row in range(8)])
    for got, unit in zip(results["interleaved"], (4, 2), strict=True):
        assert (got[[0, -1]] == 77).all()
        expected = rows.reshape(8, 16 // unit, unit).swapaxes(0, 1)
        np.testing.assert_array_equal(got[1:-1], expected.ravel())
    np.testing.assert_array_equal(results["copied"], [77, *source[2:51], 77])
    np.testing.assert_array_equal(results["on_stack"], source[:192])
    assert results["misaligned"] == 0
    fours = results["fours"].view(np.uint8).reshape(8, 8, 4)
    for i in range(8):
        np.testing.assert_array_equal(fours[i], np.tile(source[i : i + 4], (8, 1)))


def test_tails(results):
    x = _tail_inputs()
    for n in range(11):
        some = min(n, 8)
        expected = np.concatenate([x[3 : 3 + some], np.zeros(8 - some)])
        np.testing.assert_array_equal(results["loaded"][8 * n :][:8], expected)
        expected = np.concatenate([[77, 77], x[3 : 3 + some], np.full(10 - some, 77)])
        np.testing.assert_array_equal(results["stored"][12 * n :][:12], expected)
    np.testing.assert_array_equal(results["single_lanes"][:8], x[1:9])
    expected = np.where(np.eye(8), x[0], 1)
    np.testing.assert_array_equal(results["single_lanes"][8:].reshape(8, 8), expected)


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("n_tokens", [1, 3])
def test_products_are_the_same_bits_on_every_target(results, name, n_tokens):
    """The order of all sums is the kernels', not the machine's."""
    np.testing.assert_array_equal(results[f"{name} {n_tokens}"], _product(name, n_tokens))


def test_strided_arrays_are_refused():
    """Loads count flat elements: strides would be ignored silently."""
    x = np.zeros((8, 2), np.float32)[:, 0]
    with pytest.raises(TypingError):
        _functions(x, np.empty(8, np.float32), np.empty(8, np.float32))
