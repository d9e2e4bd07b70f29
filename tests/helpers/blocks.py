"""Blocks of every type for tests: any codes, scales that are finite; and what a product must be."""

import gguf
import numpy as np

from q4run.kernels.formats import all_formats, find_format_named
from q4run.kernels.formats.base import Format
from q4run.kernels.products.activations import quantize_activations
from q4run.kernels.products.strips import interleave, padded_rows

ALL = sorted(fmt.name for fmt in all_formats())
FLOATS = [fmt.name for fmt in all_formats() if not fmt.int8_activations]
INTEGERS = [name for name in ALL if name not in FLOATS]
QUANTIZED = [fmt.name for fmt in all_formats() if fmt.can_quantize and fmt.int8_activations]

# Where the f16 factor of the scales lies in a block, and that of the minima.
_SCALE = {"q2_k": 80, "q3_k": 108, "q6_k": 208, "tq1_0": 52, "tq2_0": 64}
_MINIMUM = {"q4_1": 2, "q5_1": 2, "q2_k": 82, "q4_k": 2, "q5_k": 2}


def format_named(name: str) -> Format:
    fmt = find_format_named(name)
    assert fmt is not None
    return fmt


def with_factors(fmt: Format, raw: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Blocks uint8 (..., type_size) with their f16 factors, minima's too, set to ``scales`` (...).

    MXFP4 gets the power of two below.
    """
    raw = raw.copy()
    if fmt.name == "mxfp4":
        with np.errstate(divide="ignore"):
            exponents = np.floor(np.log2(np.abs(scales))) + 128
        raw[..., 0] = np.clip(exponents, 0, 254)
        return raw
    for offset in (_SCALE.get(fmt.name, 0), _MINIMUM.get(fmt.name)):
        if offset is not None:
            halves = np.ascontiguousarray(scales, dtype=np.float16)
            raw[..., offset : offset + 2] = halves[..., None].view(np.uint8)
    return raw


def random_blocks(
    fmt: Format, n_rows: int, n_cols: int, rng: np.random.Generator, codes: int | None = None
) -> np.ndarray:
    """uint8 (n_rows, row_bytes): any bytes, or all ``codes``, and scales of either sign.

    Each row has a magnitude of its own.
    """
    magnitudes = 10.0 ** rng.uniform(-2, 2, (n_rows, 1))
    if not fmt.int8_activations:
        return fmt.quantize((rng.standard_normal((n_rows, n_cols)) * magnitudes).astype(np.float32))
    shape = (n_rows, n_cols // fmt.block_size)
    raw = rng.integers(0, 256, (*shape, fmt.type_size)).astype(np.uint8)
    if codes is not None:
        raw[:] = codes
    return with_factors(fmt, raw, rng.uniform(-1, 1, shape) * magnitudes).reshape(
        n_rows, fmt.row_bytes(n_cols)
    )


def random_tokens(n_tokens: int, n_cols: int, rng: np.random.Generator) -> np.ndarray:
    """float32 (n_tokens, n_cols), each token of a magnitude of its own."""
    magnitudes = 10.0 ** rng.uniform(-2, 2, (n_tokens, 1))
    return (rng.standard_normal((n_tokens, n_cols)) * magnitudes).astype(np.float32)


def interleaved(fmt: Format, raw: np.ndarray) -> np.ndarray:
    """The rows as kernels take them."""
    target = np.full((padded_rows(len(raw)), raw.shape[1]), 0xAA, np.uint8)
    interleave(fmt, raw, target)
    return target


def exact_product(fmt: Format, raw: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The product in float64 of what the kernel multiplies, and the sum of all magnitudes.

    The values are as gguf reads them: the reference shares nothing with the code under test.
    """
    wide = x.astype(np.float64)
    if fmt.int8_activations:
        q, scales, _ = quantize_activations(x)
        wide = np.repeat(scales.astype(np.float64), 32, axis=1) * q
    magnitude = np.abs(wide) @ _magnitudes(fmt, raw).T
    return wide @ _dequantized(fmt, raw).T, magnitude


def _magnitudes(fmt: Format, raw: np.ndarray) -> np.ndarray:
    """|scale * code| + |minimum|: the two are added up apart, and may cancel out."""
    if fmt.name not in _MINIMUM:
        return np.abs(_dequantized(fmt, raw))
    total = np.zeros((len(raw), raw.shape[1] // fmt.type_size * fmt.block_size))
    for offset in (_SCALE.get(fmt.name, 0), _MINIMUM[fmt.name]):
        part = raw.copy().reshape(-1, fmt.type_size)
        part[:, offset : offset + 2] = 0
        total += np.abs(_dequantized(fmt, part.reshape(raw.shape)))
    return total


def _dequantized(fmt: Format, raw: np.ndarray) -> np.ndarray:
    values = gguf.quants.dequantize(raw, fmt.ggml_type)
    return values.astype(np.float64).reshape(len(raw), -1)
