"""What happens to activations between the matrix products."""

import numpy as np

from q4run.kernels.compiling.compile import inline, kernel
from q4run.kernels.simd.math import gelu, silu, times_sigmoid
from q4run.kernels.simd.memory import load_f32x8, store
from q4run.kernels.simd.ops import add, maximum, minimum, mul, splat
from q4run.kernels.simd.vector import f32x8

# What becomes of gate and up.
SILU, GELU, RELU_SQUARED, CLAMPED_SWIGLU = range(4)
# Of gpt-oss' SwiGLU (its reference implementation): what g is multiplied by in the sigmoid, and
# within what g and u are kept.
_SWIGLU_ALPHA, _SWIGLU_LIMIT = 1.702, 7.0


@inline
def activate(activation, gate, up, begin, end):
    """gate = activation(gate, up) for the flat indices from ``begin`` to ``end``; arrays or
    pointers."""
    whole = begin + (end - begin) // 8 * 8
    for i in range(begin, whole, 8):
        store(gate, i, _activate_eight(activation, load_f32x8(gate, i), load_f32x8(up, i)))
    for i in range(whole, end):
        gate[i] = _activate_one(activation, gate[i], up[i])


@inline
def _activate_eight(activation, gate, up):
    if activation == SILU:
        result = mul(silu(gate), up)
    elif activation == GELU:
        result = mul(gelu(gate), up)
    elif activation == RELU_SQUARED:
        positive = maximum(gate, splat(f32x8, 0.0))
        result = mul(mul(positive, positive), up)
    else:
        limit = splat(f32x8, _SWIGLU_LIMIT)
        gate = minimum(gate, limit)
        up = maximum(minimum(up, limit), splat(f32x8, -_SWIGLU_LIMIT))
        swish = times_sigmoid(gate, mul(gate, splat(f32x8, _SWIGLU_ALPHA)))
        result = mul(swish, add(up, splat(f32x8, 1.0)))
    return result


@inline
def _activate_one(activation, gate, up):
    one = np.float32(1)
    if activation == SILU:
        result = gate / (one + np.exp(-gate)) * up
    elif activation == GELU:
        cubic = gate + np.float32(0.044715) * gate * gate * gate
        result = gate / (one + np.exp(np.float32(-1.5957691216057308) * cubic)) * up
    elif activation == RELU_SQUARED:
        positive = max(gate, np.float32(0))
        result = positive * positive * up
    else:
        limit = np.float32(_SWIGLU_LIMIT)
        gate, up = min(gate, limit), min(max(up, -limit), limit)
        result = gate / (one + np.exp(-np.float32(_SWIGLU_ALPHA) * gate)) * (up + one)
    return result


@kernel()
def add_into(x, y):
    """x += y; float32 (n_tokens, n), C-contiguous."""
    flat_x, flat_y = x.ravel(), y.ravel()
    whole = flat_x.size // 8 * 8
    for i in range(0, whole, 8):
        store(flat_x, i, add(load_f32x8(flat_x, i), load_f32x8(flat_y, i)))
    for i in range(whole, flat_x.size):
        flat_x[i] += flat_y[i]
