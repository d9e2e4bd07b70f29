"""The arithmetic on SIMD vectors that the kernels are written in.

Each operation is a numba intrinsic that becomes one or a few LLVM instructions.
"""

from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from q4run.kernels.simd import emit, lowering
from q4run.kernels.simd.vector import Vector, f32x8, i8x32, i32x8, llvm_vector, u8x32


def _binary(float_op: str, int_op: str, doc: str) -> Any:
    @intrinsic
    def operation(typing_context, a, b):
        if not isinstance(a, Vector) or a != b:
            return None
        name = float_op if isinstance(a.scalar, types.Float) else int_op
        if not name:
            return None

        def codegen(context, builder, signature, args):
            return getattr(builder, name)(args[0], args[1])

        return a(a, b), codegen

    operation.__doc__ = doc
    return operation


add = _binary("fadd", "add", "Lane-wise sum.")
sub = _binary("fsub", "sub", "Lane-wise difference.")
mul = _binary("fmul", "mul", "Lane-wise product (integers wrap).")
divide = _binary("fdiv", "", "Lane-wise quotient of floats.")
bit_and = _binary("", "and_", "Lane-wise bitwise and.")
bit_or = _binary("", "or_", "Lane-wise bitwise or.")


@intrinsic
def splat(typing_context, vector_type, value):
    """Every lane of a new ``vector_type`` set to ``value``."""
    vector = _as_vector_type(vector_type)

    def codegen(context, builder, signature, args):
        scalar = context.cast(builder, args[1], signature.args[1], vector.scalar)
        return emit.splat(builder, scalar, vector.lanes)

    return vector(vector_type, value), codegen


def _as_vector_type(reference: Any) -> Vector:
    """The vector type behind a global such as ``f32x8`` named in kernel code."""
    return reference.instance_type


@intrinsic
def shift_right(typing_context, vector, count):
    """Lane-wise logical shift right by the same count."""
    if not isinstance(vector, Vector):
        return None

    def codegen(context, builder, signature, args):
        scalar = context.cast(builder, args[1], signature.args[1], vector.scalar)
        return builder.lshr(args[0], emit.splat(builder, scalar, vector.lanes))

    return vector(vector, count), codegen


@intrinsic
def fma(typing_context, a, b, c):
    """``a * b + c`` on f32x8, rounded once."""

    def codegen(context, builder, signature, args):
        return emit.call(builder, "llvm.fma.v8f32", llvm_vector(f32x8), args)

    return f32x8(f32x8, f32x8, f32x8), codegen


def _unary(name: str, doc: str) -> Any:
    @intrinsic
    def operation(typing_context, a):
        if a != f32x8:
            return None

        def codegen(context, builder, signature, args):
            return emit.call(builder, name, llvm_vector(f32x8), args)

        return f32x8(f32x8), codegen

    operation.__doc__ = doc
    return operation


absolute = _unary("llvm.fabs.v8f32", "Lane-wise absolute value of f32x8.")
round_even = _unary("llvm.rint.v8f32", "Lane-wise rounding of f32x8 to the nearest even integer.")


@intrinsic
def maximum(typing_context, a, b):
    """Lane-wise larger value of f32x8; where one is NaN, the other."""

    def codegen(context, builder, signature, args):
        return emit.call(builder, "llvm.maxnum.v8f32", llvm_vector(f32x8), args)

    return f32x8(f32x8, f32x8), codegen


@intrinsic
def minimum(typing_context, a, b):
    """Lane-wise smaller value of f32x8; where one is NaN, the other."""

    def codegen(context, builder, signature, args):
        return emit.call(builder, "llvm.minnum.v8f32", llvm_vector(f32x8), args)

    return f32x8(f32x8, f32x8), codegen


@intrinsic
def reduce_add(typing_context, a):
    """The sum of f32x8, always added in the same tree: ((0+4)+(2+6)) + ((1+5)+(3+7))."""

    def codegen(context, builder, signature, args):
        return emit.reduce(builder, args[0], builder.fadd)

    return types.float32(f32x8), codegen


@intrinsic
def reduce_max(typing_context, a):
    """The largest lane of f32x8."""

    def larger(builder):
        def combine(x, y):
            return emit.call(builder, f"llvm.maxnum.v{x.type.count}f32", x.type, [x, y])

        return combine

    def codegen(context, builder, signature, args):
        return emit.reduce(builder, args[0], larger(builder))

    return types.float32(f32x8), codegen


@intrinsic
def reduce_add_int(typing_context, a):
    """The sum of i32x8."""

    def codegen(context, builder, signature, args):
        return emit.reduce(builder, args[0], builder.add)

    return types.int32(i32x8), codegen


@intrinsic
def shift_left(typing_context, a, count):
    """Lane-wise shift left of i32x8 by the same count."""

    def codegen(context, builder, signature, args):
        scalar = context.cast(builder, args[1], signature.args[1], types.int32)
        return builder.shl(args[0], emit.splat(builder, scalar, 8))

    return i32x8(i32x8, count), codegen


@intrinsic
def dot_unsigned(typing_context, accumulator, a, b):
    """``accumulator`` (i32x8) plus, per lane, four products of u8x32 ``a`` and i8x32 ``b``.

    ``a`` must stay below 128 and ``b`` above -128: the AVX2 form adds pairs in 16 bits.
    """

    def codegen(context, builder, signature, args):
        return lowering.dot_unsigned(builder, *args)

    return i32x8(i32x8, u8x32, i8x32), codegen


@intrinsic
def dot_signed(typing_context, accumulator, a, b):
    """``accumulator`` (i32x8) plus, per lane, four products of i8x32 ``a`` and i8x32 ``b``.

    ``b`` must stay above -128.
    """

    def codegen(context, builder, signature, args):
        return lowering.dot_signed(builder, *args)

    return i32x8(i32x8, i8x32, i8x32), codegen


@intrinsic
def mul_high(typing_context, a, b):
    """The upper byte of each 16-bit product of two u8x32."""

    def codegen(context, builder, signature, args):
        wide = ir.VectorType(ir.IntType(16), 32)
        product = builder.mul(builder.zext(args[0], wide), builder.zext(args[1], wide))
        return builder.trunc(builder.lshr(product, wide([8] * 32)), llvm_vector(u8x32))

    return u8x32(u8x32, u8x32), codegen
