"""Gated feed-forwards, any number at once: down(silu(gate(x)) * up(x)) (Shazeer, arXiv:2002.05202).

Two regions for all of them: gate, up and the activation of some rows in one piece, while they are
in the cache; then the products with ``down``.
"""

import numpy as np

from q4run.kernels.compiling.compile import kernel
from q4run.kernels.elementwise import silu_mul
from q4run.kernels.products.activations import GROUP, quantize_group
from q4run.kernels.products.products import (
    INPUT,
    MATRIX,
    count_pieces,
    multiply,
    owner_of,
    piece_strips,
)
from q4run.kernels.products.strips import ROWS
from q4run.kernels.simd.memory import f32_pointer, i8_pointer, i32_pointer
from q4run.kernels.threads.tasks import run_tasks

FEED_FORWARD = np.dtype(
    [
        ("gate", MATRIX),
        ("up", MATRIX),
        ("down", MATRIX),
        ("input", INPUT),
        ("hidden", INPUT),  # float32 (n_tokens, n_ff), and in int8 unless its addresses are 0
        ("up_out", np.int64),  # float32 (n_tokens, n_ff)
        ("out", np.int64),  # float32 (n_tokens, n_embd)
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
        silu_mul(hidden, up, token * n_ff + begin, token * n_ff + stop)
        if job.hidden.q != 0:
            for group in range((token * n_ff + begin) // GROUP, (token * n_ff + stop) // GROUP):
                quantize_group(hidden, group, q, scales, sums)


@kernel()
def _run_down_piece(piece, jobs):
    job = jobs[owner_of(piece, jobs)]
    first, end = piece_strips(job.down, job.hidden, piece - job.first_piece)
    multiply(job.down, job.hidden, first, end, job.out)
