"""SIMD vectors from one type to another: converted values, or the same bits seen otherwise."""

from llvmlite import ir
from numba.extending import intrinsic

from q4run.kernels.simd import emit, lowering
from q4run.kernels.simd.vector import f32x8, i8x32, i32x8, llvm_vector, u8x32, u16x8

_BELOW_HALF = 0.5 - 2.0**-25  # the largest float32 below it


@intrinsic
def to_float(typing_context, a):
    """i32x8 to f32x8."""

    def codegen(context, builder, signature, args):
        return builder.sitofp(args[0], llvm_vector(f32x8))

    return f32x8(i32x8), codegen


@intrinsic
def to_nearest(typing_context, a):
    """f32x8 to the nearest i32x8, halves away from zero; for magnitudes below 2**22."""

    def codegen(context, builder, signature, args):
        f32x8_type = llvm_vector(f32x8)
        below_half = f32x8_type([_BELOW_HALF] * 8)
        half = emit.call(builder, "llvm.copysign.v8f32", f32x8_type, [below_half, args[0]])
        return builder.fptosi(builder.fadd(args[0], half), llvm_vector(i32x8))

    return i32x8(f32x8), codegen


@intrinsic
def to_int(typing_context, a):
    """f32x8 to i32x8, towards zero."""

    def codegen(context, builder, signature, args):
        return builder.fptosi(args[0], llvm_vector(i32x8))

    return i32x8(f32x8), codegen


@intrinsic
def bits_float(typing_context, a):
    """Bit patterns, i32x8, seen as f32x8."""

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], llvm_vector(f32x8))

    return f32x8(i32x8), codegen


@intrinsic
def halved_power_of_two(typing_context, exponent):
    """``2 ** (exponent - 128)`` for i32x8 of 0 to 255, as f32x8, the subnormal ones included."""

    def codegen(context, builder, signature, args):
        def constant(number: int) -> ir.Value:
            return llvm_vector(i32x8)([number] * 8)

        normal = builder.shl(builder.sub(args[0], constant(1)), constant(23))
        is_small = builder.icmp_signed("<", args[0], constant(2))
        subnormal = builder.select(
            builder.icmp_signed("==", args[0], constant(0)), constant(1 << 21), constant(1 << 22)
        )
        bits = builder.select(is_small, subnormal, normal)
        return builder.bitcast(bits, llvm_vector(f32x8))

    return f32x8(i32x8), codegen


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
def as_signed(typing_context, a):
    """u8x32 seen as i8x32."""

    def codegen(context, builder, signature, args):
        return args[0]

    return i8x32(u8x32), codegen
