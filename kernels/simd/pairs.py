"""Products of bytes in 16-bit lanes, two to a lane, where the machine multiplies bytes that way.

Widening each sum to 32 bits takes as long as the products do. Small codes leave room to add several
up in 16 bits first.
"""

from numba import types
from numba.extending import intrinsic

from q4run.kernels.simd import lowering
from q4run.kernels.simd.vector import i8x32, i16x16, i32x8, u8x32

HAS_PAIRS: bool = lowering.multiply_pairs is not None
_LARGEST_SUM = 2**15 - 1
_LARGEST_ACTIVATION = 127


def pairs_at_once(largest: int) -> int:
    """How many ``pair_products`` of codes up to ``largest`` may be added; 0 without such lanes."""
    return _LARGEST_SUM // (2 * largest * _LARGEST_ACTIVATION) if HAS_PAIRS else 0


@intrinsic
def pair_products(typing_context, a, b):
    """Two products of u8x32 ``a`` and i8x32 ``b`` summed in each lane of i16x16."""

    def codegen(context, builder, signature, args):
        return lowering.multiply_pairs(builder, *args)

    return i16x16(u8x32, i8x32), codegen


@intrinsic
def sum_of_pairs(typing_context, pairs):
    """The two 16-bit lanes in each lane of i32x8, added up."""

    def codegen(context, builder, signature, args):
        return lowering.sum_pairs(builder, *args)

    return i32x8(i16x16), codegen


@intrinsic
def keep_loops(typing_context):
    """Has LLVM keep the function that calls it apart, and its loops as written, for AVX2.

    Unrolled, a loop whose sums fill the 16 registers has some of them in memory.
    """

    def codegen(context, builder, signature, args):
        if HAS_PAIRS:
            builder.function.attributes.add("noinline")
            builder.function.attributes.add("optsize")
        return context.get_dummy_value()

    return types.void(), codegen
