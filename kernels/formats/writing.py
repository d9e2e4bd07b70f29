"""What compiled code must know of a format to write it: its levels, and where codes go.

Like ``reading``, functions without a Python body: each format's overload stands in.
"""

import numpy as np
from numba.extending import overload

from q4run.kernels.compiling.compile import inline, kernel
from q4run.kernels.formats.base import Format, FormatType
from q4run.kernels.formats.reading import block_bytes, block_size, constant
from q4run.kernels.simd.compare import clamp
from q4run.kernels.simd.ops import round_even, splat, sub
from q4run.kernels.simd.vector import f32x8

lowest = constant("lowest", "``Format.levels[0]`` as a compile-time constant.")
highest = constant("highest", "``Format.levels[-1]`` as a compile-time constant.")
group_size = constant("group_size", "``Format.group_size`` as a compile-time constant.")


def nearest_level(fmt, scaled):
    """Per lane of f32x8, values divided by their scale: the nearest of the format's levels."""
    raise NotImplementedError


def nearest_code(fmt, scaled):
    """The index of ``nearest_level`` in ``Format.levels``, as f32x8."""
    raise NotImplementedError


def pack_codes(fmt, codes, first, raw, at):
    """Writes the codes of the block that begins at byte ``at`` of ``raw``, both uint8 arrays.

    codes: indices into ``Format.levels``, a byte each, the block's own from ``codes[first]`` on.
    """
    raise NotImplementedError


def pack_scales(fmt, factors, scales, minima, raw, at):
    """Writes the scales of the K-quant's block that begins at byte ``at`` of ``raw``.

    factors: two f16 bit patterns, of the scales and of the minima; scales, minima: int32 (16,), a
    group each, as the block has them (a signed scale without the format's offset).
    """
    raise NotImplementedError


@overload(nearest_level, jit_options={"forceinline": True})
def _whole_level(fmt, scaled):
    if isinstance(fmt, FormatType) and fmt.format.has_whole_levels:
        low, high = fmt.format.lowest, fmt.format.highest
        return lambda fmt, scaled: whole_between(scaled, low, high)
    return None


@overload(nearest_code, jit_options={"forceinline": True})
def _whole_code(fmt, scaled):
    if isinstance(fmt, FormatType) and fmt.format.has_whole_levels:
        low, high = fmt.format.lowest, fmt.format.highest
        return lambda fmt, scaled: sub(whole_between(scaled, low, high), splat(f32x8, low))
    return None


@inline
def whole_between(scaled, low, high):
    """Rounded to the nearest integer within ``low`` to ``high``; NaN becomes ``low``."""
    return clamp(round_even(scaled), splat(f32x8, low), splat(f32x8, high))


class Coded(Format):
    """A format that is written by choosing codes: it implements ``pack_codes``."""

    def pack_codes(self, codes: np.ndarray, raw: np.ndarray) -> None:
        _pack_blocks(self, codes.reshape(-1), raw.reshape(-1))


@kernel()
def _pack_blocks(fmt, codes, raw):
    for block in range(len(raw) // block_bytes(fmt)):
        pack_codes(fmt, codes, block * block_size(fmt), raw, block * block_bytes(fmt))
