"""64-bit Arm with the dot-product extension: ``sdot`` on each 128-bit half."""

from collections.abc import Sequence

from llvmlite import ir

from q4run.kernels.simd.emit import I8, I32, call, join, lanes_of, vector
from q4run.kernels.simd.hardware_half import float_to_half, half_to_float

__all__ = ["BIAS", "dot_biased", "dot_unsigned", "float_to_half", "half_to_float", "look_up"]

BIAS = 0


def dot_biased(builder: ir.IRBuilder, accumulator: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
    halves = []
    for half in range(2):
        quarter = range(4 * half, 4 * half + 4)
        bytes_ = range(16 * half, 16 * half + 16)
        operands = [
            lanes_of(builder, accumulator, quarter),
            lanes_of(builder, a, bytes_),
            lanes_of(builder, b, bytes_),
        ]
        name = "llvm.aarch64.neon.sdot.v4i32.v16i8"
        halves.append(call(builder, name, vector(I32, 4), operands))
    return join(builder, *halves)


# The contract keeps ``a`` below 128, where signed and unsigned bytes are the same.
dot_unsigned = dot_biased


def look_up(builder: ir.IRBuilder, table: Sequence[int], indices: ir.Value) -> ir.Value:
    bytes_ = ir.Constant(vector(I8, 16), list(table))
    halves = []
    for half in range(2):
        operands = [bytes_, lanes_of(builder, indices, range(16 * half, 16 * half + 16))]
        name = "llvm.aarch64.neon.tbl1.v16i8"
        halves.append(call(builder, name, vector(I8, 16), operands))
    return join(builder, *halves)
