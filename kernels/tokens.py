"""Work that goes token by token, shared out over the pool a few tokens at a time."""

from q4run.kernels.compiling.compile import inline, kernel
from q4run.kernels.norm import rms_norm
from q4run.kernels.products.activations import GROUP, quantize_group
from q4run.kernels.simd.memory import f32_array
from q4run.kernels.threads.tasks import run_tasks

TOKENS_PER_TASK = 8


@inline
def count_tasks(n_tokens):
    """How many tasks of ``TOKENS_PER_TASK`` tokens there are."""
    return (n_tokens + TOKENS_PER_TASK - 1) // TOKENS_PER_TASK


@inline
def tokens_of(task, n_tokens):
    """The first token of a task and the one past its last."""
    return TOKENS_PER_TASK * task, min(TOKENS_PER_TASK * (task + 1), n_tokens)


@inline
def add_to_rows(x, address):
    """Adds the float32 vector at an address, unless that is 0, to every row of x (n, ...)."""
    if address:
        row = f32_array(address, x[0].size if len(x) else 0)
        flat = x.reshape(len(x), row.size)
        for token in range(len(flat)):
            for i in range(row.size):
                flat[token, i] += row[i]


@inline
def quantize_rows(x, first, end, n_cols, q, scales, sums):
    """Rows of flat ``x`` in int8, to the same places; nothing where there is no room for them."""
    if len(q):
        for group in range(first * n_cols // GROUP, end * n_cols // GROUP):
            quantize_group(x, group, q, scales, sums)


@kernel()
def normalize(pool, x, weight, eps, normed, int8):
    """RMS norm of every token, also in int8.

    x: float32 (n_tokens, n_embd); normed: flat float32; int8: flat q, scales and sums as
    ``Int8Activations`` has them, empty where no matrix takes them.
    """
    run_tasks(pool, count_tasks(len(x)), _normalize, (x, weight, eps, normed, int8))


@kernel()
def _normalize(task, x, weight, eps, normed, int8):
    n_tokens, n_embd = x.shape
    first, end = tokens_of(task, n_tokens)
    out = normed[first * n_embd : end * n_embd].reshape(end - first, n_embd)
    rms_norm(x[first:end], weight, eps, out)
    q, scales, sums = int8
    quantize_rows(normed, first, end, n_embd, q, scales, sums)


@kernel()
def quantize_tokens(pool, x, n_tokens, n_cols, int8):
    """The first ``n_tokens`` rows of flat ``x`` in int8."""
    if len(int8[0]):
        run_tasks(pool, count_tasks(n_tokens), _quantize, (x, n_tokens, n_cols, int8))


@kernel()
def _quantize(task, x, n_tokens, n_cols, int8):
    first, end = tokens_of(task, n_tokens)
    q, scales, sums = int8
    quantize_rows(x, first, end, n_cols, q, scales, sums)


@kernel()
def finish_update(pool, update, bias, norm, eps, scale):
    """What a part gives, before it is added to the stream: bias, RMS norm and scale, in place.

    update: float32 (n_tokens, n_embd); bias, norm: addresses of float32 (n_embd,), 0 where there is
    none; scale: float32, 0 for none.
    """
    if bias or norm or scale:
        run_tasks(pool, count_tasks(len(update)), _finish, (update, bias, norm, eps, scale))


@kernel()
def _finish(task, update, bias, norm, eps, scale):
    first, end = tokens_of(task, len(update))
    rows = update[first:end]
    add_to_rows(rows, bias)
    if norm:
        rms_norm(rows, f32_array(norm, rows.shape[1]), eps, rows)
    if scale:
        for token in range(len(rows)):
            for i in range(rows.shape[1]):
                rows[token, i] *= scale
