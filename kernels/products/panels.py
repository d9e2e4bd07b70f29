"""Products for many tokens: weights unpacked once for all of them, sums kept in registers.

Two strips (16 rows) are unpacked, some columns at a time, into a panel that stays in the first
cache: codes as bytes and scales as floats, in the same form whatever the format. Then tiles of 16
rows by 4 tokens run over it (Goto & van de Geijn, ACM TOMS 34(3), 2008).
"""

from q4run.kernels.compiling.compile import inline
from q4run.kernels.formats.reading import (
    block_bytes,
    block_size,
    codes,
    half_groups,
    has_minimum,
    minimum,
    scale,
    values,
)
from q4run.kernels.products.strips import ROWS
from q4run.kernels.products.tiles import (
    CODES,
    FACTORS,
    GROUPS,
    paired,
    store_sums,
    sums_so_far,
    tile_int8,
)
from q4run.kernels.simd.memory import load_f32x8_bytes, prefetch, stack_bytes, store
from q4run.kernels.simd.ops import fma, splat
from q4run.kernels.simd.vector import f32x8

_FLOAT_COLS = 256  # columns of a panel of floats: 16 kB
_INT8_PANEL_BYTES = GROUPS * (CODES + 4 * FACTORS)
_FLOAT_PANEL_BYTES = 64 * _FLOAT_COLS
_PREFETCH_BYTES = 4096  # of floats


@inline
def multiply_panel_int8(fmt, weights, strip, end, n_rows, n_cols, n_tokens, q, scales, sums, out):
    """Two strips (or one, at ``end - 1``) times all tokens."""
    panel = stack_bytes(_INT8_PANEL_BYTES)
    n_groups = n_cols // 32
    second = min(strip + 1, end - 1)
    for first in range(0, n_groups, GROUPS):
        count = min(GROUPS, n_groups - first)
        is_last = first + GROUPS >= n_groups
        following = strip * n_groups + (2 * n_groups if is_last else first + GROUPS)
        _unpack(fmt, weights, strip, n_groups, first, count, panel, 0)
        _unpack(fmt, weights, second, n_groups, first, count, panel, 1)
        for token in range(0, n_tokens, 4):
            tile_int8(
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
    c0, c1 = paired(c0, c1)
    c2, c3 = paired(c2, c3)
    c4, c5 = paired(c4, c5)
    c6, c7 = paired(c6, c7)
    target = CODES * i + 32 * place
    store(panel, target, c0)
    store(panel, target + 64, c1)
    store(panel, target + 128, c2)
    store(panel, target + 192, c3)
    store(panel, target + 256, c4)
    store(panel, target + 320, c5)
    store(panel, target + 384, c6)
    store(panel, target + 448, c7)
    target = GROUPS * CODES + 4 * FACTORS * i + 32 * place
    store(panel, target, scale(fmt, weights, at, group, 0))
    if half_groups(fmt):
        store(panel, target + FACTORS, scale(fmt, weights, at, group, 1))
    if has_minimum(fmt):
        store(panel, target + 2 * FACTORS, minimum(fmt, weights, at, group, 0))
        if half_groups(fmt):
            store(panel, target + 3 * FACTORS, minimum(fmt, weights, at, group, 1))


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
    a0, b0 = sums_so_far(out, t0, n_rows, strip, first), sums_so_far(out, t0, n_rows, second, first)
    a1, b1 = sums_so_far(out, t1, n_rows, strip, first), sums_so_far(out, t1, n_rows, second, first)
    a2, b2 = sums_so_far(out, t2, n_rows, strip, first), sums_so_far(out, t2, n_rows, second, first)
    a3, b3 = sums_so_far(out, t3, n_rows, strip, first), sums_so_far(out, t3, n_rows, second, first)
    for i in range(count):
        w0, w1 = load_f32x8_bytes(panel, 64 * i), load_f32x8_bytes(panel, 64 * i + 32)
        col = first + i
        x0, x1 = splat(f32x8, x[t0 * n_cols + col]), splat(f32x8, x[t1 * n_cols + col])
        x2, x3 = splat(f32x8, x[t2 * n_cols + col]), splat(f32x8, x[t3 * n_cols + col])
        a0, b0 = fma(w0, x0, a0), fma(w1, x0, b0)
        a1, b1 = fma(w0, x1, a1), fma(w1, x1, b1)
        a2, b2 = fma(w0, x2, a2), fma(w1, x2, b2)
        a3, b3 = fma(w0, x3, a3), fma(w1, x3, b3)
    store_sums(out, n_rows, strip, (t0, t1, t2, t3), (a0, a1, a2, a3))
    store_sums(out, n_rows, second, (t0, t1, t2, t3), (b0, b1, b2, b3))
