"""The two products of attention, by tiles: scores = queries x keys, sums += weights x values.

All rows are float32 behind pointers, a whole number of vectors long. Four queries share every load
of a key or value; one query alone takes eight keys, or eight vectors of channels, at a time. Both
ways each score and each channel is added up in the same order.
"""

from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from q4run.kernels.compiling.compile import inline
from q4run.kernels.simd.emit import F32, I32, vector
from q4run.kernels.simd.memory import address_of, f32_pointer, load_f32x8, prefetch, store
from q4run.kernels.simd.ops import fma, splat
from q4run.kernels.simd.vector import f32x8


@inline
def at(pointer, index):
    """A pointer to ``pointer[index]`` of float32."""
    return f32_pointer(address_of(pointer) + 4 * index)


@inline
def score_four(queries, stride, keys, dim, n_keys, scores, score_stride, ahead, n_ahead):
    """Scores of four queries, ``stride`` floats apart, and ``n_keys`` keys.

    Writes up to seven scores more, as ``score_one`` does. All tiles fetch ``n_ahead`` bytes behind
    the pointer ``ahead`` into the cache meanwhile, a few at a time.
    """
    share = n_ahead // n_keys
    for key in range(0, n_keys, 8):
        pairs = (
            _score_pair(queries, stride, keys, dim, key, n_keys, ahead, share),
            _score_pair(queries, stride, keys, dim, key + 2, n_keys, ahead, share),
            _score_pair(queries, stride, keys, dim, key + 4, n_keys, ahead, share),
            _score_pair(queries, stride, keys, dim, key + 6, n_keys, ahead, share),
        )
        s0, s1, s2, s3 = _transpose_pairs(pairs)
        store(scores, key, s0)
        store(scores, score_stride + key, s1)
        store(scores, 2 * score_stride + key, s2)
        store(scores, 3 * score_stride + key, s3)


@inline
def _score_pair(queries, stride, keys, dim, key, n_keys, ahead, share):
    """Four queries, two keys: lanes are two scores of each query."""
    _fetch(ahead, share * key, share * (key + 2))
    # Past the last key the same one is taken again: the border needs no code of its own.
    first, second = dim * min(key, n_keys - 1), dim * min(key + 1, n_keys - 1)
    a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = splat(f32x8, 0.0)
    i = 0
    while i < dim:
        x, y = load_f32x8(keys, first + i), load_f32x8(keys, second + i)
        query = load_f32x8(queries, i)
        a0, b0 = fma(query, x, a0), fma(query, y, b0)
        query = load_f32x8(queries, stride + i)
        a1, b1 = fma(query, x, a1), fma(query, y, b1)
        query = load_f32x8(queries, 2 * stride + i)
        a2, b2 = fma(query, x, a2), fma(query, y, b2)
        query = load_f32x8(queries, 3 * stride + i)
        a3, b3 = fma(query, x, a3), fma(query, y, b3)
        i = after(i, 8)
    return _add_lanes((a0, b0, a1, b1, a2, b2, a3, b3))


@inline
def score_one(query, keys, dim, n_keys, scores, ahead, n_ahead):
    """Scores of one query and ``n_keys`` keys."""
    last = dim * (n_keys - 1)
    for key in range(0, n_keys, 8):
        _fetch(ahead, n_ahead * key // n_keys, n_ahead * (key + 8) // n_keys)
        k0 = dim * key
        k1, k2, k3 = min(k0 + dim, last), min(k0 + 2 * dim, last), min(k0 + 3 * dim, last)
        k4, k5 = min(k0 + 4 * dim, last), min(k0 + 5 * dim, last)
        k6, k7 = min(k0 + 6 * dim, last), min(k0 + 7 * dim, last)
        a0 = a1 = a2 = a3 = a4 = a5 = a6 = a7 = splat(f32x8, 0.0)
        i = 0
        while i < dim:
            q = load_f32x8(query, i)
            a0, a1 = fma(q, load_f32x8(keys, k0 + i), a0), fma(q, load_f32x8(keys, k1 + i), a1)
            a2, a3 = fma(q, load_f32x8(keys, k2 + i), a2), fma(q, load_f32x8(keys, k3 + i), a3)
            a4, a5 = fma(q, load_f32x8(keys, k4 + i), a4), fma(q, load_f32x8(keys, k5 + i), a5)
            a6, a7 = fma(q, load_f32x8(keys, k6 + i), a6), fma(q, load_f32x8(keys, k7 + i), a7)
            i = after(i, 8)
        store(scores, key, _add_lanes((a0, a1, a2, a3, a4, a5, a6, a7)))


@inline
def add_four(sums, stride, values, dim, n_keys, weights, weight_stride, ahead, n_ahead):
    """Adds ``n_keys`` weighted values to four sums, ``stride`` floats apart."""
    for i in range(0, dim, 16):
        _fetch(ahead, n_ahead * i // dim, n_ahead * (i + 16) // dim)
        # Past the last vector the same one is computed again: an odd number needs no code.
        j = min(i + 8, dim - 8)
        a0, b0 = load_f32x8(sums, i), load_f32x8(sums, j)
        a1, b1 = load_f32x8(sums, stride + i), load_f32x8(sums, stride + j)
        a2, b2 = load_f32x8(sums, 2 * stride + i), load_f32x8(sums, 2 * stride + j)
        a3, b3 = load_f32x8(sums, 3 * stride + i), load_f32x8(sums, 3 * stride + j)
        key = 0
        while key < n_keys:
            x, y = load_f32x8(values, dim * key + i), load_f32x8(values, dim * key + j)
            weight = splat(f32x8, weights[key])
            a0, b0 = fma(weight, x, a0), fma(weight, y, b0)
            weight = splat(f32x8, weights[weight_stride + key])
            a1, b1 = fma(weight, x, a1), fma(weight, y, b1)
            weight = splat(f32x8, weights[2 * weight_stride + key])
            a2, b2 = fma(weight, x, a2), fma(weight, y, b2)
            weight = splat(f32x8, weights[3 * weight_stride + key])
            a3, b3 = fma(weight, x, a3), fma(weight, y, b3)
            key = after(key, 1)
        store(sums, i, a0)
        store(sums, j, b0)
        store(sums, stride + i, a1)
        store(sums, stride + j, b1)
        store(sums, 2 * stride + i, a2)
        store(sums, 2 * stride + j, b2)
        store(sums, 3 * stride + i, a3)
        store(sums, 3 * stride + j, b3)


@inline
def add_one(sums, values, dim, begin, end, weights, ahead, n_ahead):
    """Adds the weighted values of keys ``begin`` to ``end`` to one query's sums."""
    last = dim - 8
    for c0 in range(0, dim, 64):
        _fetch(ahead, n_ahead * c0 // dim, n_ahead * (c0 + 64) // dim)
        c1, c2, c3 = min(c0 + 8, last), min(c0 + 16, last), min(c0 + 24, last)
        c4, c5 = min(c0 + 32, last), min(c0 + 40, last)
        c6, c7 = min(c0 + 48, last), min(c0 + 56, last)
        a0, a1 = load_f32x8(sums, c0), load_f32x8(sums, c1)
        a2, a3 = load_f32x8(sums, c2), load_f32x8(sums, c3)
        a4, a5 = load_f32x8(sums, c4), load_f32x8(sums, c5)
        a6, a7 = load_f32x8(sums, c6), load_f32x8(sums, c7)
        key = begin
        while key < end:
            w, v = splat(f32x8, weights[key]), dim * key
            a0, a1 = fma(w, load_f32x8(values, v + c0), a0), fma(w, load_f32x8(values, v + c1), a1)
            a2, a3 = fma(w, load_f32x8(values, v + c2), a2), fma(w, load_f32x8(values, v + c3), a3)
            a4, a5 = fma(w, load_f32x8(values, v + c4), a4), fma(w, load_f32x8(values, v + c5), a5)
            a6, a7 = fma(w, load_f32x8(values, v + c6), a6), fma(w, load_f32x8(values, v + c7), a7)
            key = after(key, 1)
        store(sums, c0, a0)
        store(sums, c1, a1)
        store(sums, c2, a2)
        store(sums, c3, a3)
        store(sums, c4, a4)
        store(sums, c5, a5)
        store(sums, c6, a6)
        store(sums, c7, a7)


@inline
def _fetch(pointer, begin, end):
    while begin < end:
        prefetch(pointer, begin)
        begin = after(begin, 64)


@intrinsic
def after(typing_context, index, step):
    """``index + step``, but LLVM cannot tell: it neither unrolls the loop nor reorders it.

    Its own unrolling puts dependent products next to each other, and takes long to compile.
    """

    def codegen(context, builder, signature, args):
        i64 = args[0].type
        function = ir.FunctionType(i64, [i64])
        return builder.asm(function, "", "=r,0", [builder.add(*args)], side_effect=False)

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def _add_lanes(typing_context, rows):
    """f32x8 of the sums of eight vectors, each added as ``reduce_add`` does."""

    def codegen(context, builder, signature, args):
        def fold(a: ir.Value, b: ir.Value, lanes: list[int], step: int) -> ir.Value:
            low = ir.Constant(vector(I32, 8), lanes)
            high = ir.Constant(vector(I32, 8), [lane + step for lane in lanes])
            return builder.fadd(
                builder.shuffle_vector(a, b, low), builder.shuffle_vector(a, b, high)
            )

        eights = cgutils.unpack_tuple(builder, args[0])
        fours = [fold(eights[i], eights[i + 4], [0, 1, 2, 3, 8, 9, 10, 11], 4) for i in range(4)]
        twos = [fold(fours[i], fours[i + 1], [0, 1, 8, 9, 4, 5, 12, 13], 2) for i in (0, 2)]
        return fold(twos[0], twos[1], [0, 2, 8, 10, 4, 6, 12, 14], 1)

    return f32x8(rows), codegen


@intrinsic
def _transpose_pairs(typing_context, rows):
    """Four f32x8 of four pairs of lanes each: the first pair of all, then the second, ..."""

    def codegen(context, builder, signature, args):
        pairs = vector(ir.IntType(64), 4)
        rows = [builder.bitcast(row, pairs) for row in cgutils.unpack_tuple(builder, args[0])]
        columns = []
        for column in range(4):
            first, second = (
                builder.shuffle_vector(a, b, ir.Constant(vector(I32, 2), [column, 4 + column]))
                for a, b in (rows[:2], rows[2:])
            )
            joined = builder.shuffle_vector(
                first, second, ir.Constant(vector(I32, 4), [0, 1, 2, 3])
            )
            columns.append(builder.bitcast(joined, vector(F32, 8)))
        return context.make_tuple(builder, signature.return_type, columns)

    return rows(rows), codegen
