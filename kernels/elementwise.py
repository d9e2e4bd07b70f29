"""What happens to activations between the matrix products."""

import numpy as np

from q4run.kernels.compiling.compile import inline, kernel
from q4run.kernels.simd.math import silu
from q4run.kernels.simd.memory import load_f32x8, store
from q4run.kernels.simd.ops import add, mul


@inline
def silu_mul(gate, up, begin, end):
    """gate = silu(gate) * up for the flat indices from ``begin`` to ``end``; arrays or pointers."""
    whole = begin + (end - begin) // 8 * 8
    for i in range(begin, whole, 8):
        store(gate, i, mul(silu(load_f32x8(gate, i)), load_f32x8(up, i)))
    for i in range(whole, end):
        gate[i] = gate[i] / (np.float32(1) + np.exp(-gate[i])) * up[i]


@kernel()
def add_into(x, y):
    """x += y; float32 (n_tokens, n), C-contiguous."""
    flat_x, flat_y = x.ravel(), y.ravel()
    whole = flat_x.size // 8 * 8
    for i in range(0, whole, 8):
        store(flat_x, i, add(load_f32x8(flat_x, i), load_f32x8(flat_y, i)))
    for i in range(whole, flat_x.size):
        flat_x[i] += flat_y[i]
