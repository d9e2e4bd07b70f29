"""The arithmetic on SIMD vectors that the kernels are written in.

Each operation is a numba intrinsic that becomes one or a few LLVM instructions.
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core.errors import RequireLiteralValue
from numba.extending import intrinsic

from q4run.kernels.simd import emit, lowering
from q4run.kernels.simd.lowering import BIAS
from q4run.kernels.simd.vector import Vector, f32x8, i8x32, i32x8, llvm_vector, u8x32

_PAIRS = ir.VectorType(ir.IntType(16), 16)


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
def shift_right_signed(typing_context, a, count):
    """Lane-wise arithmetic shift right of i32x8 by the same count."""

    def codegen(context, builder, signature, args):
        scalar = context.cast(builder, args[1], signature.args[1], types.int32)
        return builder.ashr(args[0], emit.splat(builder, scalar, 8))

    return i32x8(i32x8, count), codegen


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
def biased(typing_context, a):
    """Signed bytes, i8x32, as ``dot_biased`` takes them: u8x32 that are ``BIAS`` larger."""

    def codegen(context, builder, signature, args):
        if not BIAS:
            return args[0]
        return builder.xor(args[0], ir.Constant(args[0].type, [BIAS] * 32))

    return u8x32(i8x32), codegen


@intrinsic
def dot_biased(typing_context, accumulator, a, b):
    """``accumulator`` (i32x8) plus, per lane, four products of ``biased`` bytes and i8x32 ``b``.

    The sum is too large by ``BIAS`` times the sum of ``b``. ``b`` must stay above -128.
    """

    def codegen(context, builder, signature, args):
        return lowering.dot_biased(builder, *args)

    return i32x8(i32x8, u8x32, i8x32), codegen


@intrinsic
def bit_field(typing_context, a, shift, mask):
    """Per byte of u8x32: ``(a >> shift) & mask``, for masks of at most ``8 - shift`` bits."""

    def codegen(context, builder, signature, args):
        count = context.cast(builder, args[1], signature.args[1], types.uint16)
        shifted = builder.lshr(builder.bitcast(args[0], _PAIRS), emit.splat(builder, count, 16))
        scalar = context.cast(builder, args[2], signature.args[2], types.uint8)
        kept = emit.splat(builder, scalar, 32)
        return builder.and_(builder.bitcast(shifted, llvm_vector(u8x32)), kept)

    return u8x32(u8x32, shift, mask), codegen


@intrinsic
def bit_field_at(typing_context, a, shift, mask, place):
    """Per byte of u8x32: ``((a >> shift) & mask) << place``, all within the byte."""

    def codegen(context, builder, signature, args):
        counts = [
            emit.splat(builder, context.cast(builder, arg, kind, types.uint16), 16)
            for arg, kind in zip(args[1:], signature.args[1:], strict=True)
        ]
        shift, mask, place = counts
        both = builder.or_(mask, builder.shl(mask, ir.Constant(_PAIRS, [8] * 16)))
        kept = builder.and_(builder.lshr(builder.bitcast(args[0], _PAIRS), shift), both)
        return builder.bitcast(builder.shl(kept, place), llvm_vector(u8x32))

    return u8x32(u8x32, shift, mask, place), codegen


@intrinsic(prefer_literal=True)
def add_where_set(typing_context, a, value, words, first):
    """u8x32 ``a`` plus ``value`` in each byte c of a 32-bit lane whose bit ``first + c`` is set.

    words: i32x8 with the bits; first: a constant multiple of 4; value: a constant.
    """
    if not all(isinstance(constant, types.IntegerLiteral) for constant in (value, first)):
        raise RequireLiteralValue("add_where_set takes constants")
    bit = first.literal_value

    def codegen(context, builder, signature, args):
        bytes_ = builder.bitcast(args[2], llvm_vector(u8x32))
        spread = emit.lanes_of(builder, bytes_, [4 * (i // 4) + bit // 8 for i in range(32)])
        bits = ir.Constant(spread.type, [1 << (bit % 8 + i % 4) for i in range(32)])
        is_set = builder.icmp_unsigned("==", builder.and_(spread, bits), bits)
        added = ir.Constant(spread.type, [value.literal_value] * 32)
        return builder.add(args[0], builder.select(is_set, added, spread.type([0] * 32)))

    return u8x32(u8x32, value, i32x8, first), codegen


def byte_table(values: Sequence[int]) -> Any:
    """An operation that looks each byte of u8x32 up among 16 (bytes; negative ones as signed)."""
    table = [value & 255 for value in values]

    @intrinsic
    def look_up(typing_context, indices):
        def codegen(context, builder, signature, args):
            return lowering.look_up(builder, table, args[0])

        return u8x32(u8x32), codegen

    look_up.__doc__ = "Per byte of u8x32, all below 16: the table's entry of that index."
    return look_up


@intrinsic
def ternary_digit(typing_context, a, power):
    """Per byte b of u8x32: ``((b * power) % 256) * 3 >> 8``, a digit of TQ1_0; 16-bit ``power``."""

    def codegen(context, builder, signature, args):
        power = emit.splat(builder, args[1], 16)
        halves = [_low_bytes(builder, builder.mul(half, power)) for half in _halves(builder, args)]
        return _ternary_step(builder, *halves)[0]

    return u8x32(u8x32, types.uint16), codegen


@intrinsic
def ternary_digits(typing_context, a):
    """``ternary_digit`` of u8x32 for the powers 1, 3, 9, 27 and 81, each from the one before."""

    def codegen(context, builder, signature, args):
        halves = _halves(builder, args)
        digits = []
        for _ in range(5):
            digit, *halves = _ternary_step(builder, *halves)
            digits.append(digit)
        return context.make_tuple(builder, signature.return_type, digits)

    return types.UniTuple(u8x32, 5)(u8x32), codegen


def _halves(builder: ir.IRBuilder, args: Any) -> list[ir.Value]:
    """The even bytes and the odd bytes of a vector, in 16-bit lanes."""
    pairs = builder.bitcast(args[0], _PAIRS)
    return [_low_bytes(builder, pairs), builder.lshr(pairs, ir.Constant(_PAIRS, [8] * 16))]


def _low_bytes(builder: ir.IRBuilder, pairs: ir.Value) -> ir.Value:
    return builder.and_(pairs, ir.Constant(_PAIRS, [0xFF] * 16))


def _ternary_step(builder: ir.IRBuilder, even: ir.Value, odd: ir.Value) -> tuple[ir.Value, ...]:
    """``b * 3 >> 8`` of all bytes, and ``b * 3 % 256`` of the even ones and of the odd ones."""
    three = ir.Constant(_PAIRS, [3] * 16)
    even, odd = builder.mul(even, three), builder.mul(odd, three)
    low = builder.lshr(even, ir.Constant(_PAIRS, [8] * 16))
    high = builder.and_(odd, ir.Constant(_PAIRS, [0xFF00] * 16))
    digit = builder.bitcast(builder.or_(low, high), llvm_vector(u8x32))
    return digit, _low_bytes(builder, even), _low_bytes(builder, odd)


@intrinsic
def lane(typing_context, a, index):
    """One lane of f32x8."""

    def codegen(context, builder, signature, args):
        return builder.extract_element(args[0], args[1])

    return types.float32(f32x8, types.intp), codegen


@intrinsic
def with_lane(typing_context, a, index, value):
    """f32x8 with one lane set anew."""

    def codegen(context, builder, signature, args):
        return builder.insert_element(args[0], args[2], args[1])

    return f32x8(f32x8, types.intp, types.float32), codegen
