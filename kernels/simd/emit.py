"""Small helpers for writing LLVM code: what every target's file builds on."""

from collections.abc import Callable, Sequence

from llvmlite import ir

I8 = ir.IntType(8)
I16 = ir.IntType(16)
I32 = ir.IntType(32)
F32 = ir.FloatType()
HALF = ir.HalfType()


def vector(element: ir.Type, lanes: int) -> ir.VectorType:
    return ir.VectorType(element, lanes)


def call(builder: ir.IRBuilder, name: str, result: ir.Type, args: Sequence[ir.Value]) -> ir.Value:
    """Calls an LLVM intrinsic, declaring it in the module when it is new there."""
    module = builder.module
    function = module.globals.get(name)
    if function is None:
        function_type = ir.FunctionType(result, [arg.type for arg in args])
        function = ir.Function(module, function_type, name)
    return builder.call(function, args)


def splat(builder: ir.IRBuilder, scalar: ir.Value, lanes: int) -> ir.Value:
    """A vector with ``scalar`` in every lane."""
    wide = vector(scalar.type, lanes)
    first = builder.insert_element(ir.Constant(wide, ir.Undefined), scalar, I32(0))
    return builder.shuffle_vector(first, first, ir.Constant(vector(I32, lanes), [0] * lanes))


def lanes_of(builder: ir.IRBuilder, value: ir.Value, lanes: Sequence[int]) -> ir.Value:
    """The named lanes of a vector as a shorter (or reordered) vector."""
    order = ir.Constant(vector(I32, len(lanes)), list(lanes))
    return builder.shuffle_vector(value, value, order)


def join(builder: ir.IRBuilder, low: ir.Value, high: ir.Value) -> ir.Value:
    """Two vectors of one type, end to end."""
    order = ir.Constant(vector(I32, 2 * low.type.count), list(range(2 * low.type.count)))
    return builder.shuffle_vector(low, high, order)


def reduce(
    builder: ir.IRBuilder, value: ir.Value, combine: Callable[[ir.Value, ir.Value], ir.Value]
) -> ir.Value:
    """Folds a vector in halves until one lane is left: the order never depends on the target."""
    lanes = value.type.count
    while lanes > 1:
        lanes //= 2
        low = lanes_of(builder, value, range(lanes))
        high = lanes_of(builder, value, range(lanes, 2 * lanes))
        value = combine(low, high)
    return builder.extract_element(value, I32(0))
