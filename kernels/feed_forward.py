"""Gated feed-forwards, any number at once: down(silu(gate(x)) * up(x)) (Shazeer, arXiv:2002.05202).

Two regions for all of them: gate, up and the activation of some rows in one piece, while they are
in the cache; then the products with ``down``.
"""

import numpy as np

from q4run.kernels.compiling.compile import inline, kernel
from q4run.kernels.elementwise import activate
from q4run.kernels.products.activations import GROUP, quantize_group
from q4run.kernels.products.products import (
    INPUT,
    MATRIX,
    count_pieces,
    int8_arrays,
    multiply,
    owner_of,
    piece_strips,
)
from q4run.kernels.products.strips import ROWS
from q4run.kernels.simd.memory import f32_array, f32_pointer, i8_pointer, i32_pointer
from q4run.kernels.threads.tasks import run_tasks
from q4run.kernels.tokens import finish_update, quantize_tokens

# Vectors are named by address, float32. A new property is a field; 0, which stands for none, is its
# default.
FEED_FORWARD = np.dtype(
    [
        ("gate", MATRIX),
        ("up", MATRIX),
        ("down", MATRIX),
        ("input", INPUT),
        ("hidden", INPUT),  # float32 (n_tokens, n_ff), and in int8 unless its addresses are 0
        ("up_out", np.int64),  # float32 (n_tokens, n_ff)
        ("out", np.int64),  # float32 (n_tokens, n_embd)
        ("activation", np.int64),  # of ``elementwise``
        ("gate_bias", np.int64),  # (n_ff,)
        ("up_bias", np.int64),  # (n_ff,)
        ("down_bias", np.int64),  # (n_embd,)
        ("sub_norm", np.int64),  # weights of an RMS norm of the hidden values, (n_ff,)
        ("eps", np.float32),  # of that norm
        ("first_piece", np.int64),  # filled in by ``run_feed_forwards``
    ]
)


@kernel()
def run_feed_forwards(pool, jobs):
    """Computes every feed-forward; jobs: an array of ``FEED_FORWARD``."""
    n_pieces = 0
    for i in range(len(jobs)):
        jobs[i].first_piece = n_pieces
        n_pieces += count_pieces(jobs[i].gate, jobs[i].input)
    run_tasks(pool, n_pieces, _run_gated_piece, (jobs,))
    for i in range(len(jobs)):
        if jobs[i].sub_norm:
            _norm_hidden(pool, jobs[i])
    n_pieces = 0
    for i in range(len(jobs)):
        jobs[i].first_piece = n_pieces
        n_pieces += count_pieces(jobs[i].down, jobs[i].hidden)
    run_tasks(pool, n_pieces, _run_down_piece, (jobs,))


@kernel()
def _run_gated_piece(piece, jobs):
    job = jobs[owner_of(piece, jobs)]
    first, end = piece_strips(job.gate, job.input, piece - job.first_piece)
    multiply(job.gate, job.input, first, end, job.hidden.x)
    multiply(job.up, job.input, first, end, job.up_out)
    n_ff = job.gate.n_rows
    begin, stop = ROWS * first, min(ROWS * end, n_ff)
    hidden, up = f32_pointer(job.hidden.x), f32_pointer(job.up_out)
    q, scales = i8_pointer(job.hidden.q), f32_pointer(job.hidden.scales)
    sums = i32_pointer(job.hidden.sums)
    for token in range(job.input.n_tokens):
        row = token * n_ff
        _add_bias(hidden, row, job.gate_bias, begin, stop)
        _add_bias(up, row, job.up_bias, begin, stop)
        activate(job.activation, hidden, up, row + begin, row + stop)
        if job.hidden.q != 0 and job.sub_norm == 0:
            for group in range((row + begin) // GROUP, (row + stop) // GROUP):
                quantize_group(hidden, group, q, scales, sums)


@inline
def _norm_hidden(pool, job):
    n_tokens, n_ff = job.hidden.n_tokens, job.gate.n_rows
    hidden = f32_array(job.hidden.x, n_tokens * n_ff)
    rows = hidden.reshape(n_tokens, n_ff)
    finish_update(pool, rows, 0, job.sub_norm, job.eps, np.float32(0))
    quantize_tokens(pool, hidden, n_tokens, n_ff, int8_arrays(job.hidden, n_tokens * n_ff))


@kernel()
def _run_down_piece(piece, jobs):
    job = jobs[owner_of(piece, jobs)]
    first, end = piece_strips(job.down, job.hidden, piece - job.first_piece)
    multiply(job.down, job.hidden, first, end, job.out)
    n_embd = job.down.n_rows
    for token in range(job.hidden.n_tokens):
        row, stop = token * n_embd, min(ROWS * end, n_embd)
        _add_bias(f32_pointer(job.out), row, job.down_bias, ROWS * first, stop)


@inline
def _add_bias(x, row, bias, begin, end):
    """Adds values ``begin`` to ``end`` of the vector at an address, unless that is 0, to those of
    the row of x that starts at ``row``."""
    if bias:
        values = f32_pointer(bias)
        for i in range(begin, end):
            x[row + i] += values[i]
