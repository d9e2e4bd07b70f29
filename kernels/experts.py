"""Mixture of experts as compiled functions: routing, the chosen experts, and their sum.

A token's choice of k experts makes k rows. Rows are grouped by expert, so that each expert's input
and output lie together; the experts themselves may be computed in any order and number at a time.
"""

import numpy as np

from q4run.kernels.compiling.compile import inline, kernel
from q4run.kernels.elementwise import add_into
from q4run.kernels.feed_forward import FEED_FORWARD, run_feed_forwards
from q4run.kernels.products.products import int8_arrays, run_products
from q4run.kernels.routing import ROUTER, choose_experts
from q4run.kernels.simd.memory import f32_array, i64_array, load_f32x8, store
from q4run.kernels.simd.ops import fma, mul, reduce_add, splat
from q4run.kernels.simd.vector import f32x8
from q4run.kernels.threads.tasks import run_tasks
from q4run.kernels.tokens import count_tasks, normalize, quantize_rows, tokens_of

# What a layer's experts are, whatever the tokens, and the buffers of a pass, all by address; the
# caller keeps the arrays alive. n_rows = n_tokens * n_used. A new property is a field; 0, which
# stands for none, is its default.
MIXTURE = np.dtype(
    [
        ("norm", np.int64),  # weights of the RMS norm before it, (n_embd,)
        ("eps", np.float32),  # of that norm
        ("router", ROUTER),  # of the normed tokens
        # An expert at address 0, over all rows: from the grouped input to the grouped output. Its
        # biases are those of all experts, (n_expert, n).
        ("expert", FEED_FORWARD),
        ("shared", FEED_FORWARD),  # from the normed tokens to the update, if it has any rows
        ("shared_gate", np.int64),  # the shared output times a sigmoid of this product, (n_embd,)
        ("residual_scale", np.float32),  # of the output, unless it is 0
        ("update", np.int64),  # float32 (n_tokens, n_embd)
        # What the router decided.
        ("chosen", np.int64),  # int64 (n_rows,): token by token, the best first
        ("weights", np.int64),  # float32 (n_rows,)
        ("rows", np.int64),  # int64 (n_rows,): where each choice's row is in the grouped order
        ("experts", np.int64),  # int64 (n_expert,): those that have rows, in ascending order
        ("first_row", np.int64),  # int64 (n_expert + 1,): of each of ``experts``, and the end
    ]
)


@kernel()
def route(pool, x, mixtures):
    """Norms the stream, asks the router and fills the experts' input; returns how many experts.

    x: float32 (n_tokens, n_embd); mixtures: one ``MIXTURE``.
    """
    mixture = mixtures[0]
    n_tokens, n_embd = x.shape
    products, n_used = mixture.router.product, mixture.router.n_used
    n_rows, n_expert = n_tokens * n_used, products[0].matrix.n_rows
    products[0].input.n_tokens = n_tokens
    normed, int8 = f32_array(products[0].input.x, x.size), int8_arrays(products[0].input, x.size)
    normalize(pool, x, f32_array(mixture.norm, n_embd), mixture.eps, normed, int8)
    run_products(pool, products)
    logits = f32_array(products[0].out, n_tokens * n_expert).reshape(n_tokens, n_expert)
    chosen, weights = i64_array(mixture.chosen, n_rows), f32_array(mixture.weights, n_rows)
    of_tokens = (n_tokens, n_used)
    choose_experts(mixture.router, logits, chosen.reshape(of_tokens), weights.reshape(of_tokens))
    n_experts = _group(chosen, n_expert, mixture)
    run_tasks(pool, count_tasks(n_tokens), _fill_inputs, (n_tokens, n_embd, mixtures))
    return n_experts


@inline
def _group(chosen, n_expert, mixture):
    """Sorts the rows by expert, in the order of tokens within each; returns how many experts."""
    rows = i64_array(mixture.rows, len(chosen))
    experts = i64_array(mixture.experts, n_expert)
    first_row = i64_array(mixture.first_row, n_expert + 1)
    counts = np.zeros(n_expert + 1, np.int64)
    for expert in chosen:
        counts[expert + 1] += 1
    n_experts = 0
    for expert in range(n_expert):
        if counts[expert + 1]:
            experts[n_experts] = expert
            first_row[n_experts] = counts[expert]
            n_experts += 1
        counts[expert + 1] += counts[expert]
    first_row[n_experts] = len(chosen)
    for i in range(len(chosen)):
        rows[i] = counts[chosen[i]]
        counts[chosen[i]] += 1
    return n_experts


@kernel()
def _fill_inputs(task, n_tokens, n_embd, mixtures):
    mixture = mixtures[0]
    router, n_used = mixture.router, mixture.router.n_used
    n_rows = n_tokens * n_used
    normed = f32_array(router.product[0].input.x, n_tokens * n_embd)
    inputs = f32_array(mixture.expert.input.x, n_rows * n_embd)
    q, scales, sums = int8_arrays(mixture.expert.input, n_rows * n_embd)
    rows, weights = i64_array(mixture.rows, n_rows), f32_array(mixture.weights, n_rows)
    first, end = tokens_of(task, n_tokens)
    for token in range(first, end):
        for choice in range(n_used * token, n_used * (token + 1)):
            row = rows[choice]
            weight = weights[choice] if router.on_input else np.float32(1)
            factor = splat(f32x8, weight)
            source, target = token * n_embd, row * n_embd
            for i in range(0, n_embd // 8 * 8, 8):
                store(inputs, target + i, mul(load_f32x8(normed, source + i), factor))
            for i in range(n_embd // 8 * 8, n_embd):
                inputs[target + i] = normed[source + i] * weight
            quantize_rows(inputs, row, row + 1, n_embd, q, scales, sums)


@kernel()
def run_experts(pool, n_tokens, mixtures, with_shared, places, addresses, jobs):
    """Computes some of the chosen experts and, where it is asked for, the shared expert.

    with_shared: 1 or 0, which a mixture without a shared expert must be given; places: the experts'
    places among the chosen, int64; addresses: int64 (n_expert,), where every expert is; jobs: room
    for one more ``FEED_FORWARD`` than experts.
    """
    mixture = mixtures[0]
    n_expert = mixture.router.product[0].matrix.n_rows
    experts = i64_array(mixture.experts, n_expert)
    first_row = i64_array(mixture.first_row, n_expert + 1)
    n_jobs = 0
    for place in places:
        rows = (first_row[place], first_row[place + 1])
        _place_job(mixture.expert, experts[place], addresses, rows, jobs[n_jobs])
        n_jobs += 1
    if with_shared:
        jobs[n_jobs] = mixture.shared
        jobs[n_jobs].input.n_tokens = jobs[n_jobs].hidden.n_tokens = n_tokens
        n_jobs += 1
    run_feed_forwards(pool, jobs[:n_jobs])


@inline
def _place_job(template, expert, addresses, rows, job):
    """One expert's feed-forward over its rows."""
    first, end = rows
    n_ff, n_embd = template.gate.n_rows, template.gate.n_cols
    address = addresses[expert]
    job.gate, job.up, job.down = template.gate, template.up, template.down
    job.gate.weights += address
    job.up.weights += address
    job.down.weights += address
    _place_rows(template.input, first, end, n_embd, job.input)
    _place_rows(template.hidden, first, end, n_ff, job.hidden)
    job.up_out = template.up_out + 4 * first * n_ff
    job.out = template.out + 4 * first * n_embd
    job.activation = template.activation
    job.gate_bias = _row_of(template.gate_bias, expert, n_ff)
    job.up_bias = _row_of(template.up_bias, expert, n_ff)
    job.down_bias = _row_of(template.down_bias, expert, n_embd)
    job.sub_norm = 0


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


@inline
def _row_of(address, row, n_cols):
    """The address of a row of float32; 0 where there are no rows."""
    return address + 4 * row * n_cols if address else 0


@kernel()
def combine(pool, x, mixtures):
    """x += the shared expert's output + the experts' weighted outputs, in the router's order."""
    run_tasks(pool, count_tasks(len(x)), _combine, (x, mixtures))


@kernel()
def _combine(task, x, mixtures):
    mixture = mixtures[0]
    n_tokens, n_embd = x.shape
    n_used = mixture.router.n_used
    n_rows = n_tokens * n_used
    rows, weights = i64_array(mixture.rows, n_rows), f32_array(mixture.weights, n_rows)
    outputs = f32_array(mixture.expert.out, n_rows * n_embd)
    update = f32_array(mixture.update, x.size).reshape(x.shape)
    first, end = tokens_of(task, n_tokens)
    for token in range(first, end):
        row = update[token]
        if mixture.shared.gate.n_rows == 0:
            row[:] = 0
        elif mixture.shared_gate:
            _scale(row, _shared_weight(mixture, token, n_embd))
        for choice in range(n_used * token, n_used * (token + 1)):
            weight = np.float32(1) if mixture.router.on_input else weights[choice]
            source = rows[choice] * n_embd
            for i in range(0, n_embd // 8 * 8, 8):
                values = load_f32x8(outputs, source + i)
                store(row, i, fma(values, splat(f32x8, weight), load_f32x8(row, i)))
            for i in range(n_embd // 8 * 8, n_embd):
                row[i] += weight * outputs[source + i]
        if mixture.residual_scale:
            _scale(row, mixture.residual_scale)
    add_into(x[first:end], update[first:end])


@inline
def _shared_weight(mixture, token, n_embd):
    """The sigmoid of a normed token's product with the gate of the shared expert."""
    normed = f32_array(mixture.shared.input.x + 4 * token * n_embd, n_embd)
    gate = f32_array(mixture.shared_gate, n_embd)
    lanes = splat(f32x8, 0.0)
    for i in range(0, n_embd // 8 * 8, 8):
        lanes = fma(load_f32x8(normed, i), load_f32x8(gate, i), lanes)
    total = reduce_add(lanes)
    for i in range(n_embd // 8 * 8, n_embd):
        total += normed[i] * gate[i]
    return np.float32(1) / (np.float32(1) + np.exp(-total))


@inline
def _scale(row, factor):
    for i in range(len(row)):
        row[i] *= factor


@kernel()
def moe_layer(pool, x, mixtures, addresses, jobs):
    """``route``, ``run_experts`` and ``combine`` where every chosen expert has an address, and only
    ``route`` where one has none. Returns how many experts were chosen, and whether all is done."""
    n_experts = route(pool, x, mixtures)
    mixture = mixtures[0]
    experts = i64_array(mixture.experts, n_experts)
    for expert in experts:
        if addresses[expert] == 0:
            return n_experts, False
    with_shared = mixture.shared.gate.n_rows > 0
    run_experts(pool, len(x), mixtures, with_shared, np.arange(n_experts), addresses, jobs)
    combine(pool, x, mixtures)
    return n_experts, True
