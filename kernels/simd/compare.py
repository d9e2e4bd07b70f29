"""Choices between SIMD vectors, lane by lane."""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.extending import intrinsic

from q4run.kernels.simd.vector import f32x8, llvm_vector


@intrinsic
def clamp(typing_context, a, low, high):
    """f32x8 kept within ``low`` to ``high``; NaN becomes ``low``."""

    def codegen(context, builder, signature, args):
        a, low, high = args
        a = _where_greater(builder, a, low, a, low)
        return _where_greater(builder, high, a, a, high)

    return f32x8(f32x8, f32x8, f32x8), codegen


@intrinsic
def where_greater(typing_context, a, b, yes, no):
    """The lanes of ``yes`` where ``a > b``, else those of ``no`` (where either is NaN, too)."""

    def codegen(context, builder, signature, args):
        return _where_greater(builder, *args)

    return f32x8(f32x8, f32x8, f32x8, f32x8), codegen


def _where_greater(
    builder: ir.IRBuilder, a: ir.Value, b: ir.Value, yes: ir.Value, no: ir.Value
) -> ir.Value:
    return builder.select(builder.fcmp_ordered(">", a, b), yes, no)


def steps(thresholds: Sequence[float], entries: Sequence[float]) -> Any:
    """An operation on f32x8: ``entries[n]``, where n of the ascending thresholds lie below a lane.

    There is one entry more than thresholds. NaN lies above none.
    """

    @intrinsic
    def look_up(typing_context, a):
        def codegen(context, builder, signature, args):
            vector = llvm_vector(f32x8)

            def among(first: int, last: int) -> ir.Value:
                if first == last:
                    return vector([entries[first]] * 8)
                middle = (first + last) // 2
                threshold = vector([thresholds[middle]] * 8)
                above, below = among(middle + 1, last), among(first, middle)
                return _where_greater(builder, args[0], threshold, above, below)

            return among(0, len(thresholds))

        return f32x8(f32x8), codegen

    look_up.__doc__ = "Per lane of f32x8: the entry for the number of thresholds below it."
    return look_up
