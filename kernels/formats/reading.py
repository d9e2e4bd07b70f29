"""How compiled code reads a format's weights, once eight rows of them are interleaved in RAM.

The functions have no Python body: in compiled code each format's overload stands in. ``weights``
is a uint8 pointer and ``at`` the byte where the eight rows' blocks begin.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numba.extending import overload

from q4run.kernels.compiling.compile import inline
from q4run.kernels.formats.base import Format, FormatType
from q4run.kernels.simd.casts import to_float
from q4run.kernels.simd.ops import add, fma, mul, splat
from q4run.kernels.simd.vector import f32x8, i32x8


def codes(fmt, weights, at, group):
    """32 columns of eight rows: a tuple of eight u8x32, four columns each.

    Lane 4 r + c of vector v is the code of row r in column 32 group + 4 v + c of the block.
    """
    raise NotImplementedError


def scale(fmt, weights, at, group, half):
    """The scale of each of eight rows for those columns, as f32x8; ``half`` is 0 or 1, for formats
    whose scales are shared by 16 values."""
    raise NotImplementedError


def minimum(fmt, weights, at, group, half):
    """What is added to every value of those columns, as f32x8 (formats that have a minimum)."""
    raise NotImplementedError


@overload(minimum)
def _no_minimum(fmt, weights, at, group, half):
    if isinstance(fmt, FormatType) and not fmt.format.has_minimum:
        return lambda fmt, weights, at, group, half: splat(f32x8, 0.0)
    return None


def block_sums(fmt, weights, at, q, x):
    """The sums of code times activation of each group of a block: a tuple of eight i32x8.

    For formats with ``block_at_once``, whose groups are cheaper to unpack together; ``q[x]`` is the
    activation of the block's first column.
    """
    raise NotImplementedError


@overload(block_sums)
def _no_block_sums(fmt, weights, at, q, x):
    if isinstance(fmt, FormatType) and not fmt.format.block_at_once:

        def zeros(fmt, weights, at, q, x):
            none = splat(i32x8, 0)
            return none, none, none, none, none, none, none, none

        return zeros
    return None


def values(fmt, weights, at):
    """One column of eight rows as f32x8 (float types)."""
    raise NotImplementedError


def implements(function: Callable, fmt: Format) -> Callable[[Callable], Callable]:
    """Makes the decorated function the body of ``function`` for one format."""

    def decorate(body: Callable) -> Callable:
        @overload(function, strict=False, jit_options={"forceinline": True})
        def choose(first: Any, *_: Any) -> Callable | None:
            return body if first is fmt.numba_type else None

        return body

    return decorate


def constant(name: str, doc: str) -> Any:
    """A function of a format that is an attribute of it, known when kernels are compiled."""

    def value_of(fmt):
        raise NotImplementedError

    @overload(value_of)
    def _overload(fmt):
        if isinstance(fmt, FormatType):
            value = getattr(fmt.format, name)
            return lambda fmt: value
        return None

    value_of.__doc__ = doc
    return value_of


block_size = constant("block_size", "``Format.block_size`` as a compile-time constant.")
block_bytes = constant("type_size", "``Format.type_size`` as a compile-time constant.")
zero_code = constant("zero", "``Format.zero`` as a compile-time constant.")
is_signed = constant("signed", "``Format.signed`` as a compile-time constant.")
has_minimum = constant("has_minimum", "``Format.has_minimum`` as a compile-time constant.")
block_at_once = constant("block_at_once", "``Format.block_at_once`` as a compile-time constant.")
half_groups = constant("half_groups", "``Format.half_groups`` as a compile-time constant.")


@inline
def each_vector(code, weights, at, group):
    """``codes`` of a format whose vectors are read alike: ``code(weights, at, group, vector)``."""
    return (
        code(weights, at, group, 0),
        code(weights, at, group, 1),
        code(weights, at, group, 2),
        code(weights, at, group, 3),
        code(weights, at, group, 4),
        code(weights, at, group, 5),
        code(weights, at, group, 6),
        code(weights, at, group, 7),
    )


@inline
def add_products(fmt, total, products, factor, lowest, x_scale, x_sum):
    """``total`` (f32x8) plus eight rows' sums of code times activation, i32x8, as the values' own.

    factor, lowest: ``scale`` and ``minimum`` of the codes. x_scale, x_sum: the activations' scale,
    and the sum of their codes. The only place where sums are rounded: the same for one token and
    for many.
    """
    scaled = mul(factor, splat(f32x8, x_scale))
    if has_minimum(fmt):
        # Not two steps of ``total``, each of which would have to wait for the one before.
        below = mul(lowest, splat(f32x8, x_scale * np.float32(x_sum)))
        return add(total, fma(to_float(products), scaled, below))
    return fma(to_float(products), scaled, total)
