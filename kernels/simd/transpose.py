"""Eight SIMD vectors as an 8 by 8 matrix, transposed."""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from q4run.kernels.simd.emit import I32, vector

# Lanes of a pair of rows (the second's from 8 on), for rows 1, 2 and 4 apart: the halves of each
# 128 bits by turns, pairs of lanes by turns, then the 128-bit halves.
_STEPS = (
    (1, (0, 8, 1, 9, 4, 12, 5, 13), (2, 10, 3, 11, 6, 14, 7, 15)),
    (2, (0, 1, 8, 9, 4, 5, 12, 13), (2, 3, 10, 11, 6, 7, 14, 15)),
    (4, (0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15)),
)
# The row that each of the eight results is, after the steps.
_ORDER = (0, 2, 1, 3, 4, 6, 5, 7)


@intrinsic
def transpose(typing_context, r0, r1, r2, r3, r4, r5, r6, r7):
    """Lane i of result j is lane j of ``r<i>``: eight f32x8, or eight i32x8, as a tuple."""

    def codegen(context, builder, signature, args):
        rows = list(args)
        for distance, first, second in _STEPS:
            for i in range(8):
                if i & distance:
                    continue
                pair = rows[i], rows[i + distance]
                for place, lanes in ((i, first), (i + distance, second)):
                    order = ir.Constant(vector(I32, 8), list(lanes))
                    rows[place] = builder.shuffle_vector(*pair, order)
        results = [rows[i] for i in _ORDER]
        return context.make_tuple(builder, signature.return_type, results)

    return types.UniTuple(r0, 8)(*[r0] * 8), codegen
