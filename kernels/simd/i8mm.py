"""64-bit Arm with the matrix-product extension too: ``smmla`` on each 128-bit half."""

from llvmlite import ir

from q4run.kernels.simd.emit import I32, call, join, lanes_of, vector
from q4run.kernels.simd.neon import (
    BIAS,
    dot_biased,
    dot_unsigned,
    float_to_half,
    half_to_float,
    look_up,
)

__all__ = [
    "BIAS",
    "dot_biased",
    "dot_matrix",
    "dot_unsigned",
    "float_to_half",
    "half_to_float",
    "look_up",
]


def dot_matrix(builder: ir.IRBuilder, accumulator: ir.Value, a: ir.Value, b: ir.Value) -> ir.Value:
    """``accumulator`` (4 rows by 2 tokens) plus ``a`` (4 rows of 8) times ``b`` (2 tokens of 8).

    In each half lane 2 i + j is row i and token j; ``b`` has 16 bytes, for both halves.
    """
    halves = []
    for half in range(2):
        operands = [
            lanes_of(builder, accumulator, range(4 * half, 4 * half + 4)),
            lanes_of(builder, a, range(16 * half, 16 * half + 16)),
            b,
        ]
        name = "llvm.aarch64.neon.smmla.v4i32.v16i8"
        halves.append(call(builder, name, vector(I32, 4), operands))
    return join(builder, *halves)
