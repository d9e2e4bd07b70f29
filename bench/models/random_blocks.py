"""Random blocks of any GGUF type, made without a quantiser: random codes, then fitting scales.

Where a block's scales lie, and which codes there are, is that of llama.cpp's ``ggml-common.h``;
what the codes mean is left to ``gguf.quants``, which dequantises them.
"""

from dataclasses import dataclass
from itertools import product

import gguf
import ml_dtypes
import numpy as np
from gguf.quants import dequantize

from q4run.errors import Error

# Ternary digits are five to a byte (TQ1_0; the last four bytes of a block hold four), rounded up
# to 256 / 243, or two bits each, of which 3 means nothing (TQ2_0).
_FIVE_DIGITS = [-(-number * 256 // 243) for number in range(243)]
_FOUR_DIGITS = _FIVE_DIGITS[::3]
_TWO_BIT_DIGITS = [a | b << 2 | c << 4 | d << 6 for a, b, c, d in product(range(3), repeat=4)]
_SAME_NIBBLES = [0x11 * nibble for nibble in range(16)]
_NOT_MINUS_128 = [code for code in range(256) if code != 0x80]


@dataclass(frozen=True)
class Layout:
    """The scale fields of a block, as byte offsets; all other bytes are codes.

    ``minimum`` is the float16 that multiplies a type's minima (or is the minimum), ``exponent``
    the power of two that MXFP4 has for a scale. ``codes`` restricts bytes (first, end) to those
    that a quantiser writes; all others may have any value. ``copy`` is (from, to, count).

    A sub-block's minimum is as large as its scale, so that its values lie around zero as those of
    real weights do. Were they apart, its values would share an offset.
    """

    scale: int | None = None
    minimum: int | None = None
    exponent: int | None = None
    codes: tuple[tuple[int, int, list[int]], ...] = ()
    copy: tuple[int, int, int] | None = None


_LAYOUTS = {
    "q8_0": Layout(0, codes=((2, 34, _NOT_MINUS_128),)),
    "q4_0": Layout(0),
    "q4_1": Layout(0, minimum=2),
    "q5_0": Layout(0),
    "q5_1": Layout(0, minimum=2),
    "q2_k": Layout(80, minimum=82, codes=((0, 16, _SAME_NIBBLES),)),
    "q3_k": Layout(108),
    "q4_k": Layout(0, minimum=2, codes=((12, 16, _SAME_NIBBLES),), copy=(4, 8, 4)),
    "q5_k": Layout(0, minimum=2, codes=((12, 16, _SAME_NIBBLES),), copy=(4, 8, 4)),
    "q6_k": Layout(208),
    "iq4_nl": Layout(0),
    "iq4_xs": Layout(0),
    "iq3_s": Layout(0),
    "iq3_xxs": Layout(0),
    "iq2_s": Layout(0),
    "iq2_xs": Layout(0),
    "iq2_xxs": Layout(0),
    "iq1_s": Layout(0),
    "tq1_0": Layout(52, codes=((0, 48, _FIVE_DIGITS), (48, 52, _FOUR_DIGITS))),
    "tq2_0": Layout(64, codes=((0, 64, _TWO_BIT_DIGITS),)),
    "mxfp4": Layout(exponent=0),
}
_FLOATS = {"f32": np.float32, "f16": np.float16, "bf16": ml_dtypes.bfloat16}
TYPES = (*_FLOATS, *_LAYOUTS)


def find_type(name: str) -> gguf.GGMLQuantizationType:
    """The GGUF type of that lower-case name; Error where no random blocks of it can be made."""
    if name not in TYPES:
        raise Error(f"no random blocks of the type '{name}' can be made; choose {', '.join(TYPES)}")
    return gguf.GGMLQuantizationType[name.upper()]


def random_blocks(name: str, n_blocks: int, std: float, rng: np.random.Generator) -> np.ndarray:
    """uint8 (n_blocks, bytes of a block) whose values have mean 0 and standard deviation ``std``.

    Every code is as likely as any other, and scales differ by up to a factor of three. A type with
    minima has mean 0 within every block; any other, over many of them: half its scales are
    negative, since its codes may reach further down than up.
    """
    ggml_type = find_type(name)
    if name in _FLOATS:
        values = rng.standard_normal((n_blocks, 1), np.float32) * np.float32(std)
        return values.astype(_FLOATS[name]).view(np.uint8)
    layout = _LAYOUTS[name]
    blocks = rng.integers(0, 256, (n_blocks, gguf.GGML_QUANT_SIZES[ggml_type][1]), np.uint8)
    for first, end, codes in layout.codes:
        blocks[:, first:end] = rng.choice(np.array(codes, np.uint8), (n_blocks, end - first))
    if layout.copy:
        source, target, count = layout.copy
        blocks[:, target : target + count] = blocks[:, source : source + count]
    if layout.exponent is not None:
        _set_exponents(blocks, ggml_type, layout.exponent, std, rng)
    else:
        _set_scales(blocks, ggml_type, layout, std, rng)
    return blocks


def _set_scales(
    blocks: np.ndarray,
    ggml_type: gguf.GGMLQuantizationType,
    layout: Layout,
    std: float,
    rng: np.random.Generator,
) -> None:
    assert layout.scale is not None
    scales = rng.uniform(0.5, 1.5, len(blocks))
    _write_f16(blocks, layout.scale, 1.0)
    if layout.minimum is None:
        values = dequantize(blocks, ggml_type)
        scales *= rng.choice([-1.0, 1.0], len(blocks))
    else:
        _write_f16(blocks, layout.minimum, 0.0)
        values = dequantize(blocks, ggml_type)
        _write_f16(blocks, layout.scale, 0.0)
        _write_f16(blocks, layout.minimum, 1.0)
        minima = dequantize(blocks, ggml_type)
        minimum_per_scale = -values.mean(axis=1) / minima.mean(axis=1)
        values += minimum_per_scale[:, None] * minima
    scales *= std / np.sqrt(np.mean((scales[:, None] * values) ** 2))
    _write_f16(blocks, layout.scale, scales)
    if layout.minimum is not None:
        _write_f16(blocks, layout.minimum, minimum_per_scale * scales)


def _set_exponents(
    blocks: np.ndarray,
    ggml_type: gguf.GGMLQuantizationType,
    offset: int,
    std: float,
    rng: np.random.Generator,
) -> None:
    """Draws between the two powers of two around the right scale, so that the variance is right."""
    one = 127
    blocks[:, offset] = one
    wanted = std**2 / np.mean(dequantize(blocks, ggml_type).astype(np.float64) ** 2)
    below = np.floor(np.log2(wanted) / 2)
    share_above = (wanted / 4**below - 1) / 3
    blocks[:, offset] = one + below + (rng.random(len(blocks)) < share_above)


def _write_f16(blocks: np.ndarray, offset: int, values: np.ndarray | float) -> None:
    blocks[:, offset : offset + 2] = (
        np.broadcast_to(np.asarray(values, np.float16), len(blocks)).reshape(-1, 1).view(np.uint8)
    )
