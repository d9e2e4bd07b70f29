"""Activations as the integer kernels take them: int8 in groups of 32, each with its scale."""

from typing import NamedTuple

import numpy as np
from numba import prange

from q4run.kernels.compile import inline, threaded
from q4run.kernels.simd.casts import to_int
from q4run.kernels.simd.memory import load_f32x8, store_low_bytes
from q4run.kernels.simd.ops import (
    absolute,
    add,
    maximum,
    mul,
    reduce_add_int,
    reduce_max,
    round_even,
    splat,
)
from q4run.kernels.simd.vector import f32x8, i32x8

GROUP = 32
# Below it the inverse of a scale overflows; such a group counts as zeros.
_SMALLEST_SCALE = np.float32(2.0**-126)


class Int8Activations(NamedTuple):
    """x = scales * q, group by group."""

    q: np.ndarray  # int8 (n_tokens, n_cols)
    scales: np.ndarray  # float32 (n_tokens, n_cols / 32)
    sums: np.ndarray  # int32 (n_tokens, n_cols / 32): the sum of the group's codes


def quantize_activations(x: np.ndarray) -> Int8Activations:
    """float32 (n_tokens, n_cols), n_cols a multiple of 32: scale = largest magnitude / 127."""
    n_tokens, n_cols = x.shape
    groups = (n_tokens, n_cols // GROUP)
    quantized = Int8Activations(
        np.empty(x.shape, np.int8), np.empty(groups, np.float32), np.empty(groups, np.int32)
    )
    _quantize(x, *quantized)
    return quantized


@inline
def _quantize_token(token, x, q, scales, sums):
    n_cols = x.shape[1]
    for group in range(n_cols // GROUP):
        first = token * n_cols + GROUP * group
        largest = splat(f32x8, 0.0)
        for i in range(0, GROUP, 8):
            largest = maximum(largest, absolute(load_f32x8(x, first + i)))
        scale = reduce_max(largest) / np.float32(127)
        inverse = np.float32(1) / scale if scale >= _SMALLEST_SCALE else np.float32(0)
        total = splat(i32x8, 0)
        for i in range(0, GROUP, 8):
            codes = to_int(round_even(mul(load_f32x8(x, first + i), splat(f32x8, inverse))))
            store_low_bytes(q, first + i, codes)
            total = add(total, codes)
        scales[token, group] = scale
        sums[token, group] = reduce_add_int(total)


@threaded(lambda x, *_: x.size)
def _quantize(x, q, scales, sums):
    for token in prange(len(x)):
        _quantize_token(token, x, q, scales, sums)
