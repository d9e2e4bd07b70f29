"""Conversions between f16 and f32 on machines that have instructions for them."""

from llvmlite import ir

from q4run.kernels.simd.emit import F32, HALF, I16, vector


def half_to_float(builder: ir.IRBuilder, bits: ir.Value) -> ir.Value:
    lanes = getattr(bits.type, "count", None)
    half, wide = (vector(HALF, lanes), vector(F32, lanes)) if lanes else (HALF, F32)
    return builder.fpext(builder.bitcast(bits, half), wide)


def float_to_half(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    lanes = getattr(value.type, "count", None)
    half, bits = (vector(HALF, lanes), vector(I16, lanes)) if lanes else (HALF, I16)
    return builder.bitcast(builder.fptrunc(value, half), bits)
