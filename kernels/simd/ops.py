"""The operations on SIMD vectors that the kernels are written in.

Each is a numba intrinsic that becomes one or a few LLVM instructions. Loads and stores take any
alignment and check no bounds: the kernels' callers do.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from q4run.kernels.simd import emit, lowering
from q4run.kernels.simd.vector import (
    Vector,
    f32x8,
    i8x32,
    i32x8,
    llvm_vector,
    u8x16,
    u8x32,
    u16x8,
)


def _loader(result: Vector, array_dtype: types.Type, doc: str) -> Any:
    @intrinsic
    def load(typing_context, array, index):
        if not _is_flat(array) or array.dtype != array_dtype:
            return None

        def codegen(context, builder, signature, args):
            pointer = _pointer(context, builder, signature, args, llvm_vector(result))
            return builder.load(pointer, align=1)

        return result(array, types.intp), codegen

    load.__doc__ = doc
    return load


def _is_flat(array: Any) -> bool:
    """Whether flat indices are right for it: strides are not looked at."""
    return isinstance(array, types.Array) and array.layout == "C"


def _pointer(context: Any, builder: Any, signature: Any, args: Any, pointee: ir.Type) -> Any:
    """The address of ``array[index]``, the first two arguments, as a pointer to ``pointee``."""
    array = cgutils.create_struct_proxy(signature.args[0])(context, builder, args[0])
    return builder.bitcast(builder.gep(array.data, [args[1]]), ir.PointerType(pointee))


load_u8x32 = _loader(u8x32, types.uint8, "32 bytes from ``array[index]`` on.")
load_u8x16 = _loader(u8x16, types.uint8, "16 bytes from ``array[index]`` on.")
load_i8x32 = _loader(i8x32, types.int8, "32 signed bytes from ``array[index]`` on.")
load_f32x8 = _loader(f32x8, types.float32, "8 floats from ``array[index]`` on.")
load_u16x8 = _loader(u16x8, types.uint16, "8 16-bit patterns from ``array[index]`` on.")
load_u16x8_bytes = _loader(u16x8, types.uint8, "8 16-bit patterns from byte ``index`` on.")
load_f32x8_bytes = _loader(f32x8, types.uint8, "8 floats from byte ``index`` on.")


@intrinsic
def store(typing_context, array, index, vector):
    """Writes a vector to ``array[index]`` and the following elements."""
    if not _is_flat(array) or not isinstance(vector, Vector):
        return None

    def codegen(context, builder, signature, args):
        pointer = _pointer(context, builder, signature, args, args[2].type)
        builder.store(args[2], pointer, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, vector), codegen


@intrinsic
def load_half(typing_context, array, index):
    """The f16 at byte ``index`` of a uint8 array, as float32."""
    if not _is_flat(array) or array.dtype != types.uint8:
        return None

    def codegen(context, builder, signature, args):
        pointer = _pointer(context, builder, signature, args, ir.IntType(16))
        return lowering.half_to_float(builder, builder.load(pointer, align=1))

    return types.float32(array, types.intp), codegen


@intrinsic
def load_float(typing_context, array, index):
    """The f32 at byte ``index`` of a uint8 array."""
    if not _is_flat(array) or array.dtype != types.uint8:
        return None

    def codegen(context, builder, signature, args):
        pointer = _pointer(context, builder, signature, args, ir.FloatType())
        return builder.load(pointer, align=1)

    return types.float32(array, types.intp), codegen


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
def to_float(typing_context, a):
    """i32x8 to f32x8."""

    def codegen(context, builder, signature, args):
        return builder.sitofp(args[0], llvm_vector(f32x8))

    return f32x8(i32x8), codegen


@intrinsic
def to_int(typing_context, a):
    """f32x8 to i32x8, towards zero."""

    def codegen(context, builder, signature, args):
        return builder.fptosi(args[0], llvm_vector(i32x8))

    return i32x8(f32x8), codegen


@intrinsic
def store_low_bytes(typing_context, array, index, vector):
    """Writes the low byte of each lane of i32x8 to an int8 array."""
    if not _is_flat(array) or array.dtype != types.int8:
        return None

    def codegen(context, builder, signature, args):
        narrow = builder.trunc(args[2], ir.VectorType(ir.IntType(8), 8))
        pointer = _pointer(context, builder, signature, args, narrow.type)
        builder.store(narrow, pointer, align=1)
        return context.get_dummy_value()

    return types.void(array, types.intp, i32x8), codegen


@intrinsic
def float_bits(typing_context, a):
    """f32x8 seen as its bit patterns, i32x8."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], llvm_vector(i32x8))

    return i32x8(f32x8), codegen


@intrinsic
def bits_float(typing_context, a):
    """Bit patterns, i32x8, seen as f32x8."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], llvm_vector(f32x8))

    return f32x8(i32x8), codegen


@intrinsic
def shift_left(typing_context, a, count):
    """Lane-wise shift left of i32x8 by the same count."""

    def codegen(context, builder, signature, args):
        scalar = context.cast(builder, args[1], signature.args[1], types.int32)
        return builder.shl(args[0], emit.splat(builder, scalar, 8))

    return i32x8(i32x8, count), codegen


@intrinsic
def halves_to_float(typing_context, a):
    """8 f16 bit patterns to f32x8, exactly."""

    def codegen(context, builder, signature, args):
        return lowering.half_to_float(builder, args[0])

    return f32x8(u16x8), codegen


@intrinsic
def bfloats_to_float(typing_context, a):
    """8 bf16 bit patterns to f32x8, exactly."""

    def codegen(context, builder, signature, args):
        wide = builder.zext(args[0], llvm_vector(i32x8))
        shifted = builder.shl(wide, llvm_vector(i32x8)([16] * 8))
        return builder.bitcast(shifted, llvm_vector(f32x8))

    return f32x8(u16x8), codegen


@intrinsic
def floats_to_half(typing_context, a):
    """f32x8 to 8 f16 bit patterns, rounded to nearest even; beyond the range to infinity."""

    def codegen(context, builder, signature, args):
        return lowering.float_to_half(builder, args[0])

    return u16x8(f32x8), codegen


@intrinsic
def concat(typing_context, low, high):
    """Two u8x16 as one u8x32."""

    def codegen(context, builder, signature, args):
        order = ir.Constant(ir.VectorType(ir.IntType(32), 32), list(range(32)))
        return builder.shuffle_vector(args[0], args[1], order)

    return u8x32(u8x16, u8x16), codegen


@intrinsic
def as_signed(typing_context, a):
    """u8x32 seen as i8x32."""

    def codegen(context, builder, signature, args):
        return args[0]

    return i8x32(u8x32), codegen


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


@intrinsic
def load_repeated(typing_context, array, index):
    """The 4 bytes from ``array[index]`` on, four times over, as u8x16."""
    if not _is_flat(array) or array.dtype != types.uint8:
        return None

    def codegen(context, builder, signature, args):
        pointer = _pointer(context, builder, signature, args, ir.IntType(32))
        repeated = emit.splat(builder, builder.load(pointer, align=1), 4)
        return builder.bitcast(repeated, llvm_vector(u8x16))

    return u8x16(array, types.intp), codegen


@intrinsic
def load_bfloat(typing_context, array, index):
    """The bf16 at byte ``index`` of a uint8 array, as float32."""
    if not _is_flat(array) or array.dtype != types.uint8:
        return None

    def codegen(context, builder, signature, args):
        pointer = _pointer(context, builder, signature, args, ir.IntType(16))
        wide = builder.zext(builder.load(pointer, align=1), ir.IntType(32))
        return builder.bitcast(builder.shl(wide, ir.IntType(32)(16)), ir.FloatType())

    return types.float32(array, types.intp), codegen


@intrinsic
def prefetch(typing_context, array, index):
    """Asks for the cache line of ``array[index]``; harmless anywhere, past the end included."""
    if not isinstance(array, types.Array):
        return None

    def codegen(context, builder, signature, args):
        pointer = _pointer(context, builder, signature, args, ir.IntType(8))
        i32 = ir.IntType(32)
        # A read (0), of no lasting use to the outer caches (1), of data (1).
        operands = [pointer, i32(0), i32(1), i32(1)]
        emit.call(builder, "llvm.prefetch.p0", ir.VoidType(), operands)
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen
