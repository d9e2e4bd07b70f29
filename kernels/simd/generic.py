"""The operations in plain LLVM: right on every machine that LLVM compiles for."""

from collections.abc import Callable, Sequence

from llvmlite import ir

from q4run.kernels.simd.emit import F32, I8, I16, I32, lanes_of, vector

BIAS = 0


def dot_unsigned(
    builder: ir.IRBuilder, accumulator: ir.Value, a: ir.Value, b: ir.Value
) -> ir.Value:
    return _dot(builder, accumulator, builder.zext(a, vector(I32, 32)), b)


def dot_biased(builder: ir.IRBuilder, accumulator: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
    return _dot(builder, accumulator, builder.sext(a, vector(I32, 32)), b)


def _dot(builder: ir.IRBuilder, accumulator: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
    products = builder.mul(a, builder.sext(b, vector(I32, 32)))
    for lane in range(4):
        accumulator = builder.add(accumulator, lanes_of(builder, products, range(lane, 32, 4)))
    return accumulator


def look_up(builder: ir.IRBuilder, table: Sequence[int], indices: ir.Value) -> ir.Value:
    """A tree of choices, one level for each bit of the index."""
    bytes_ = vector(I8, 32)
    entries = [ir.Constant(bytes_, [entry] * 32) for entry in table]
    for bit in range(4):
        masked = builder.and_(indices, ir.Constant(bytes_, [1 << bit] * 32))
        is_set = builder.icmp_unsigned("!=", masked, ir.Constant(bytes_, [0] * 32))
        entries = [
            builder.select(is_set, entries[i + 1], entries[i]) for i in range(0, len(entries), 2)
        ]
    return entries[0]


def half_to_float(builder: ir.IRBuilder, bits: ir.Value) -> ir.Value:
    """i16 pattern(s) to float(s) by integer arithmetic; exact, subnormals included."""
    i32, f32, constant = _wide_types(bits.type)
    wide = builder.zext(bits, i32)
    sign = builder.shl(builder.and_(wide, constant(0x8000)), constant(16))
    magnitude = builder.and_(wide, constant(0x7FFF))
    shifted = builder.bitcast(builder.shl(magnitude, constant(13)), f32)
    # The exponent biases differ by 112: a product with 2**112 also normalises subnormals.
    scale = builder.bitcast(constant((127 + 112) << 23), f32)
    finite = builder.bitcast(builder.fmul(shifted, scale), i32)
    special = builder.or_(finite, constant(0x7F800000))
    is_special = builder.icmp_unsigned(">=", magnitude, constant(0x7C00))
    result = builder.select(is_special, special, finite)
    return builder.bitcast(builder.or_(result, sign), f32)


def float_to_half(builder: ir.IRBuilder, value: ir.Value) -> ir.Value:
    """float(s) to i16 pattern(s), rounded to nearest even; NaN stays NaN."""
    lanes = getattr(value.type, "count", None)
    narrow = vector(I16, lanes) if lanes else I16
    i32, f32, constant = _wide_types(narrow)
    bits = builder.bitcast(value, i32)
    sign = builder.lshr(builder.and_(bits, constant(0x80000000)), constant(16))
    magnitude = builder.and_(bits, constant(0x7FFFFFFF))

    odd = builder.and_(builder.lshr(magnitude, constant(13)), constant(1))
    rebias = constant((0x0FFF - (112 << 23)) & 0xFFFFFFFF)
    rounded = builder.add(builder.add(magnitude, rebias), odd)
    normal = builder.lshr(rounded, constant(13))

    # Adding 0.5 lines a subnormal's last bit up with the float's: the sum rounds it.
    half = builder.bitcast(constant(126 << 23), f32)
    lifted = builder.fadd(builder.bitcast(magnitude, f32), half)
    subnormal = builder.sub(builder.bitcast(lifted, i32), constant(126 << 23))

    is_nan = builder.icmp_unsigned(">", magnitude, constant(0x7F800000))
    overflow = builder.select(is_nan, constant(0x7E00), constant(0x7C00))
    is_large = builder.icmp_unsigned(">=", magnitude, constant(0x47800000))
    is_small = builder.icmp_unsigned("<", magnitude, constant(0x38800000))
    result = builder.select(is_small, subnormal, normal)
    result = builder.select(is_large, overflow, result)
    return builder.trunc(builder.or_(result, sign), narrow)


def _wide_types(
    narrow: ir.Type,
) -> tuple[ir.Type, ir.Type, Callable[[int], ir.Constant]]:
    """The i32 and float types of as many lanes as ``narrow``, and a maker of constants."""
    lanes = getattr(narrow, "count", None)
    if lanes is None:
        return I32, F32, lambda number: ir.Constant(I32, number)
    i32 = vector(I32, lanes)
    return i32, vector(F32, lanes), lambda number: ir.Constant(i32, [number] * lanes)
