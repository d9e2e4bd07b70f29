"""Blocks that begin with an f16 scale, their codes behind it: shared by Q4_0 and Q8_0."""

from collections.abc import Callable

import numpy as np

SCALE_BYTES = 2


def quantize_scaled(
    values: np.ndarray,
    type_size: int,
    quantize: Callable[[np.ndarray, np.ndarray, np.ndarray], None],
) -> np.ndarray:
    """float32 (n, block_size) -> uint8 (n, type_size).

    ``quantize(values, scales, raw)`` fills the scales, float32 (n, 1), and the codes in ``raw``.
    """
    raw = np.empty((len(values), type_size), np.uint8)
    scales = np.empty((len(values), 1), np.float32)
    quantize(values, scales, raw)
    with np.errstate(over="ignore"):
        raw[:, :SCALE_BYTES] = scales.astype(np.float16).view(np.uint8)
    return raw


def scales_of(raw: np.ndarray) -> np.ndarray:
    """uint8 (n, type_size) -> float32 (n, 1)."""
    return raw[:, :SCALE_BYTES].copy().view(np.float16).astype(np.float32)
