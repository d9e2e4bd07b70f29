"""Mixture of experts as compiled functions: routing, the chosen experts, and their sum.

A token's choice of k experts makes k rows. Rows are grouped by expert, so that each expert's input
and output lie together; the experts themselves may be computed in any order and number at a time.
"""

from typing import NamedTuple

import numpy as np

from q4run.kernels.compiling.compile import inline, kernel
from q4run.kernels.elementwise import add_into
from q4run.kernels.feed_forward import run_feed_forwards
from q4run.kernels.products.products import run_products
from q4run.kernels.routing import top_k
from q4run.kernels.simd.memory import load_f32x8, store
from q4run.kernels.simd.ops import fma, mul, splat
from q4run.kernels.simd.vector import f32x8
from q4run.kernels.threads.tasks import run_tasks
from q4run.kernels.tokens import count_tasks, normalize, quantize_rows, tokens_of


class Routing(NamedTuple):
    """Scratch memory for what the router decided; n_rows = n_tokens * k."""

    logits: np.ndarray  # float32 (n_tokens * n_expert,)
    chosen: np.ndarray  # int64 (n_rows,): token by token, the best first
    weights: np.ndarray  # float32 (n_rows,)
    rows: np.ndarray  # int64 (n_rows,): where each choice's row is in the grouped order
    experts: np.ndarray  # int64 (n_expert,): the experts that have rows, in ascending order
    first_row: np.ndarray  # int64 (n_expert + 1,): of each of ``experts``, and the end


class ExpertBuffers(NamedTuple):
    """Flat scratch memory for a batch; int8: q, scales and sums as ``Int8Activations`` has them."""

    normed: np.ndarray
    normed_int8: tuple[np.ndarray, np.ndarray, np.ndarray]
    input: np.ndarray  # the rows, grouped by expert
    input_int8: tuple[np.ndarray, np.ndarray, np.ndarray]
    hidden: np.ndarray
    hidden_int8: tuple[np.ndarray, np.ndarray, np.ndarray]
    up: np.ndarray
    output: np.ndarray
    update: np.ndarray


@kernel()
def route(pool, x, norm, eps, router, n_expert, n_used, softmax, routing, buffers):
    """Norms the stream, asks the router and fills the experts' input; returns how many experts.

    x: float32 (n_tokens, n_embd); router: one ``PRODUCT`` over the buffers. With ``softmax`` the
    weights are the softmax of the chosen logits and belong to the output; otherwise they are
    sigmoids and scale the input.
    """
    n_tokens, n_embd = x.shape
    normalize(pool, x, norm, eps, buffers.normed, buffers.normed_int8)
    router[0].input.n_tokens = n_tokens
    run_products(pool, router)
    logits = routing.logits[: n_tokens * n_expert].reshape(n_tokens, n_expert)
    n_rows = n_tokens * n_used
    chosen = routing.chosen[:n_rows].reshape(n_tokens, n_used)
    weights = routing.weights[:n_rows].reshape(n_tokens, n_used)
    top_k(logits, chosen, weights)
    _gate(weights, softmax)
    n_experts = _group(routing.chosen[:n_rows], n_expert, routing)
    arguments = (n_tokens, n_embd, n_used, softmax, routing, buffers)
    run_tasks(pool, count_tasks(n_tokens), _fill_inputs, arguments)
    return n_experts


@inline
def _gate(weights, softmax):
    """Chosen logits to weights, in place."""
    one = np.float32(1)
    for token in range(len(weights)):
        # Renormalising a softmax over the chosen is the softmax of the chosen.
        largest = weights[token, 0]
        total = np.float32(0)
        for k in range(weights.shape[1]):
            if softmax:
                weights[token, k] = np.exp(weights[token, k] - largest)
                total += weights[token, k]
            else:
                weights[token, k] = one / (one + np.exp(-weights[token, k]))
        if softmax:
            for k in range(weights.shape[1]):
                weights[token, k] /= total


@inline
def _group(chosen, n_expert, routing):
    """Sorts the rows by expert, in the order of tokens within each; returns how many experts."""
    counts = np.zeros(n_expert + 1, np.int64)
    for expert in chosen:
        counts[expert + 1] += 1
    n_experts = 0
    for expert in range(n_expert):
        if counts[expert + 1]:
            routing.experts[n_experts] = expert
            routing.first_row[n_experts] = counts[expert]
            n_experts += 1
        counts[expert + 1] += counts[expert]
    routing.first_row[n_experts] = len(chosen)
    for i in range(len(chosen)):
        routing.rows[i] = counts[chosen[i]]
        counts[chosen[i]] += 1
    return n_experts


@kernel()
def _fill_inputs(task, n_tokens, n_embd, n_used, softmax, routing, buffers):
    first, end = tokens_of(task, n_tokens)
    q, scales, sums = buffers.input_int8
    for token in range(first, end):
        for choice in range(n_used * token, n_used * (token + 1)):
            row = routing.rows[choice]
            weight = np.float32(1) if softmax else routing.weights[choice]
            factor = splat(f32x8, weight)
            source, target = token * n_embd, row * n_embd
            for i in range(0, n_embd // 8 * 8, 8):
                values = load_f32x8(buffers.normed, source + i)
                store(buffers.input, target + i, mul(values, factor))
            for i in range(n_embd // 8 * 8, n_embd):
                buffers.input[target + i] = buffers.normed[source + i] * weight
            quantize_rows(buffers.input, row, row + 1, n_embd, q, scales, sums)


@kernel()
def run_experts(pool, n_tokens, template, shared, places, addresses, routing, jobs):
    """Computes some of the chosen experts and, where ``shared`` holds one, the shared expert.

    template, shared: ``FEED_FORWARD`` records over row 0 of the buffers, the template's matrices
    relative to an expert's address; places: the experts' places in ``routing.experts``; addresses:
    int64 (n_expert,), where every expert is; jobs: room for one more ``FEED_FORWARD`` than experts.
    """
    n_jobs = 0
    for place in places:
        rows = (routing.first_row[place], routing.first_row[place + 1])
        _place_job(template[0], addresses[routing.experts[place]], rows, jobs[n_jobs])
        n_jobs += 1
    if len(shared):
        jobs[n_jobs] = shared[0]
        jobs[n_jobs].input.n_tokens = jobs[n_jobs].hidden.n_tokens = n_tokens
        n_jobs += 1
    run_feed_forwards(pool, jobs[:n_jobs])


@inline
def _place_job(template, address, rows, job):
    """One expert's feed-forward over its rows."""
    first, end = rows
    n_ff, n_embd = template.gate.n_rows, template.gate.n_cols
    job.gate, job.up, job.down = template.gate, template.up, template.down
    job.gate.weights += address
    job.up.weights += address
    job.down.weights += address
    _place_rows(template.input, first, end, n_embd, job.input)
    _place_rows(template.hidden, first, end, n_ff, job.hidden)
    job.up_out = template.up_out + 4 * first * n_ff
    job.out = template.out + 4 * first * n_embd


@inline
def _place_rows(whole, first, end, n_cols, part):
    """The rows from ``first`` to ``end`` of an ``INPUT``."""
    n_groups = first * n_cols // 32
    part.n_tokens = end - first
    part.x = whole.x + 4 * first * n_cols
    if whole.q != 0:
        part.q = whole.q + 32 * n_groups
        part.scales = whole.scales + 4 * n_groups
        part.sums = whole.sums + 8 * n_groups
    else:
        part.q = part.scales = part.sums = 0


@kernel()
def combine(pool, x, n_used, softmax, has_shared, routing, buffers):
    """x += the shared expert's output + the experts' weighted outputs, in the router's order."""
    arguments = (x, n_used, softmax, has_shared, routing, buffers)
    run_tasks(pool, count_tasks(len(x)), _combine, arguments)


@kernel()
def _combine(task, x, n_used, softmax, has_shared, routing, buffers):
    n_tokens, n_embd = x.shape
    first, end = tokens_of(task, n_tokens)
    update = buffers.update[first * n_embd : end * n_embd].reshape(end - first, n_embd)
    if not has_shared:
        update[:] = 0
    for token in range(first, end):
        for choice in range(n_used * token, n_used * (token + 1)):
            weight = routing.weights[choice] if softmax else np.float32(1)
            source, target = routing.rows[choice] * n_embd, token * n_embd
            for i in range(0, n_embd // 8 * 8, 8):
                so_far = load_f32x8(buffers.update, target + i)
                values = load_f32x8(buffers.output, source + i)
                store(buffers.update, target + i, fma(values, splat(f32x8, weight), so_far))
            for i in range(n_embd // 8 * 8, n_embd):
                buffers.update[target + i] += weight * buffers.output[source + i]
    add_into(x[first:end], update)


@kernel()
def moe_layer(
    pool,
    x,
    norm,
    eps,
    router,
    n_expert,
    n_used,
    softmax,
    template,
    shared,
    addresses,
    jobs,
    routing,
    buffers,
):
    """``route``, ``run_experts`` and ``combine`` where every chosen expert has an address, and only
    ``route`` where one has none. Returns how many experts were chosen, and whether all is done."""
    n_experts = route(pool, x, norm, eps, router, n_expert, n_used, softmax, routing, buffers)
    for expert in routing.experts[:n_experts]:
        if addresses[expert] == 0:
            return n_experts, False
    places = np.arange(n_experts)
    run_experts(pool, len(x), template, shared, places, addresses, routing, jobs)
    combine(pool, x, n_used, softmax, len(shared) > 0, routing, buffers)
    return n_experts, True
