"""Vectors at the end of an array, where fewer than eight places are left."""

from q4run.kernels.compiling.compile import inline
from q4run.kernels.simd.memory import load_f32x8, store
from q4run.kernels.simd.ops import lane, splat, with_lane
from q4run.kernels.simd.vector import f32x8


@inline
def store_some(array, index, vector, n):
    """Writes the first ``n`` lanes of f32x8, or all where there is room for more."""
    if n >= 8:
        store(array, index, vector)
    else:
        for i in range(n):
            array[index + i] = lane(vector, i)


@inline
def load_some(array, index, n):
    """f32x8 of the first ``n`` values, zeros behind, or of eight where there are more."""
    if n >= 8:
        return load_f32x8(array, index)
    vector = splat(f32x8, 0.0)
    for i in range(n):
        vector = with_lane(vector, i, array[index + i])
    return vector
