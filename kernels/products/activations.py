"""Activations as the integer kernels take them: int8 in groups of 32, each with its scale."""

from typing import NamedTuple

import numpy as np

from q4run.kernels.compiling.compile import inline, kernel
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
    sums: np.ndarray  # int32 (n_tokens, n_cols / 16): per group the sum of q, and of its last 16


def empty_activations(n_tokens: int, n_cols: int) -> Int8Activations:
    """Room for ``n_tokens`` rows of ``n_cols`` values, rounded down to whole groups."""
    n_groups = n_cols // GROUP
    return Int8Activations(
        np.empty((n_tokens, n_groups * GROUP), np.int8),
        np.empty((n_tokens, n_groups), np.float32),
        np.empty((n_tokens, 2 * n_groups), np.int32),
    )


def quantize_activations(x: np.ndarray) -> Int8Activations:
    """float32 (n_tokens, n_cols), n_cols a multiple of 32: scale = largest magnitude / 127."""
    quantized = empty_activations(*x.shape)
    _quantize(x, *quantized)
    return quantized


@kernel()
def _quantize(x, q, scales, sums):
    flat_q, flat_scales, flat_sums = q.ravel(), scales.ravel(), sums.ravel()
    for group in range(x.size // GROUP):
        quantize_group(x, group, flat_q, flat_scales, flat_sums)


@inline
def quantize_group(x, group, q, scales, sums):
    """Quantises the 32 values from flat index ``32 * group`` on, to the same place in q (flat)."""
    first = GROUP * group
    largest = splat(f32x8, 0.0)
    for i in range(0, GROUP, 8):
        largest = maximum(largest, absolute(load_f32x8(x, first + i)))
    scale = reduce_max(largest) / np.float32(127)
    inverse = np.float32(1) / scale if scale >= _SMALLEST_SCALE else np.float32(0)
    low = high = splat(i32x8, 0)
    for i in range(0, GROUP, 8):
        codes = to_int(round_even(mul(load_f32x8(x, first + i), splat(f32x8, inverse))))
        store_low_bytes(q, first + i, codes)
        if i < GROUP // 2:
            low = add(low, codes)
        else:
            high = add(high, codes)
    sums[2 * group] = reduce_add_int(add(low, high))
    sums[2 * group + 1] = reduce_add_int(high)
    scales[group] = scale
