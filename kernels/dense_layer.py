"""A layer's dense feed-forward as one compiled function."""

from q4run.kernels.compiling.compile import kernel
from q4run.kernels.elementwise import add_into
from q4run.kernels.feed_forward import run_feed_forwards
from q4run.kernels.tokens import normalize


@kernel()
def dense_layer(pool, x, norm, eps, job, buffers):
    """Adds a feed-forward to the stream x, float32 (n_tokens, n_embd), in place.

    job: one ``FEED_FORWARD`` over ``buffers``, an ``ExpertBuffers``.
    """
    normalize(pool, x, norm, eps, buffers.normed, buffers.normed_int8)
    job[0].input.n_tokens = job[0].hidden.n_tokens = len(x)
    run_feed_forwards(pool, job)
    add_into(x, buffers.update[: x.size].reshape(x.shape))
