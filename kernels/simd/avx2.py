"""AVX2 with F16C: integer dots by ``vpmaddubsw`` and ``vpmaddwd``."""

from collections.abc import Sequence

from llvmlite import ir

from q4run.kernels.simd.emit import I8, I16, I32, call, vector
from q4run.kernels.simd.hardware_half import float_to_half, half_to_float

__all__ = [
    "BIAS",
    "dot_biased",
    "dot_unsigned",
    "float_to_half",
    "half_to_float",
    "look_up",
    "multiply_pairs",
    "sum_pairs",
]

# Adding pairs in 16 bits leaves no room for unsigned bytes above 127.
BIAS = 0


def dot_unsigned(
    builder: ir.IRBuilder, accumulator: ir.Value, a: ir.Value, b: ir.Value
) -> ir.Value:
    return builder.add(accumulator, sum_pairs(builder, multiply_pairs(builder, a, b)))


def multiply_pairs(builder: ir.IRBuilder, a: ir.Value, b: ir.Value) -> ir.Value:
    """Per 16-bit lane, the sum of two products of unsigned bytes and signed ones."""
    return call(builder, "llvm.x86.avx2.pmadd.ub.sw", vector(I16, 16), [a, b])


def sum_pairs(builder: ir.IRBuilder, pairs: ir.Value) -> ir.Value:
    """Per 32-bit lane, the sum of its two 16-bit lanes."""
    ones = ir.Constant(vector(I16, 16), [1] * 16)
    return call(builder, "llvm.x86.avx2.pmadd.wd", vector(I32, 8), [pairs, ones])


def dot_biased(builder: ir.IRBuilder, accumulator: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
    # ``|a|`` and ``b`` with the sign of ``a`` on it: the product is the same, ``|a|`` unsigned.
    no_poison = ir.Constant(ir.IntType(1), 0)
    magnitude = call(builder, "llvm.abs.v32i8", vector(I8, 32), [a, no_poison])
    signed = call(builder, "llvm.x86.avx2.psign.b", vector(I8, 32), [b, a])
    return dot_unsigned(builder, accumulator, magnitude, signed)


def look_up(builder: ir.IRBuilder, table: Sequence[int], indices: ir.Value) -> ir.Value:
    # ``vpshufb`` looks up within each 128-bit half.
    both = ir.Constant(vector(I8, 32), [*table, *table])
    return call(builder, "llvm.x86.avx2.pshuf.b", vector(I8, 32), [both, indices])
