"""The weight of each column's squared error, from the importance that calibration measured."""

import math

import numpy as np

TILE = 256
# Beside its block's largest weight a smaller one is lost in float32 sums. It still says what to do
# with a group, or a block, that has no other.
_SMALLEST_SHARE = np.float32(2.0**-24)


def column_weights(
    importance: np.ndarray | None, n_cols: int, block_size: int
) -> np.ndarray | None:
    """Weights for a stream of rows, float32 (period,): whole rows and whole tiles; None for None.

    importance: (n_cols,), at least 0; None where all columns count alike. Weights are relative
    to the largest of their block (only ratios within a block matter), and 1 in a block without any.
    Blocks are single values, for which no weight matters, or a multiple of 32.
    Raises ``ValueError`` for another shape, and for numbers that are negative or not finite.
    """
    if importance is None:
        return None
    importance = np.asarray(importance, np.float32)
    if importance.shape != (n_cols,):
        raise ValueError(f"importance of the shape {importance.shape} for {n_cols} columns")
    if not (np.isfinite(importance).all() and (importance >= 0).all()):
        raise ValueError("importance must be finite and at least 0")
    if block_size == 1:
        return None
    blocks = importance.reshape(-1, block_size)
    largest = blocks.max(axis=1, keepdims=True)
    # In float64: the quotient of two subnormal numbers is not exact otherwise on every machine.
    shares = blocks / np.where(largest > 0, largest, 1).astype(np.float64)
    weights = np.where(largest > 0, np.maximum(shares, _SMALLEST_SHARE), 1).astype(np.float32)
    return np.tile(weights.reshape(-1), math.lcm(n_cols, TILE) // n_cols)


def in_order(weights: np.ndarray | None) -> np.ndarray:
    """Weights as kernels take them: ones for None."""
    return np.ones(TILE, np.float32) if weights is None else weights


def in_lanes(weights: np.ndarray | None) -> np.ndarray:
    """``in_order``, in the order of a tile's vectors."""
    weights = in_order(weights)
    return np.ascontiguousarray(weights.reshape(-1, 8, 32).transpose(0, 2, 1)).reshape(-1)
