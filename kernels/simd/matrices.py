"""Eight columns of eight rows times two tokens, where the machine multiplies small matrices.

It wants a row's eight columns side by side, and gives a row's sums of both tokens side by side: two
vectors whose 32-bit lanes are taken by turns.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from q4run.kernels.simd import lowering
from q4run.kernels.simd.emit import I8, I32, join, vector
from q4run.kernels.simd.vector import i32x8, llvm_vector, u8x32

HAS_MATRICES: bool = lowering.dot_matrix is not None


def _mover(first: range | list[int], second: range | list[int], doc: str) -> Any:
    @intrinsic
    def move(typing_context, a, b):
        if a != b:
            return None

        def codegen(context, builder, signature, args):
            words = [builder.bitcast(arg, vector(I32, 8)) for arg in args]
            moved = []
            for lanes in (first, second):
                order = ir.Constant(vector(I32, 8), list(lanes))
                moved.append(builder.shuffle_vector(*words, order))
            moved = [builder.bitcast(half, llvm_vector(a)) for half in moved]
            return context.make_tuple(builder, signature.return_type, moved)

        return types.UniTuple(a, 2)(a, b), codegen

    move.__doc__ = doc
    return move


by_turns = _mover(
    [0, 8, 1, 9, 2, 10, 3, 11],
    [4, 12, 5, 13, 6, 14, 7, 15],
    "The 32-bit lanes of two vectors by turns: a vector of the first four of each, and the rest.",
)
taken_apart = _mover(range(0, 16, 2), range(1, 16, 2), "The two vectors that ``by_turns`` took.")


@intrinsic
def dot_matrices(typing_context, first, second, low, high, x, at, other):
    """``first`` and ``second`` (sums ``by_turns``) plus eight rows' products with two tokens.

    low, high: eight columns of the rows, u8x32 of codes below 128 or ``biased`` ones, ``by_turns``;
    the tokens' codes are the eight at ``x[at]`` and ``x[other]``, an int8 pointer.
    """

    def codegen(context, builder, signature, args):
        first, second, low, high, x, at, other = args
        eights = []
        for index in (at, other):
            pointer = builder.bitcast(builder.gep(x, [index]), vector(I8, 8).as_pointer())
            eights.append(builder.load(pointer, align=1))
        tokens = join(builder, *eights)
        sums = [
            lowering.dot_matrix(builder, first, low, tokens),
            lowering.dot_matrix(builder, second, high, tokens),
        ]
        return context.make_tuple(builder, signature.return_type, sums)

    arguments = (i32x8, i32x8, u8x32, u8x32, x, types.intp, types.intp)
    return types.UniTuple(i32x8, 2)(*arguments), codegen
