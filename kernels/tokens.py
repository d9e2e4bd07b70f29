"""Work that goes token by token, shared out over the pool a few tokens at a time."""

from q4run.kernels.compiling.compile import inline, kernel
from q4run.kernels.norm import rms_norm, rms_norm_heads
from q4run.kernels.products.activations import GROUP, quantize_group
from q4run.kernels.rope import rotate_adjacent
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
def prepare_heads(pool, q, k, rotation, qk_norm, eps, temperatures):
    """RoPE, q/k norm and attention temperature, each where the layer has it, in place.

    q: float32 (n_tokens, n_head, head_dim), k alike; rotation: cos and sin, float32 (n_tokens,
    n_rot / 2), with n_rot = 0 for a layer without RoPE; temperatures: float32 (n_tokens,), or
    empty.
    """
    arguments = (q, k, rotation, qk_norm, eps, temperatures)
    run_tasks(pool, count_tasks(len(q)), _prepare_heads, arguments)


@kernel()
def _prepare_heads(task, q, k, rotation, qk_norm, eps, temperatures):
    first, end = tokens_of(task, len(q))
    cos, sin = rotation[0][first:end], rotation[1][first:end]
    rotate_adjacent(q[first:end], cos, sin)
    rotate_adjacent(k[first:end], cos, sin)
    if qk_norm:
        rms_norm_heads(q[first:end], eps)
        rms_norm_heads(k[first:end], eps)
    if len(temperatures):
        for token in range(first, end):
            for head in range(q.shape[1]):
                for i in range(q.shape[2]):
                    q[token, head, i] *= temperatures[token]
