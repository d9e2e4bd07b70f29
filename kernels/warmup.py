"""Compiling everything a model will use before the first token, so that it can be shown."""

from collections.abc import Callable, Iterable

import numpy as np

from q4run.kernels.activations import quantize_activations
from q4run.kernels.attention import attend, write_cache
from q4run.kernels.compile import Threaded
from q4run.kernels.elementwise import (
    add_into,
    add_scaled_rows,
    gather_scaled,
    scale_tokens,
    silu_mul,
)
from q4run.kernels.formats import Format
from q4run.kernels.matmul import matmul
from q4run.kernels.norm import rms_norm, rms_norm_heads
from q4run.kernels.rope import rotate_adjacent
from q4run.kernels.routing import top_k

_COLS = 256  # one block of the largest kind


def warm_up(
    formats: Iterable[Format], kv_dtype: type, progress: Callable[[int, int], None] | None = None
) -> None:
    """Calls every kernel once on next to nothing: compiled the first time, else loaded from disk.

    ``progress`` hears of (steps done, steps in all).
    """
    steps: list[Callable[[], object]] = [
        _small_kernels,
        lambda: _attention(kv_dtype),
        lambda: quantize_activations(_zeros(1, _COLS)),
        lambda: silu_mul(_zeros(1, 8), _zeros(1, 8)),
    ]
    for fmt in formats:
        steps.append(lambda fmt=fmt: _matmul(fmt))  # type: ignore[misc]
    for done, step in enumerate(steps):
        with Threaded.every_form():
            step()
        if progress:
            progress(done + 1, len(steps))


def _zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def _matmul(fmt: Format) -> None:
    weights = np.zeros((1, fmt.row_bytes(_COLS)), np.uint8)
    matmul(fmt, weights, _zeros(1, _COLS))


def _attention(kv_dtype: type) -> None:
    cache: np.ndarray = np.zeros((1, 1, 8), kv_dtype)
    heads = _zeros(1, 1, 8)
    write_cache(heads, cache, 0)
    attend(heads, cache, cache, 1, np.float32(1), np.empty_like(heads))


def _small_kernels() -> None:
    x, vector, one = _zeros(1, 8), _zeros(8), np.ones(1, np.float32)
    rms_norm(x, vector, np.float32(1), np.empty_like(x))
    rms_norm_heads(_zeros(1, 1, 8), np.float32(1))
    rotate_adjacent(_zeros(1, 1, 8), _zeros(1, 4), _zeros(1, 4))
    add_into(x, _zeros(1, 8))
    scale_tokens(x, one)
    gather_scaled(x, np.zeros(1, np.int64), one, np.empty_like(x))
    add_scaled_rows(x, _zeros(1, 1, 8), _zeros(1, 1))
    top_k(x, np.zeros((1, 1), np.int64), _zeros(1, 1))
