"""Blocks of 32 values with f16 scales: what the simple types share."""

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
    raw[:, :SCALE_BYTES] = halves_of(scales)
    return raw


def scales_of(raw: np.ndarray, offset: int = 0) -> np.ndarray:
    """The f16 at byte ``offset`` of each block: uint8 (n, type_size) -> float32 (n, 1)."""
    return raw[:, offset : offset + SCALE_BYTES].copy().view(np.float16).astype(np.float32)


def halves_of(scales: np.ndarray) -> np.ndarray:
    """float32 (n, k) -> the bytes of as many f16, uint8 (n, 2 k); beyond the range infinite."""
    with np.errstate(over="ignore"):
        return scales.astype(np.float16).view(np.uint8)
