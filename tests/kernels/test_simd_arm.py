"""Arm, which these tests cannot run on everywhere: the code LLVM makes of it, and its meaning."""

import ctypes
import json
import os
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
from llvmlite import binding, ir

from q4run.kernels.simd import generic, i8mm, neon
from q4run.kernels.simd.emit import I8, I32, vector


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


@pytest.mark.parametrize("operation", ["dot_biased", "dot_unsigned"])
@pytest.mark.parametrize(("triple", "cpu"), ARM_MACHINES)
def test_neon_dots_become_sdot(machines, triple, cpu, operation):
    instructions = _instructions(_dot_module(neon, operation), machines(triple, cpu))
    assert [name.split(".")[0] for name in instructions].count("sdot") == 2, instructions
    assert not CALLS & set(instructions)


MATRIX_MACHINES = [("arm64-apple-macos", "apple-m2"), ("aarch64-linux-gnu", "neoverse-v1")]


def _matrix_module():
    """A module with ``dot(accumulator, a, b, out)``: pointers to 8 i32, 32 i8, 16 i8, 8 i32."""
    module = ir.Module()
    pointers = [ir.PointerType(vector(*kind)) for kind in ((I32, 8), (I8, 32), (I8, 16), (I32, 8))]
    function, builder = _function(module, "dot", ir.VoidType(), *pointers)
    operands = [builder.load(pointer, align=1) for pointer in function.args[:3]]
    builder.store(i8mm.dot_matrix(builder, *operands), function.args[3], align=1)
    builder.ret_void()
    return module


@pytest.mark.parametrize(("triple", "cpu"), MATRIX_MACHINES)
def test_matrix_products_become_smmla(machines, triple, cpu):
    instructions = _instructions(_matrix_module(), machines(triple, cpu))
    assert [name.split(".")[0] for name in instructions].count("smmla") == 2, instructions
    assert not CALLS & set(instructions)


def test_neon_converts_halves_in_hardware(machines):
    instructions = _instructions(
        _conversion_module(neon), machines("arm64-apple-macos", "apple-m1")
    )
    names = {name.split(".")[0] for name in instructions}
    assert {"fcvtl", "fcvtl2", "fcvtn", "fcvtn2"} <= names, names
    assert not CALLS & names


def _look_up_module(lowering, table):
    """A module with ``look_up(indices, out)``: pointers to 32 bytes each."""
    module = ir.Module()
    pointer = ir.PointerType(vector(I8, 32))
    function, builder = _function(module, "look_up", ir.VoidType(), pointer, pointer)
    result = lowering.look_up(builder, table, builder.load(function.args[0], align=1))
    builder.store(result, function.args[1], align=1)
    builder.ret_void()
    return module


def test_neon_looks_up_in_hardware(machines):
    module = _look_up_module(neon, range(16))
    instructions = _instructions(module, machines("arm64-apple-macos", "apple-m1"))
    assert [name.split(".")[0] for name in instructions].count("tbl") == 2, instructions
    assert not CALLS & set(instructions)


OTHER_MACHINES = [*ARM_MACHINES, ("x86_64-linux-gnu", "x86-64"), ("aarch64-linux-gnu", "generic")]


@pytest.mark.parametrize(("triple", "cpu"), OTHER_MACHINES)
def test_generic_code_compiles_for_other_machines(machines, triple, cpu):
    machine = machines(triple, cpu)
    for module in (
        _dot_module(generic, "dot_biased"),
        _conversion_module(generic),
        _look_up_module(generic, range(16)),
    ):
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


def _define_smmla(module):
    """The meaning of Arm's ``smmla``: lane 2 i + j adds row i of 8 values times row j of 8."""
    i32x4, i8x16 = vector(I32, 4), vector(I8, 16)
    function, builder = _function(module, "smmla", i32x4, i32x4, i8x16, i8x16)
    total = function.args[0]
    a, b = (builder.sext(arg, vector(I32, 16)) for arg in function.args[1:])
    for lane in range(4):
        increased = builder.extract_element(total, I32(lane))
        for i in range(8):
            left = builder.extract_element(a, I32(8 * (lane // 2) + i))
            right = builder.extract_element(b, I32(8 * (lane % 2) + i))
            increased = builder.add(increased, builder.mul(left, right))
        total = builder.insert_element(total, increased, I32(lane))
    builder.ret(total)


def _calling_own(module, name):
    """The module's code with an instruction replaced by the function that stands for it."""
    intrinsic = f"llvm.aarch64.neon.{name}.v4i32.v16i8"
    declaration = f'declare <4 x i32> @"{intrinsic}"'
    lines = [line for line in str(module).splitlines() if not line.startswith(declaration)]
    llvm_ir = "\n".join(lines).replace(intrinsic, name)
    assert llvm_ir.count(f'call <4 x i32> @"{name}"') == 2
    return llvm_ir


def test_matrix_products_have_the_right_lanes(run_dot):
    """On any machine, like the dots below."""
    rng = np.random.default_rng(7)
    module = _matrix_module()
    _define_smmla(module)
    a, b = (rng.integers(-128, 128, n).astype(np.int8) for n in (32, 16))
    accumulator = rng.integers(-1000, 1000, 8).astype(np.int32)
    wide = a.reshape(4, 8).astype(np.int32) @ b.reshape(2, 8).T.astype(np.int32)
    got = run_dot(_calling_own(module, "smmla"), accumulator, a, b)
    np.testing.assert_array_equal(got, accumulator + wide.ravel())


@pytest.mark.parametrize("operation", ["dot_biased", "dot_unsigned"])
def test_neon_dots_have_the_right_lanes(run_dot, operation):
    """On any machine: with ``sdot`` itself replaced by a function of the same meaning."""
    rng = np.random.default_rng(6)
    module = _dot_module(neon, operation)
    _define_sdot(module)
    llvm_ir = _calling_own(module, "sdot")
    a = rng.integers(-128 if operation == "dot_biased" else 0, 128, 32).astype(np.int8)
    b = rng.integers(-127, 128, 32).astype(np.int8)
    accumulator = rng.integers(-1000, 1000, 8).astype(np.int32)
    expected = accumulator + (a.astype(np.int32) * b).reshape(8, 4).sum(axis=1)
    np.testing.assert_array_equal(run_dot(llvm_ir, accumulator, a, b), expected)


# Whole products: q4run in a process that takes itself for an Arm machine, its LLVM code compiled
# for one. Numba's own code generator, which would meet instructions that this machine lacks, is
# kept from running.

_PRODUCTS = """
import json, platform, sys
from numba.core import codegen

from llvmlite import binding

features = binding.get_host_cpu_features() | {"dotprod": True, "i8mm": True}
real = platform.machine, sys.platform, binding.get_host_cpu_features
platform.machine, sys.platform = lambda: "arm64", "darwin"
binding.get_host_cpu_features = lambda: features
from q4run.kernels.compiling.target import TARGET
platform.machine, sys.platform, binding.get_host_cpu_features = real
assert TARGET == sys.argv[1], TARGET

codegen.JITCPUCodegen._add_module = lambda self, module: None
codegen.JITCPUCodegen.set_env = lambda self, name, env: None
codegen.JITCodeLibrary.get_pointer_to_function = lambda self, name: self._ensure_finalized() or 0
from q4run.kernels.formats import find_format_named
from q4run.kernels.products.multiply import _int8_function

modules = {name: _int8_function(find_format_named(name)).inspect_llvm() for name in sys.argv[2:]}
print(json.dumps(modules))
"""
DOT_PRODUCTS = ["q4_0", "q8_0", "q4_k"]


@pytest.fixture(scope="module")
def products(tmp_path_factory):
    """LLVM's code of the products of some formats for a target, by name."""

    @cache
    def make(target):
        not_a_folder = tmp_path_factory.mktemp(target) / "file"
        not_a_folder.write_text("nothing of this may be kept")
        run = subprocess.run(
            [sys.executable, "-c", _PRODUCTS, target, *DOT_PRODUCTS],
            env=os.environ | {"Q4RUN_SIMD": target, "Q4RUN_CACHE": str(not_a_folder)},
            capture_output=True,
            text=True,
            timeout=500,
        )
        assert run.returncode == 0, run.stderr
        return json.loads(run.stdout)

    return make


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", DOT_PRODUCTS)
@pytest.mark.parametrize(
    ("target", "cpu", "n_sdot", "n_smmla"),
    # A tile of 16 rows by 4 tokens and one chunk of 4 columns is 16 dots, of 8 columns 16 matrix
    # products; a strip times one token is dots always.
    [("neon", "apple-m1", 16 + 16, 0), ("i8mm", "apple-m2", 16, 16)],
)
def test_products_on_a_mac(machines, products, target, cpu, n_sdot, n_smmla, name):
    module = binding.parse_assembly(products(target)[name])
    module.triple, module.data_layout = "arm64-apple-macos", ""
    machine = machines("arm64-apple-macos", cpu)
    lines = [line.split() for line in machine.emit_assembly(module).splitlines()]
    instructions = [words[0].split(".")[0] for words in lines if words and words[0][0].isalpha()]
    assert instructions.count("sdot") >= n_sdot
    assert instructions.count("smmla") >= n_smmla
    assert "bl" not in instructions
