"""The SIMD layer: every target of this machine against numpy, Arm through LLVM alone.

The targets differ by an environment variable that is read at import, so each runs in a process of
its own: this file, as a script, writes what the operations gave to an npz file.
"""

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from llvmlite import binding, ir
from numba.core.errors import TypingError

from q4run.kernels import compile as kernel_compile
from q4run.kernels.compile import kernel
from q4run.kernels.formats import find_format_named
from q4run.kernels.matmul import matmul
from q4run.kernels.simd import generic, neon, target
from q4run.kernels.simd.casts import (
    as_signed,
    bfloats_to_float,
    concat,
    floats_to_half,
    halves_to_float,
    to_float,
    to_int,
)
from q4run.kernels.simd.emit import I8, I32, vector
from q4run.kernels.simd.math import exp, silu
from q4run.kernels.simd.memory import (
    load_bfloat,
    load_f32x8,
    load_half,
    load_i8x32,
    load_repeated,
    load_u8x16,
    load_u8x32,
    load_u16x8,
    store,
    store_low_bytes,
)
from q4run.kernels.simd.ops import (
    add,
    bit_and,
    bit_or,
    divide,
    dot_signed,
    dot_unsigned,
    maximum,
    minimum,
    mul_high,
    reduce_add,
    reduce_add_int,
    reduce_max,
    round_even,
    shift_left,
    shift_right,
    splat,
)
from q4run.kernels.simd.vector import i32x8, u8x32

# What the exponential promises in its docstring, and what silu built on it may lose.
EXP_ULPS = 2.0
SILU_ULPS = 3.0


@kernel()
def _dots(unsigned, signed, b, accumulators, out_unsigned, out_signed):
    for i in range(len(accumulators)):
        x = load_i8x32(b, 32 * i)
        start = splat(i32x8, accumulators[i])
        store(out_unsigned, 8 * i, dot_unsigned(start, load_u8x32(unsigned, 32 * i), x))
        store(out_signed, 8 * i, dot_signed(start, load_i8x32(signed, 32 * i), x))


@kernel()
def _widen(patterns, pattern_bytes, halves, scalar_halves, bfloats, scalar_bfloats):
    for i in range(0, len(patterns), 8):
        store(halves, i, halves_to_float(load_u16x8(patterns, i)))
        store(bfloats, i, bfloats_to_float(load_u16x8(patterns, i)))
    for i in range(len(patterns)):
        scalar_halves[i] = load_half(pattern_bytes, 2 * i)
        scalar_bfloats[i] = load_bfloat(pattern_bytes, 2 * i)


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
        store(out[0], i, mul_high(x, y))
        store(out[1], i, bit_or(bit_and(x, splat(u8x32, 240)), shift_right(y, 4)))
        store(out[2], i, as_signed(concat(load_repeated(a, i), load_u8x16(b, i))))


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


def _matmul_inputs(name):
    rng = np.random.default_rng(5)
    fmt = find_format_named(name)
    assert fmt is not None
    weights = fmt.quantize(rng.standard_normal((5, 512), dtype=np.float32))
    return fmt, weights, rng.standard_normal((3, 512), dtype=np.float32)


MATMUL_FORMATS = ("q8_0", "q4_0", "tq1_0", "f16")


def _write_results(path: str) -> None:
    """What this process's target makes of all inputs."""
    results: dict[str, np.ndarray] = {"target": np.array(target.TARGET)}

    unsigned, signed, b, accumulators = _dot_inputs()
    dots = np.empty((2, len(b), 8), np.int32)
    _dots(
        unsigned.ravel(), signed.ravel(), b.ravel(), accumulators, dots[0].ravel(), dots[1].ravel()
    )
    results["dot_unsigned"], results["dot_signed"] = dots

    patterns = np.arange(65536).astype(np.uint16)
    wide = np.empty((4, 65536), np.float32)
    _widen(patterns, patterns.view(np.uint8), *wide)
    results["widened"] = wide

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
    results["bytes"] = np.empty((3, len(byte_a)), np.uint8)
    _bytes(byte_a, byte_b, results["bytes"])

    for name in MATMUL_FORMATS:
        results[f"matmul_{name}"] = matmul(*_matmul_inputs(name))
    np.savez(path, **results)


if __name__ == "__main__":
    _write_results(sys.argv[1])


# An x86-64 without AVX, FMA or F16C: what "generic" is for. numba compiles for it on request.
OLD_PROCESSOR = {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": ""}


@pytest.fixture(scope="module", params=["avx512vnni", "avx2", "generic", "generic, old processor"])
def results(request, tmp_path_factory):
    """What one target gave, as a dict of arrays."""
    name = request.param.split(",")[0]
    environment = os.environ | {"Q4RUN_SIMD": name}
    if request.param.endswith("old processor"):
        environment |= OLD_PROCESSOR
        if "avx2" not in target.available_targets():
            pytest.skip("this machine is no newer x86-64 itself")
    if name not in target.available_targets():
        pytest.skip(f"this machine does not run {name}")
    path = tmp_path_factory.mktemp("simd") / "results.npz"
    subprocess.run([sys.executable, __file__, str(path)], env=environment, check=True, timeout=300)
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
    for name, a in (("dot_unsigned", unsigned), ("dot_signed", signed)):
        products = (a.astype(np.int64) * b).reshape(-1, 8, 4).sum(axis=2)
        expected = (accumulators[:, None] + products).astype(np.int32)  # wraps as the hardware
        np.testing.assert_array_equal(results[name], expected)


def test_every_half_and_bfloat_widens_exactly(results):
    patterns = np.arange(65536).astype(np.uint16)
    halves, scalar_halves, bfloats, scalar_bfloats = results["widened"]
    for got in (halves, scalar_halves):
        np.testing.assert_array_equal(got, patterns.view(np.float16).astype(np.float32))
        signs = np.signbit(got[~np.isnan(got)])
        np.testing.assert_array_equal(signs, (patterns >= 0x8000)[~np.isnan(got)])
    for got in (bfloats, scalar_bfloats):
        expected = patterns.astype(np.uint32) << 16
        np.testing.assert_array_equal(got.view(np.uint32), expected)


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
    high, mixed, joined = results["bytes"]
    np.testing.assert_array_equal(high, a.astype(np.uint16) * b >> 8)
    np.testing.assert_array_equal(mixed, a & 240 | b >> 4)
    repeated = np.tile(a.reshape(-1, 32)[:, :4], 4)
    expected = np.concatenate([repeated, b.reshape(-1, 32)[:, :16]], axis=1)
    np.testing.assert_array_equal(joined, expected.ravel())


@pytest.mark.parametrize("name", MATMUL_FORMATS)
def test_products_are_the_same_bits_on_every_target(results, name):
    """The order of all sums is the kernels', not the machine's."""
    np.testing.assert_array_equal(results[f"matmul_{name}"], matmul(*_matmul_inputs(name)))


def test_strided_arrays_are_refused():
    """Loads count flat elements: strides would be ignored silently."""
    x = np.zeros((8, 2), np.float32)[:, 0]
    with pytest.raises(TypingError):
        _functions(x, np.empty(8, np.float32), np.empty(8, np.float32))


# Arm, which these tests cannot run on everywhere: the code LLVM makes of it, and its meaning.


@pytest.fixture(scope="module")
def machines():
    """LLVM's code generator for a triple and a processor, by name."""
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()

    def make(triple, cpu):
        try:
            return binding.Target.from_triple(triple).create_target_machine(cpu=cpu, opt=3)
        except RuntimeError as error:
            pytest.skip(f"this LLVM cannot generate code for {triple}: {error}")

    return make


def _function(module, name, result, *parameters):
    function = ir.Function(module, ir.FunctionType(result, parameters), name)
    return function, ir.IRBuilder(function.append_basic_block())


def _dot_module(lowering, operation):
    """A module with ``dot(accumulator, a, b, out)``: pointers to 8 i32, 32 i8, 32 i8, 8 i32."""
    module = ir.Module()
    pointers = [ir.PointerType(vector(*kind)) for kind in ((I32, 8), (I8, 32), (I8, 32), (I32, 8))]
    function, builder = _function(module, "dot", ir.VoidType(), *pointers)
    operands = [builder.load(pointer, align=1) for pointer in function.args[:3]]
    result = getattr(lowering, operation)(builder, *operands)
    builder.store(result, function.args[3], align=1)
    builder.ret_void()
    return module


def _conversion_module(lowering):
    module = ir.Module()
    i16x8, f32x8_type = vector(ir.IntType(16), 8), vector(ir.FloatType(), 8)
    function, builder = _function(module, "widen", f32x8_type, i16x8)
    builder.ret(lowering.half_to_float(builder, function.args[0]))
    function, builder = _function(module, "narrow", i16x8, f32x8_type)
    builder.ret(lowering.float_to_half(builder, function.args[0]))
    return module


def _instructions(module, machine):
    """The mnemonics of the code that ``machine`` generates."""
    parsed = binding.parse_assembly(str(module))
    parsed.verify()
    lines = [line.split() for line in machine.emit_assembly(parsed).splitlines()]
    return [words[0] for words in lines if words and words[0][0].isalpha()]


CALLS = {"bl", "b", "call", "callq", "jmp"}  # to library functions, which may be missing


ARM_MACHINES = [("arm64-apple-macos", "apple-m1"), ("aarch64-linux-gnu", "neoverse-n1")]


@pytest.mark.parametrize("operation", ["dot_signed", "dot_unsigned"])
@pytest.mark.parametrize(("triple", "cpu"), ARM_MACHINES)
def test_neon_dots_become_sdot(machines, triple, cpu, operation):
    instructions = _instructions(_dot_module(neon, operation), machines(triple, cpu))
    assert [name.split(".")[0] for name in instructions].count("sdot") == 2, instructions
    assert not CALLS & set(instructions)


def test_neon_converts_halves_in_hardware(machines):
    instructions = _instructions(
        _conversion_module(neon), machines("arm64-apple-macos", "apple-m1")
    )
    names = {name.split(".")[0] for name in instructions}
    assert {"fcvtl", "fcvtl2", "fcvtn", "fcvtn2"} <= names, names
    assert not CALLS & names


OTHER_MACHINES = [*ARM_MACHINES, ("x86_64-linux-gnu", "x86-64"), ("aarch64-linux-gnu", "generic")]


@pytest.mark.parametrize(("triple", "cpu"), OTHER_MACHINES)
def test_generic_code_compiles_for_other_machines(machines, triple, cpu):
    machine = machines(triple, cpu)
    for module in (_dot_module(generic, "dot_signed"), _conversion_module(generic)):
        instructions = _instructions(module, machine)
        assert {"ret", "retq"} & set(instructions)
        assert not CALLS & set(instructions)


@pytest.fixture
def run_dot():
    """Compiles a module's ``dot`` for this machine and runs it on numpy arrays."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    engines = []

    def run(llvm_ir, accumulator, a, b):
        module = binding.parse_assembly(llvm_ir)
        module.verify()
        machine = binding.Target.from_default_triple().create_target_machine()
        engine = binding.create_mcjit_compiler(module, machine)
        engines.append(engine)
        engine.finalize_object()
        dot = ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 4)(engine.get_function_address("dot"))
        out = np.empty(8, np.int32)
        dot(*(array.ctypes.data for array in (accumulator, a, b, out)))
        return out

    yield run
    engines.clear()


def _define_sdot(module):
    """The meaning of Arm's ``sdot`` on 128 bits: lane i adds products 4i to 4i + 3."""
    i32x4, i8x16 = vector(I32, 4), vector(I8, 16)
    function, builder = _function(module, "sdot", i32x4, i32x4, i8x16, i8x16)
    total = function.args[0]
    a, b = (builder.sext(arg, vector(I32, 16)) for arg in function.args[1:])
    products = builder.mul(a, b)
    for i in range(16):
        lane = I32(i // 4)
        increased = builder.add(
            builder.extract_element(total, lane), builder.extract_element(products, I32(i))
        )
        total = builder.insert_element(total, increased, lane)
    builder.ret(total)


@pytest.mark.parametrize("operation", ["dot_signed", "dot_unsigned"])
def test_neon_dots_have_the_right_lanes(run_dot, operation):
    """On any machine: with ``sdot`` itself replaced by a function of the same meaning."""
    rng = np.random.default_rng(6)
    module = _dot_module(neon, operation)
    _define_sdot(module)
    declaration = 'declare <4 x i32> @"llvm.aarch64.neon.sdot.v4i32.v16i8"'
    lines = [line for line in str(module).splitlines() if not line.startswith(declaration)]
    llvm_ir = "\n".join(lines).replace("llvm.aarch64.neon.sdot.v4i32.v16i8", "sdot")
    assert llvm_ir.count('call <4 x i32> @"sdot"') == 2
    a = rng.integers(-128 if operation == "dot_signed" else 0, 128, 32).astype(np.int8)
    b = rng.integers(-127, 128, 32).astype(np.int8)
    accumulator = rng.integers(-1000, 1000, 8).astype(np.int32)
    expected = accumulator + (a.astype(np.int32) * b).reshape(8, 4).sum(axis=1)
    np.testing.assert_array_equal(run_dot(llvm_ir, accumulator, a, b), expected)


# Which target is chosen.

AVX2 = {"avx2": True, "fma": True, "f16c": True}


@pytest.mark.parametrize(
    ("machine", "platform", "features", "expected"),
    [
        ("x86_64", "linux", {}, ["generic"]),
        ("x86_64", "linux", {**AVX2, "f16c": False}, ["generic"]),
        ("x86_64", "linux", AVX2, ["avx2", "generic"]),
        ("AMD64", "linux", {**AVX2, "avx512vnni": True}, ["avx2", "generic"]),
        (
            "x86_64",
            "linux",
            {**AVX2, "avx512vnni": True, "avx512vl": True},
            ["avx512vnni", "avx2", "generic"],
        ),
        ("aarch64", "linux", {"neon": True}, ["generic"]),
        ("aarch64", "linux", {"dotprod": True}, ["neon", "generic"]),
        ("arm64", "darwin", {"dotprod": True}, ["neon", "generic"]),
        ("arm64", "darwin", None, ["neon", "generic"]),
        ("x86_64", "darwin", None, ["generic"]),
        ("riscv64", "linux", {}, ["generic"]),
    ],
)
def test_what_a_machine_can_run(monkeypatch, machine, platform, features, expected):
    def get_host_cpu_features():
        if features is None:  # what llvmlite does where LLVM cannot tell
            raise RuntimeError("failed to get host cpu features.")
        return features

    monkeypatch.setattr(target.platform, "machine", lambda: machine)
    monkeypatch.setattr(target.sys, "platform", platform)
    monkeypatch.setattr(target.binding, "get_host_cpu_features", get_host_cpu_features)
    assert target.available_targets() == expected


def test_the_best_target_is_taken_unless_another_is_named(monkeypatch):
    monkeypatch.delenv("Q4RUN_SIMD", raising=False)
    assert target._choose() == target.available_targets()[0]
    monkeypatch.setenv("Q4RUN_SIMD", "")
    assert target._choose() == target.available_targets()[0]
    monkeypatch.setenv("Q4RUN_SIMD", "generic")
    assert target._choose() == "generic"


def test_an_unknown_target_is_an_error_that_lists_the_known(monkeypatch):
    monkeypatch.setenv("Q4RUN_SIMD", "sse9")
    with pytest.raises(ImportError, match=r"Q4RUN_SIMD=sse9 .* avx512vnni, avx2, neon, generic"):
        target._choose()


def test_a_target_of_another_machine_is_an_error(monkeypatch):
    """Compiling for it would end the process inside LLVM."""
    monkeypatch.setattr(target, "available_targets", lambda: ["avx2", "generic"])
    monkeypatch.setenv("Q4RUN_SIMD", "neon")
    with pytest.raises(ImportError, match="cannot run that; it has avx2, generic"):
        target._choose()


# Where compiled kernels are kept.


def test_each_target_has_a_cache_of_its_own():
    assert kernel_compile.CACHE_FOLDER.name.endswith(f"-{target.TARGET}")
    assert kernel_compile.CACHE_FOLDER.parent.name == "kernels"


def test_the_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("Q4RUN_CACHE", str(tmp_path / "own"))
    assert kernel_compile._cache_root() == tmp_path / "own"
    monkeypatch.delenv("Q4RUN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert kernel_compile._cache_root() == tmp_path / "xdg" / "q4run"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert kernel_compile._cache_root() == Path.home() / ".cache" / "q4run"


def test_without_a_writable_cache_folder_kernels_still_compile(tmp_path):
    (tmp_path / "file").write_text("in the way")
    assert kernel_compile._can_write(tmp_path / "new" / "folder")
    assert not kernel_compile._can_write(tmp_path / "file" / "folder")
    code = (
        "import numpy as np\n"
        "from q4run.kernels.norm import rms_norm\n"
        "out = np.empty((1, 2), np.float32)\n"
        "rms_norm(np.ones((1, 2), np.float32), np.ones(2, np.float32), np.float32(0), out)\n"
        "print(out.tolist())\n"
    )
    environment = os.environ | {"Q4RUN_CACHE": str(tmp_path / "file")}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300
    )
    assert run.stdout == "[[1.0, 1.0]]\n", run.stderr
