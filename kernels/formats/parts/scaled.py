"""Blocks of 32 values with f16 scales: what the simple types share."""

from collections.abc import Callable

import numpy as np

from q4run.kernels.formats.quantize.affine import AFFINE_SEARCH, QUICK_AFFINE_SEARCH
from q4run.kernels.formats.quantize.blocks import quantize_affine, quantize_symmetric
from q4run.kernels.formats.quantize.symmetric import ScaleSearch
from q4run.kernels.formats.writing import Coded

SCALE_BYTES = 2


class Scaled(Coded):
    """A block begins with its f16 scale; value = scale * level.

    search: of the scale, where columns count differently; quick_search where all count alike.
    """

    search: ScaleSearch
    quick_search: ScaleSearch

    def quantize_blocks(self, values: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
        search = self.quick_search if weights is None else self.search
        return quantize_symmetric(self, values, weights, search)

    def unpack_scales(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        scales = scales_of(raw)
        return scales, np.zeros_like(scales)


class ScaledFromMinimum(Coded):
    """A block begins with its f16 scale and its f16 minimum; value = scale * code + minimum."""

    def quantize_blocks(self, values: np.ndarray, weights: np.ndarray | None) -> np.ndarray:
        search = QUICK_AFFINE_SEARCH if weights is None else AFFINE_SEARCH
        return quantize_affine(self, values, weights, search)

    def unpack_scales(self, raw: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return scales_of(raw), scales_of(raw, SCALE_BYTES)


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
