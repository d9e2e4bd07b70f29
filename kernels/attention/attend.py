"""Attention over a KV cache: blocks of keys that many queries share, the softmax taken online.

After Dao et al. (arXiv:2205.14135). What is added up for a query, and in which order, depends on
its own keys alone: blocks and chunks of keys begin at fixed positions, and a key that a query does
not see has no weight. So its result is the same bits whatever else is in the batch, and however
many threads there are.
"""

import math

import numpy as np

from q4run.kernels.attention.kinds.base import rows_as_floats
from q4run.kernels.attention.online_softmax import (
    STATE,
    add_weight,
    clear,
    merge,
    save_quotients,
    weigh,
)
from q4run.kernels.attention.rows import rows_ahead, values_of_row
from q4run.kernels.attention.tiles import add_four, add_one, after, at, score_four, score_one
from q4run.kernels.compiling.compile import inline, kernel
from q4run.kernels.simd.memory import (
    address_of,
    f32_pointer,
    i32_pointer,
    stack_bytes,
    store,
)
from q4run.kernels.simd.ops import mul, splat
from q4run.kernels.simd.tails import load_some
from q4run.kernels.simd.vector import f32x8
from q4run.kernels.threads.tasks import run_tasks

MAX_HEAD_DIM = 2048
NO_SINKS = np.empty(0, np.float32)
_LOG2_E = np.float32(1 / math.log(2))
BLOCK = 64  # keys between two looks at the largest score
_CHUNK = 512  # keys that are added up apart, and then merged with those before them
_QUERIES = 64  # of a task, at most
_QUERY_BYTES = 4 * _QUERIES
_SCORES = BLOCK + 8  # of a query, and what is written past their end
_SCORE_BYTES = 4 * _QUERIES * _SCORES
_ROW_FLOATS = _QUERIES * (128 + STATE)  # of a task's queries, or their sums: longer ones, fewer
_ROW_BYTES = 4 * _ROW_FLOATS
_WIDE_FLOATS = 4096  # of keys or values at a time: half of a first-level cache
_WIDE_BYTES = 4 * _WIDE_FLOATS


@kernel()
def attend(pool, q, keys, values, n_seen, scale, window, sinks, out):
    """Softmax attention of new tokens over a cache; query t sees the first ``n_seen + t`` keys.

    window: of those it sees the last ``window``, or all with ``NO_WINDOW``; sinks: for each head a
    score without a value, float32 (n_head,), or ``NO_SINKS``.
    q: float32 (n_tokens, n_head, key_dim); out: float32 (n_tokens, n_head, value_dim); both
    C-contiguous. keys, values: ``KVRows`` as ``write_cache`` fills them. Query head h reads KV head
    h * n_head_kv // n_head; scale multiplies the scores. Raises ValueError for tokens or heads that
    the caches have no room for, or above ``MAX_HEAD_DIM``.
    """
    n_tokens, n_head, key_dim = q.shape
    n_head_kv, capacity = keys.array.shape[:2]
    dim, longest = values_of_row(values), max(values_of_row(keys), values_of_row(values))
    if key_dim > values_of_row(keys) or out.shape[2] > dim or longest > MAX_HEAD_DIM:
        raise ValueError("heads that do not fit into the cache, or above MAX_HEAD_DIM")
    if min(n_seen, window) + n_tokens - 1 > min(capacity, values.array.shape[1]):
        raise ValueError("more tokens than the cache has room for")
    n_queries = n_tokens * (n_head // n_head_kv)  # that read the same KV head
    per_task = min(_QUERIES, _ROW_FLOATS // (longest + STATE) // 4 * 4)
    n_blocks = (n_queries + per_task - 1) // per_task
    first_chunk = _hidden(n_seen, window) // _CHUNK
    n_chunks = (n_seen + n_tokens - 1 + _CHUNK - 1) // _CHUNK - first_chunk
    if n_blocks == 1 and n_chunks > 1:
        # Few queries, as in decoding: the threads share out the chunks of a long context.
        parts = np.empty((n_head_kv, n_chunks, n_queries, dim + STATE), np.float32)
    else:
        parts = np.empty((n_head_kv, 0, 0, 0), np.float32)
    n_tasks = n_head_kv * max(n_blocks, parts.shape[1])
    arguments = (q, keys, values, n_seen, scale, window, sinks, per_task, parts, out)
    run_tasks(pool, n_tasks, _attend_some, arguments)
    if parts.shape[1]:
        run_tasks(pool, n_head_kv, _merge_parts, (parts, n_seen, window, sinks, out))


@kernel()
def _attend_some(task, q, keys, values, n_seen, scale, window, sinks, per_task, parts, out):
    """Queries of one KV head over their keys, or over one chunk of them: a part."""
    queries = f32_pointer(address_of(stack_bytes(_ROW_BYTES)))
    sums = f32_pointer(address_of(stack_bytes(_ROW_BYTES)))
    more = f32_pointer(address_of(stack_bytes(_ROW_BYTES)))
    seen = i32_pointer(address_of(stack_bytes(_QUERY_BYTES)))
    n_head_kv, dim = keys.array.shape[0], values_of_row(values)
    group = q.shape[1] // n_head_kv
    n_all, n_parts = q.shape[0] * group, parts.shape[1]
    head, place = task % n_head_kv, task // n_head_kv
    # The last queries see the most keys: their tasks begin first.
    first = 0 if n_parts else (n_all - 1) // per_task * per_task - per_task * place
    n_queries = min(per_task, n_all - first)
    _count_keys(seen, n_queries, first, group, n_seen)
    _load_queries(q, head, first, n_queries, group, scale, values_of_row(keys), queries)
    begin, end = _hidden(seen[0], window) // _CHUNK * _CHUNK, seen[n_queries - 1]
    if n_parts:
        begin += _CHUNK * place
        end = min(end, begin + _CHUNK)
        sums = _part(parts, head, place)
    for chunk in range(begin, end, _CHUNK):
        to = sums if chunk == begin else more
        _attend_chunk(queries, n_queries, seen, window, keys, values, head, chunk, to)
        for i in range(n_queries):
            if begin < chunk < seen[i] and _hidden(seen[i], window) < chunk + _CHUNK:
                merge(at(sums, (dim + STATE) * i), at(more, (dim + STATE) * i), dim)
    if not n_parts:
        _save_results(sums, head, first, n_queries, group, dim, sinks, out)


@kernel()
def _merge_parts(head, parts, n_seen, window, sinks, out):
    """The chunks of one KV head, in their order."""
    _, n_parts, n_queries, width = parts.shape
    dim, group = width - STATE, out.shape[1] // parts.shape[0]
    sums = _part(parts, head, 0)
    first = _hidden(n_seen, window) // _CHUNK * _CHUNK
    for part in range(1, n_parts):
        chunk = first + _CHUNK * part
        for i in range(n_queries):
            n = n_seen + i // group
            if chunk < n and _hidden(n, window) < chunk + _CHUNK:
                merge(at(sums, width * i), at(_part(parts, head, part), width * i), dim)
    _save_results(sums, head, 0, n_queries, group, dim, sinks, out)


@inline
def _hidden(n_seen, window):
    """How many of the first ``n_seen`` keys are before the window."""
    return max(0, n_seen - window)


@inline
def _part(parts, head, part):
    _, n_parts, n_queries, width = parts.shape
    return f32_pointer(parts.ctypes.data + 4 * (head * n_parts + part) * n_queries * width)


@inline
def _place(array, head, query, group):
    """Where a query, or its result, begins in (n_tokens, n_head, head_dim).

    The queries of a KV head are counted token by token, the heads of each in a row.
    """
    return ((query // group) * array.shape[1] + head * group + query % group) * array.shape[2]


@inline
def _count_keys(seen, n_queries, first, group, n_seen):
    """Fills in how many keys each query sees."""
    count, before_next = n_seen + first // group, group - first % group
    i = 0
    while i < n_queries:
        seen[i] = count
        before_next -= 1
        if before_next == 0:
            count, before_next = count + 1, group
        i = after(i, 1)


@inline
def _load_queries(q, head, first, n_queries, group, scale, dim, queries):
    """Copies queries with zeros behind them, scaled so that scores are logarithms to base 2."""
    flat, head_dim = q.ravel(), q.shape[2]
    factor = splat(f32x8, scale * _LOG2_E)
    for i in range(n_queries):
        source, target = _place(q, head, first + i, group), (dim + STATE) * i
        for c in range(0, dim, 8):
            channels = load_some(flat, source + c, head_dim - c)
            store(queries, target + c, mul(channels, factor))


@inline
def _save_results(sums, head, first, n_queries, group, dim, sinks, out):
    flat, head_dim = out.reshape(out.size), out.shape[2]  # never a copy, as ravel may be
    for i in range(n_queries):
        source, target = at(sums, (dim + STATE) * i), _place(out, head, first + i, group)
        if len(sinks):
            add_weight(source, sinks[head * group + (first + i) % group] * _LOG2_E, dim)
        save_quotients(source, dim, flat, target, head_dim)


@inline
def _attend_chunk(queries, n_queries, seen, window, keys, values, head, chunk, sums):
    """Fills the sums of queries over the chunk of keys that begins at ``chunk``."""
    scores = f32_pointer(address_of(stack_bytes(_SCORE_BYTES)))
    wide = f32_pointer(address_of(stack_bytes(_WIDE_BYTES)))
    key_dim, dim = values_of_row(keys), values_of_row(values)
    capacity, n_value_rows = keys.array.shape[1], values.array.shape[1]
    width = dim + STATE
    for i in range(n_queries):
        clear(at(sums, width * i), dim)
    keys_per_load, per_load = _rows_per_load(key_dim), _rows_per_load(dim)
    end = min(chunk + _CHUNK, seen[n_queries - 1])
    for block in range(max(chunk, _hidden(seen[0], window) // BLOCK * BLOCK), end, BLOCK):
        block_end = min(block + BLOCK, end)
        # Caches of windows are rings of whole blocks: position p is in row p % capacity.
        key_row = head * capacity + block % capacity - block
        row = head * n_value_rows + block % n_value_rows - block
        for first in range(block, block_end, keys_per_load):
            n_keys, then = min(keys_per_load, block_end - first), first + keys_per_load
            rows = rows_as_floats(keys.kind, keys.array, key_row + first, n_keys, wide)
            if then < block_end:
                ahead, n_ahead = rows_ahead(keys.array, key_row, then, block_end, keys_per_load)
            else:
                ahead, n_ahead = rows_ahead(values.array, row, block, block_end, per_load)
            to = at(scores, first - block)
            _score(queries, n_queries, rows, key_dim, n_keys, to, ahead, n_ahead)
        for i in range(n_queries):
            if block < seen[i]:
                n_keys = min(BLOCK, seen[i] - block)
                n_hidden = min(n_keys, max(0, _hidden(seen[i], window) - block))
                _weigh_seen(at(scores, _SCORES * i), n_hidden, n_keys, at(sums, width * i), dim)
        for first in range(block, block_end, per_load):
            n_keys, then = min(per_load, block_end - first), first + per_load
            rows = rows_as_floats(values.kind, values.array, row + first, n_keys, wide)
            if then < block_end:
                ahead, n_ahead = rows_ahead(values.array, row, then, block_end, per_load)
            else:
                ahead, n_ahead = rows_ahead(keys.array, key_row, then, end, keys_per_load)
            weights = at(scores, first - block)
            _add(sums, n_queries, seen, rows, dim, first, n_keys, weights, ahead, n_ahead)


@inline
def _weigh_seen(scores, n_hidden, n_keys, sums, dim):
    """Weights of one query's keys of a block; the first ``n_hidden`` get none."""
    for i in range(n_hidden):
        scores[i] = -np.inf
    if n_hidden < n_keys:
        weigh(scores, n_keys, sums, dim)
    for i in range(n_hidden):
        scores[i] = 0


@inline
def _rows_per_load(dim):
    """How many rows of ``dim`` values are widened at once."""
    return min(BLOCK, max(_WIDE_FLOATS // dim // 8 * 8, 2))


@inline
def _score(queries, n_queries, keys, dim, n_keys, scores, ahead, n_ahead):
    width, whole = dim + STATE, n_queries // 4 * 4
    for i in range(0, whole, 4):
        four, to = at(queries, width * i), at(scores, _SCORES * i)
        score_four(four, width, keys, dim, n_keys, to, _SCORES, ahead, n_ahead)
        n_ahead = 0
    for i in range(whole, n_queries):
        to = at(scores, _SCORES * i)
        score_one(at(queries, width * i), keys, dim, n_keys, to, ahead, n_ahead)
        n_ahead = 0


@inline
def _add(sums, n_queries, seen, values, dim, first, n_keys, weights, ahead, n_ahead):
    """Adds the values of the keys from ``first`` on that each query sees."""
    width, whole = dim + STATE, n_queries // 4 * 4
    for i in range(0, whole, 4):
        shared = max(0, min(n_keys, seen[i] - first))
        four, by = at(sums, width * i), at(weights, _SCORES * i)
        add_four(four, width, values, dim, shared, by, _SCORES, ahead, n_ahead)
        n_ahead = 0
    for i in range(0 if seen[0] < first + n_keys else whole, n_queries):
        done = max(0, seen[i // 4 * 4] - first) if i < whole else 0
        n_seen = min(n_keys, seen[i] - first)
        if done < n_seen:
            by = at(weights, _SCORES * i)
            add_one(at(sums, width * i), values, dim, done, n_seen, by, ahead, n_ahead)
            n_ahead = 0
