"""Tiles of 16 rows by 4 tokens over a panel of unpacked codes, their sums kept in registers.

A panel holds, group by group, the codes of two strips as bytes, then the scales and minima of all
groups as floats; ``panels`` fills it.
"""

from typing import Any

from numba.extending import overload

from q4run.kernels.compiling.compile import apart, inline
from q4run.kernels.formats.base import FormatType
from q4run.kernels.formats.dots import dot_codes
from q4run.kernels.formats.reading import (
    add_products,
    block_bytes,
    block_size,
    half_groups,
    has_minimum,
    zero_code,
)
from q4run.kernels.products.strips import ROWS
from q4run.kernels.simd.matrices import HAS_MATRICES, by_turns, dot_matrices, taken_apart
from q4run.kernels.simd.memory import load_f32x8_bytes, load_four, load_u8x32, prefetch
from q4run.kernels.simd.ops import add, splat
from q4run.kernels.simd.pairs import HAS_PAIRS, keep_loops, pair_products, sum_of_pairs
from q4run.kernels.simd.tails import load_some, store_some
from q4run.kernels.simd.vector import f32x8, i16x16, i32x8

GROUPS = 32  # of 32 columns in a panel: 16 kB of codes
CODES = 512  # bytes of a group's codes: 8 vectors of each strip
FACTORS = 64  # bytes of the scales, or minima, of 16 rows
_as_tile = apart if HAS_PAIRS else inline

# A pair of vectors is of two chunks' codes, or of two tokens' sums.
if HAS_MATRICES:
    paired, _unpaired = by_turns, taken_apart

    @inline
    def _dot_pair(fmt, first, second, low, high, q, at, other):
        return dot_matrices(first, second, low, high, q, at, other)

else:

    @inline
    def paired(a, b):
        return a, b

    _unpaired = paired

    @inline
    def _dot_pair(fmt, first, second, low, high, q, at, other):
        """Two tokens' sums plus the products of two chunks of codes and their activations."""
        first = dot_codes(fmt, first, low, load_four(q, at))
        second = dot_codes(fmt, second, low, load_four(q, other))
        first = dot_codes(fmt, first, high, load_four(q, at + 4))
        second = dot_codes(fmt, second, high, load_four(q, other + 4))
        return first, second


def _tile_sums(fmt, panel, at, n_chunks, q, x0, x1, x2, x3, z0, z1, z2, z3):
    """``z0`` to ``z3`` (i32x8) plus four tokens' products with some chunks of the first strip, and
    the same of the second."""
    raise NotImplementedError


@overload(_tile_sums, jit_options={"forceinline": True})
def _choose_sums(fmt, panel, at, n_chunks, q, x0, x1, x2, x3, z0, z1, z2, z3):
    if not HAS_PAIRS:
        return _sums_by_twos
    at_once = fmt.format.pairs_at_once if isinstance(fmt, FormatType) else 0
    if at_once >= 4:
        return _sums_in_pairs(8 if at_once >= 8 else 4)
    return _sums_in_pairs_by_twos if at_once >= 2 else _sums_by_one


def _sums_by_twos(fmt, panel, at, n_chunks, q, x0, x1, x2, x3, z0, z1, z2, z3):
    i0, i1 = j0, j1 = paired(z0, z1)
    i2, i3 = j2, j3 = paired(z2, z3)
    for chunk in range(0, n_chunks, 2):
        w0, w1 = load_u8x32(panel, at), load_u8x32(panel, at + 64)
        v0, v1 = load_u8x32(panel, at + 32), load_u8x32(panel, at + 96)
        x = 4 * chunk
        i0, i1 = _dot_pair(fmt, i0, i1, w0, w1, q, x0 + x, x1 + x)
        j0, j1 = _dot_pair(fmt, j0, j1, v0, v1, q, x0 + x, x1 + x)
        i2, i3 = _dot_pair(fmt, i2, i3, w0, w1, q, x2 + x, x3 + x)
        j2, j3 = _dot_pair(fmt, j2, j3, v0, v1, q, x2 + x, x3 + x)
        at += 128
    i0, i1 = _unpaired(i0, i1)
    j0, j1 = _unpaired(j0, j1)
    i2, i3 = _unpaired(i2, i3)
    j2, j3 = _unpaired(j2, j3)
    return i0, i1, i2, i3, j0, j1, j2, j3


def _sums_in_pairs(at_once: int) -> Any:
    """``_tile_sums`` of codes small enough for ``at_once`` sums of pairs to be added up."""

    def sums(fmt, panel, at, n_chunks, q, x0, x1, x2, x3, z0, z1, z2, z3):
        i0, i1, i2, i3 = j0, j1, j2, j3 = z0, z1, z2, z3
        step = min(at_once, n_chunks)
        for first in range(0, n_chunks, step):
            p0 = p1 = p2 = p3 = r0 = r1 = r2 = r3 = splat(i16x16, 0)
            for chunk in range(first, first + step):
                w, v = load_u8x32(panel, at + 64 * chunk), load_u8x32(panel, at + 64 * chunk + 32)
                x = load_four(q, x0 + 4 * chunk)
                p0, r0 = add(p0, pair_products(w, x)), add(r0, pair_products(v, x))
                x = load_four(q, x1 + 4 * chunk)
                p1, r1 = add(p1, pair_products(w, x)), add(r1, pair_products(v, x))
                x = load_four(q, x2 + 4 * chunk)
                p2, r2 = add(p2, pair_products(w, x)), add(r2, pair_products(v, x))
                x = load_four(q, x3 + 4 * chunk)
                p3, r3 = add(p3, pair_products(w, x)), add(r3, pair_products(v, x))
            i0, j0 = add(i0, sum_of_pairs(p0)), add(j0, sum_of_pairs(r0))
            i1, j1 = add(i1, sum_of_pairs(p1)), add(j1, sum_of_pairs(r1))
            i2, j2 = add(i2, sum_of_pairs(p2)), add(j2, sum_of_pairs(r2))
            i3, j3 = add(i3, sum_of_pairs(p3)), add(j3, sum_of_pairs(r3))
        return i0, i1, i2, i3, j0, j1, j2, j3

    return sums


def _sums_in_pairs_by_twos(fmt, panel, at, n_chunks, q, x0, x1, x2, x3, z0, z1, z2, z3):
    i0, i1, i2, i3 = j0, j1, j2, j3 = z0, z1, z2, z3
    for _ in range(0, n_chunks, 2):
        w0, w1 = load_u8x32(panel, at), load_u8x32(panel, at + 64)
        v0, v1 = load_u8x32(panel, at + 32), load_u8x32(panel, at + 96)
        i0, j0 = _add_twos(i0, j0, w0, w1, v0, v1, q, x0)
        i1, j1 = _add_twos(i1, j1, w0, w1, v0, v1, q, x1)
        i2, j2 = _add_twos(i2, j2, w0, w1, v0, v1, q, x2)
        i3, j3 = _add_twos(i3, j3, w0, w1, v0, v1, q, x3)
        at, x0, x1, x2, x3 = at + 128, x0 + 8, x1 + 8, x2 + 8, x3 + 8
    return i0, i1, i2, i3, j0, j1, j2, j3


@inline
def _add_twos(i, j, w0, w1, v0, v1, q, x):
    first, second = load_four(q, x), load_four(q, x + 4)
    i = add(i, sum_of_pairs(add(pair_products(w0, first), pair_products(w1, second))))
    return i, add(j, sum_of_pairs(add(pair_products(v0, first), pair_products(v1, second))))


def _sums_by_one(fmt, panel, at, n_chunks, q, x0, x1, x2, x3, z0, z1, z2, z3):
    i0, i1, i2, i3 = j0, j1, j2, j3 = z0, z1, z2, z3
    for chunk in range(n_chunks):
        w, v = load_u8x32(panel, at + 64 * chunk), load_u8x32(panel, at + 64 * chunk + 32)
        x = load_four(q, x0 + 4 * chunk)
        i0, j0 = dot_codes(fmt, i0, w, x), dot_codes(fmt, j0, v, x)
        x = load_four(q, x1 + 4 * chunk)
        i1, j1 = dot_codes(fmt, i1, w, x), dot_codes(fmt, j1, v, x)
        x = load_four(q, x2 + 4 * chunk)
        i2, j2 = dot_codes(fmt, i2, w, x), dot_codes(fmt, j2, v, x)
        x = load_four(q, x3 + 4 * chunk)
        i3, j3 = dot_codes(fmt, i3, w, x), dot_codes(fmt, j3, v, x)
    return i0, i1, i2, i3, j0, j1, j2, j3


@inline
def sums_so_far(out, token, n_rows, strip, first):
    """The sums so far of a token's eight rows."""
    if first == 0:
        return splat(f32x8, 0.0)
    return load_some(out, token * n_rows + ROWS * strip, n_rows - ROWS * strip)


@_as_tile
def tile_int8(
    fmt,
    weights,
    following,
    panel,
    strip,
    second,
    n_rows,
    n_groups,
    first,
    count,
    token,
    n_tokens,
    q,
    scales,
    sums,
    out,
):
    """16 rows times 4 tokens; past the last token the same one is computed again.

    following: the group of the matrix that the next panel begins with. Memory brings it while the
    first tile is computed.
    """
    keep_loops()
    last = n_tokens - 1
    t0, t1, t2, t3 = token, min(token + 1, last), min(token + 2, last), min(token + 3, last)
    a0, b0 = sums_so_far(out, t0, n_rows, strip, first), sums_so_far(out, t0, n_rows, second, first)
    a1, b1 = sums_so_far(out, t1, n_rows, strip, first), sums_so_far(out, t1, n_rows, second, first)
    a2, b2 = sums_so_far(out, t2, n_rows, strip, first), sums_so_far(out, t2, n_rows, second, first)
    a3, b3 = sums_so_far(out, t3, n_rows, strip, first), sums_so_far(out, t3, n_rows, second, first)
    n_parts = 2 if half_groups(fmt) else 1
    n_bytes = ROWS * block_bytes(fmt) * 32 // block_size(fmt)
    for i in range(count):
        if token == 0:
            for line in range(0, n_bytes, 64):
                prefetch(weights, n_bytes * (following + i) + line)
                prefetch(weights, n_bytes * (following + n_groups + i) + line)
        g0, g1 = t0 * n_groups + first + i, t1 * n_groups + first + i
        g2, g3 = t2 * n_groups + first + i, t3 * n_groups + first + i
        for part in range(n_parts):
            s0, s1 = _sum(fmt, sums, g0, part), _sum(fmt, sums, g1, part)
            s2, s3 = _sum(fmt, sums, g2, part), _sum(fmt, sums, g3, part)
            zero = -zero_code(fmt)
            z0, z1 = splat(i32x8, zero * s0), splat(i32x8, zero * s1)
            z2, z3 = splat(i32x8, zero * s2), splat(i32x8, zero * s3)
            n_chunks = 8 // n_parts
            at, x = CODES * i + 64 * n_chunks * part, 4 * n_chunks * part
            x0, x1, x2, x3 = 32 * g0 + x, 32 * g1 + x, 32 * g2 + x, 32 * g3 + x
            i0, i1, i2, i3, j0, j1, j2, j3 = _tile_sums(
                fmt, panel, at, n_chunks, q, x0, x1, x2, x3, z0, z1, z2, z3
            )
            factors = GROUPS * CODES + 4 * FACTORS * i + FACTORS * part
            f0, f1 = load_f32x8_bytes(panel, factors), load_f32x8_bytes(panel, factors + 32)
            m0 = m1 = f0
            if has_minimum(fmt):
                minima = factors + 2 * FACTORS
                m0, m1 = load_f32x8_bytes(panel, minima), load_f32x8_bytes(panel, minima + 32)
            y0, y1, y2, y3 = scales[g0], scales[g1], scales[g2], scales[g3]
            a0, b0 = (
                add_products(fmt, a0, i0, f0, m0, y0, s0),
                add_products(fmt, b0, j0, f1, m1, y0, s0),
            )
            a1, b1 = (
                add_products(fmt, a1, i1, f0, m0, y1, s1),
                add_products(fmt, b1, j1, f1, m1, y1, s1),
            )
            a2, b2 = (
                add_products(fmt, a2, i2, f0, m0, y2, s2),
                add_products(fmt, b2, j2, f1, m1, y2, s2),
            )
            a3, b3 = (
                add_products(fmt, a3, i3, f0, m0, y3, s3),
                add_products(fmt, b3, j3, f1, m1, y3, s3),
            )
    store_sums(out, n_rows, strip, (t0, t1, t2, t3), (a0, a1, a2, a3))
    store_sums(out, n_rows, second, (t0, t1, t2, t3), (b0, b1, b2, b3))


@inline
def _sum(fmt, sums, group, part):
    """The sum of a token's codes over what shares a scale."""
    if half_groups(fmt):
        last = sums[2 * group + 1]
        return last if part else sums[2 * group] - last
    return sums[2 * group]


@inline
def store_sums(out, n_rows, strip, tokens, totals):
    left = n_rows - ROWS * strip
    store_some(out, tokens[0] * n_rows + ROWS * strip, totals[0], left)
    store_some(out, tokens[1] * n_rows + ROWS * strip, totals[1], left)
    store_some(out, tokens[2] * n_rows + ROWS * strip, totals[2], left)
    store_some(out, tokens[3] * n_rows + ROWS * strip, totals[3], left)
