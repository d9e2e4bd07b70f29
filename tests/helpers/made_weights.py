"""Weights to quantise: usual ones, and every kind that is hard for some quantiser."""

import numpy as np


def weights_of_many_kinds() -> dict[str, np.ndarray]:
    """float32 (n, 256) by kind: outliers, ties, one sign only, zeros, every magnitude."""
    rng = np.random.default_rng(7)
    usual = rng.standard_normal((400, 256))
    ties = rng.integers(-254, 255, (100, 256)) / 2  # halves of a scale of 1 in q8_0
    ties[:, ::32] = 127
    eighths = rng.integers(-16, 17, (100, 256)) / 2  # halves of a scale of -1 or 1 in q4_0
    eighths[:, ::32] = 8 * np.sign(rng.standard_normal((100, 8)))
    one_sign = np.abs(usual[:50])
    constants = np.repeat(rng.standard_normal((50, 8)), 32, axis=1)
    edges = np.zeros((2, 256))
    edges[1] = 1
    kinds = {
        "usual": usual,
        "heavy tails": rng.standard_t(3, (200, 256)),
        "outliers": usual[:100] * np.where(rng.random((100, 256)) < 0.01, 50, 1),
        "ties": ties,
        "eighths": eighths,
        "positive": one_sign,
        "negative": -one_sign,
        "far from zero": 100 + usual[:50],
        "constants": constants,
        "magnitudes": usual[:200] * 10.0 ** rng.uniform(-12, 4, (200, 1)),
        "sparse": usual[:50] * (rng.random((50, 256)) < 0.05),
        "ternary": rng.integers(-1, 2, (50, 256)) * np.float16(0.037),
        "edges": edges,
    }
    # No -0: gguf and ggml differ in the sign of the scale of a q4_0 block that begins with one.
    return {name: values.astype(np.float32) + np.float32(0) for name, values in kinds.items()}


def importance_of_columns(n_cols: int) -> np.ndarray:
    """float32 (n_cols,): very different weights, some of them zero."""
    rng = np.random.default_rng(17)
    importance = rng.lognormal(0, 1.5, n_cols)
    importance[rng.random(n_cols) < 0.02] = 0
    return importance.astype(np.float32)


def relative_errors(
    values: np.ndarray, stored: np.ndarray, importance: np.ndarray | None
) -> np.ndarray:
    """Each row's (weighted) squared error over its weighted squares, float64; 0 for zeros."""
    weights = np.ones(values.shape[1]) if importance is None else importance.astype(np.float64)
    errors = (weights * (stored.astype(np.float64) - values) ** 2).sum(axis=1)
    energy = (weights * values.astype(np.float64) ** 2).sum(axis=1)
    return errors / np.where(energy > 0, energy, 1)
