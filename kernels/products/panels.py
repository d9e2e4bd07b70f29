"""Products for many tokens: weights unpacked once for all of them, sums kept in registers.

Two strips (16 rows) are unpacked, some columns at a time, into a panel that stays in the first
cache: codes as bytes and scales as floats, in the same form whatever the format. Then tiles of 16
rows by 4 tokens run over it (Goto & van de Geijn, ACM TOMS 34(3), 2008).
"""

from q4run.kernels.compiling.compile import inline
from q4run.kernels.formats.reading import (
    add_products,
    block_bytes,
    block_size,
    codes,
    dot_codes,
    half_groups,
    has_minimum,
    minimum,
    scale,
    values,
    zero_code,
)
from q4run.kernels.products.strips import ROWS
from q4run.kernels.simd.matrices import HAS_MATRICES, by_turns, dot_matrices, taken_apart
from q4run.kernels.simd.memory import (
    load_f32x8_bytes,
    load_four,
    load_u8x32,
    prefetch,
    stack_bytes,
    store,
)
from q4run.kernels.simd.ops import fma, splat
from q4run.kernels.simd.tails import load_some, store_some
from q4run.kernels.simd.vector import f32x8, i32x8

_GROUPS = 32  # of 32 columns in a panel: 16 kB of codes
_CODES = 512  # bytes of a group's codes: 8 vectors of each strip
_FACTORS = 64  # bytes of the scales, or minima, of 16 rows
_FLOAT_COLS = 256  # columns of a panel of floats: 16 kB
_INT8_PANEL_BYTES = _GROUPS * (_CODES + 4 * _FACTORS)
_FLOAT_PANEL_BYTES = 64 * _FLOAT_COLS
_PREFETCH_BYTES = 4096  # of floats

# A pair of vectors is of two chunks' codes, or of two tokens' sums.
if HAS_MATRICES:
    _paired, _unpaired = by_turns, taken_apart

    @inline
    def _dot_pair(fmt, first, second, low, high, q, at, other):
        return dot_matrices(first, second, low, high, q, at, other)

else:

    @inline
    def _paired(a, b):
        return a, b

    _unpaired = _paired

    @inline
    def _dot_pair(fmt, first, second, low, high, q, at, other):
        """Two tokens' sums plus the products of two chunks of codes and their activations."""
        first = dot_codes(fmt, first, low, load_four(q, at))
        second = dot_codes(fmt, second, low, load_four(q, other))
        first = dot_codes(fmt, first, high, load_four(q, at + 4))
        second = dot_codes(fmt, second, high, load_four(q, other + 4))
        return first, second


@inline
def multiply_panel_int8(fmt, weights, strip, end, n_rows, n_cols, n_tokens, q, scales, sums, out):
    """Two strips (or one, at ``end - 1``) times all tokens."""
    panel = stack_bytes(_INT8_PANEL_BYTES)
    n_groups = n_cols // 32
    second = min(strip + 1, end - 1)
    for first in range(0, n_groups, _GROUPS):
        count = min(_GROUPS, n_groups - first)
        is_last = first + _GROUPS >= n_groups
        following = strip * n_groups + (2 * n_groups if is_last else first + _GROUPS)
        _unpack(fmt, weights, strip, n_groups, first, count, panel, 0)
        _unpack(fmt, weights, second, n_groups, first, count, panel, 1)
        for token in range(0, n_tokens, 4):
            _tile_int8(
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
            )


@inline
def _unpack(fmt, weights, strip, n_groups, first, count, panel, place):
    """One strip's codes and scales of ``count`` groups, as the first or second of the panel."""
    per_block = block_size(fmt) // 32
    block = ROWS * block_bytes(fmt)
    at = (strip * n_groups + first) // per_block * block
    for i in range(0, count, per_block):
        for group in range(per_block):
            _unpack_group(fmt, weights, at, group, panel, i + group, place)
        at += block


@inline
def _unpack_group(fmt, weights, at, group, panel, i, place):
    c0, c1, c2, c3, c4, c5, c6, c7 = codes(fmt, weights, at, group)
    c0, c1 = _paired(c0, c1)
    c2, c3 = _paired(c2, c3)
    c4, c5 = _paired(c4, c5)
    c6, c7 = _paired(c6, c7)
    target = _CODES * i + 32 * place
    store(panel, target, c0)
    store(panel, target + 64, c1)
    store(panel, target + 128, c2)
    store(panel, target + 192, c3)
    store(panel, target + 256, c4)
    store(panel, target + 320, c5)
    store(panel, target + 384, c6)
    store(panel, target + 448, c7)
    target = _GROUPS * _CODES + 4 * _FACTORS * i + 32 * place
    store(panel, target, scale(fmt, weights, at, group, 0))
    if half_groups(fmt):
        store(panel, target + _FACTORS, scale(fmt, weights, at, group, 1))
    if has_minimum(fmt):
        store(panel, target + 2 * _FACTORS, minimum(fmt, weights, at, group, 0))
        if half_groups(fmt):
            store(panel, target + 3 * _FACTORS, minimum(fmt, weights, at, group, 1))


@inline
def _start(out, token, n_rows, strip, first):
    """The sums so far of a token's eight rows."""
    if first == 0:
        return splat(f32x8, 0.0)
    return load_some(out, token * n_rows + ROWS * strip, n_rows - ROWS * strip)


@inline
def _tile_int8(
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
    last = n_tokens - 1
    t0, t1, t2, t3 = token, min(token + 1, last), min(token + 2, last), min(token + 3, last)
    a0, b0 = _start(out, t0, n_rows, strip, first), _start(out, t0, n_rows, second, first)
    a1, b1 = _start(out, t1, n_rows, strip, first), _start(out, t1, n_rows, second, first)
    a2, b2 = _start(out, t2, n_rows, strip, first), _start(out, t2, n_rows, second, first)
    a3, b3 = _start(out, t3, n_rows, strip, first), _start(out, t3, n_rows, second, first)
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
            i0, i1 = j0, j1 = _paired(splat(i32x8, zero * s0), splat(i32x8, zero * s1))
            i2, i3 = j2, j3 = _paired(splat(i32x8, zero * s2), splat(i32x8, zero * s3))
            for chunk in range(8 // n_parts * part, 8 // n_parts * (part + 1), 2):
                at, x = _CODES * i + 64 * chunk, 4 * chunk
                w0, w1 = load_u8x32(panel, at), load_u8x32(panel, at + 64)
                v0, v1 = load_u8x32(panel, at + 32), load_u8x32(panel, at + 96)
                x0, x1, x2, x3 = 32 * g0 + x, 32 * g1 + x, 32 * g2 + x, 32 * g3 + x
                i0, i1 = _dot_pair(fmt, i0, i1, w0, w1, q, x0, x1)
                j0, j1 = _dot_pair(fmt, j0, j1, v0, v1, q, x0, x1)
                i2, i3 = _dot_pair(fmt, i2, i3, w0, w1, q, x2, x3)
                j2, j3 = _dot_pair(fmt, j2, j3, v0, v1, q, x2, x3)
            i0, i1 = _unpaired(i0, i1)
            j0, j1 = _unpaired(j0, j1)
            i2, i3 = _unpaired(i2, i3)
            j2, j3 = _unpaired(j2, j3)
            factors = _GROUPS * _CODES + 4 * _FACTORS * i + _FACTORS * part
            f0, f1 = load_f32x8_bytes(panel, factors), load_f32x8_bytes(panel, factors + 32)
            m0 = m1 = f0
            if has_minimum(fmt):
                minima = factors + 2 * _FACTORS
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
    _finish(out, n_rows, strip, (t0, t1, t2, t3), (a0, a1, a2, a3))
    _finish(out, n_rows, second, (t0, t1, t2, t3), (b0, b1, b2, b3))


@inline
def _sum(fmt, sums, group, part):
    """The sum of a token's codes over what shares a scale."""
    if half_groups(fmt):
        last = sums[2 * group + 1]
        return last if part else sums[2 * group] - last
    return sums[2 * group]


@inline
def _finish(out, n_rows, strip, tokens, totals):
    left = n_rows - ROWS * strip
    store_some(out, tokens[0] * n_rows + ROWS * strip, totals[0], left)
    store_some(out, tokens[1] * n_rows + ROWS * strip, totals[1], left)
    store_some(out, tokens[2] * n_rows + ROWS * strip, totals[2], left)
    store_some(out, tokens[3] * n_rows + ROWS * strip, totals[3], left)


@inline
def multiply_panel_float(fmt, weights, strip, end, n_rows, n_cols, n_tokens, x, out):
    """Two strips (or one, at ``end - 1``) times all tokens, for weights that are floats."""
    panel = stack_bytes(_FLOAT_PANEL_BYTES)
    step = ROWS * block_bytes(fmt)
    second = min(strip + 1, end - 1)
    for first in range(0, n_cols, _FLOAT_COLS):
        count = min(_FLOAT_COLS, n_cols - first)
        for i in range(count):
            at = step * (strip * n_cols + first + i)
            below = at + step * (second - strip) * n_cols
            if at % 64 == 0:
                prefetch(weights, at + _PREFETCH_BYTES)
                prefetch(weights, below + _PREFETCH_BYTES)
            store(panel, 64 * i, values(fmt, weights, at))
            store(panel, 64 * i + 32, values(fmt, weights, below))
        for token in range(0, n_tokens, 4):
            _tile_float(panel, strip, second, n_rows, n_cols, first, count, token, n_tokens, x, out)


@inline
def _tile_float(panel, strip, second, n_rows, n_cols, first, count, token, n_tokens, x, out):
    last = n_tokens - 1
    t0, t1, t2, t3 = token, min(token + 1, last), min(token + 2, last), min(token + 3, last)
    a0, b0 = _start(out, t0, n_rows, strip, first), _start(out, t0, n_rows, second, first)
    a1, b1 = _start(out, t1, n_rows, strip, first), _start(out, t1, n_rows, second, first)
    a2, b2 = _start(out, t2, n_rows, strip, first), _start(out, t2, n_rows, second, first)
    a3, b3 = _start(out, t3, n_rows, strip, first), _start(out, t3, n_rows, second, first)
    for i in range(count):
        w0, w1 = load_f32x8_bytes(panel, 64 * i), load_f32x8_bytes(panel, 64 * i + 32)
        col = first + i
        x0, x1 = splat(f32x8, x[t0 * n_cols + col]), splat(f32x8, x[t1 * n_cols + col])
        x2, x3 = splat(f32x8, x[t2 * n_cols + col]), splat(f32x8, x[t3 * n_cols + col])
        a0, b0 = fma(w0, x0, a0), fma(w1, x0, b0)
        a1, b1 = fma(w0, x1, a1), fma(w1, x1, b1)
        a2, b2 = fma(w0, x2, a2), fma(w1, x2, b2)
        a3, b3 = fma(w0, x3, a3), fma(w1, x3, b3)
    _finish(out, n_rows, strip, (t0, t1, t2, t3), (a0, a1, a2, a3))
    _finish(out, n_rows, second, (t0, t1, t2, t3), (b0, b1, b2, b3))
