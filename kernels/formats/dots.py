"""Codes times activations, added up over several vectors of codes: which instructions, by format.

Where bytes are multiplied by pairs into 16 bits, as many of these sums are added up before they are
widened as the format's codes leave room for. Integers: the same result on every machine.
"""

from typing import Any

from numba.extending import overload

from q4run.kernels.compiling.compile import inline
from q4run.kernels.formats.base import FormatType
from q4run.kernels.formats.reading import is_signed
from q4run.kernels.simd.memory import load_four
from q4run.kernels.simd.ops import add, dot_biased, dot_unsigned, splat
from q4run.kernels.simd.pairs import pair_products, sum_of_pairs
from q4run.kernels.simd.vector import i32x8


@inline
def dot_codes(fmt, accumulator, codes_, x):
    """``accumulator`` (i32x8) plus, per row, the products of four codes and four activations."""
    if is_signed(fmt):
        return dot_biased(accumulator, codes_, x)
    return dot_unsigned(accumulator, codes_, x)


def dot_four(fmt, accumulator, c0, c1, c2, c3, q, x):
    """``accumulator`` (i32x8) plus the products of four vectors of ``codes`` and the 16 activations
    from ``q[x]`` on."""
    raise NotImplementedError


def dot_eight(fmt, accumulator, c0, c1, c2, c3, c4, c5, c6, c7, q, x):
    """``accumulator`` (i32x8) plus the products of a group's ``codes`` and its 32 activations, from
    ``q[x]`` on."""
    raise NotImplementedError


def _pairs(fmt: Any) -> int:
    return fmt.format.pairs_at_once if isinstance(fmt, FormatType) else 0


@overload(dot_four, jit_options={"forceinline": True})
def _choose_four(fmt, accumulator, c0, c1, c2, c3, q, x):
    if _pairs(fmt) >= 4:
        return _four_at_once
    return _four_in_twos if _pairs(fmt) >= 2 else _four_by_one


def _four_by_one(fmt, accumulator, c0, c1, c2, c3, q, x):
    accumulator = dot_codes(fmt, accumulator, c0, load_four(q, x))
    accumulator = dot_codes(fmt, accumulator, c1, load_four(q, x + 4))
    accumulator = dot_codes(fmt, accumulator, c2, load_four(q, x + 8))
    return dot_codes(fmt, accumulator, c3, load_four(q, x + 12))


def _four_in_twos(fmt, accumulator, c0, c1, c2, c3, q, x):
    accumulator = add(accumulator, sum_of_pairs(_two(c0, c1, q, x)))
    return add(accumulator, sum_of_pairs(_two(c2, c3, q, x + 8)))


def _four_at_once(fmt, accumulator, c0, c1, c2, c3, q, x):
    return add(accumulator, sum_of_pairs(_four(c0, c1, c2, c3, q, x)))


@overload(dot_eight, jit_options={"forceinline": True})
def _choose_eight(fmt, accumulator, c0, c1, c2, c3, c4, c5, c6, c7, q, x):
    return _eight_at_once if _pairs(fmt) >= 8 else _eight_in_fours


def _eight_in_fours(fmt, accumulator, c0, c1, c2, c3, c4, c5, c6, c7, q, x):
    low = dot_four(fmt, accumulator, c0, c1, c2, c3, q, x)
    return add(low, dot_four(fmt, splat(i32x8, 0), c4, c5, c6, c7, q, x + 16))


def _eight_at_once(fmt, accumulator, c0, c1, c2, c3, c4, c5, c6, c7, q, x):
    pairs = add(_four(c0, c1, c2, c3, q, x), _four(c4, c5, c6, c7, q, x + 16))
    return add(accumulator, sum_of_pairs(pairs))


@inline
def _two(c0, c1, q, x):
    return add(pair_products(c0, load_four(q, x)), pair_products(c1, load_four(q, x + 4)))


@inline
def _four(c0, c1, c2, c3, q, x):
    return add(_two(c0, c1, q, x), _two(c2, c3, q, x + 8))
