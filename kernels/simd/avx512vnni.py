"""AVX-512 VNNI on 256-bit vectors: an integer dot is one ``vpdpbusd``."""

from llvmlite import binding, ir

from q4run.kernels.simd.avx2 import look_up
from q4run.kernels.simd.emit import I32, call, vector
from q4run.kernels.simd.hardware_half import float_to_half, half_to_float

__all__ = ["BIAS", "dot_biased", "dot_unsigned", "float_to_half", "half_to_float", "look_up"]

# LLVM 22 declares the bytes as bytes; before, they travelled as 32-bit lanes.
_BYTE_OPERANDS = binding.llvm_version_info >= (22, 0, 0)


def dot_unsigned(
    builder: ir.IRBuilder, accumulator: ir.Value, a: ir.Value, b: ir.Value
) -> ir.Value:
    if not _BYTE_OPERANDS:
        a = builder.bitcast(a, vector(I32, 8))
        b = builder.bitcast(b, vector(I32, 8))
    name = "llvm.x86.avx512.vpdpbusd.256"
    return call(builder, name, vector(I32, 8), [accumulator, a, b])


# ``vpdpbusd`` takes any unsigned byte, and sums in 32 bits.
BIAS = 128
dot_biased = dot_unsigned
