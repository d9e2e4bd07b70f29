"""A layer's dense feed-forward as one compiled function."""

import numpy as np

from q4run.kernels.compiling.compile import kernel
from q4run.kernels.elementwise import add_into
from q4run.kernels.feed_forward import run_feed_forwards
from q4run.kernels.products.products import int8_arrays
from q4run.kernels.simd.memory import f32_array
from q4run.kernels.tokens import finish_update, normalize

# What is done around a dense feed-forward, whatever the tokens; vectors as in ``ATTENTION``.
DENSE = np.dtype(
    [
        ("norm", np.int64),  # weights of the RMS norm before it, (n_embd,)
        ("eps", np.float32),  # of that norm
        ("post_norm", np.int64),  # weights of an RMS norm of the output, (n_embd,)
        ("residual_scale", np.float32),  # of the output, unless it is 0
    ]
)


@kernel()
def dense_layer(pool, x, layers, jobs):
    """Adds a feed-forward to the stream x, float32 (n_tokens, n_embd), in place.

    layers: one ``DENSE``; jobs: one ``FEED_FORWARD``, from the normed stream to the update.
    """
    layer, n_embd = layers[0], x.shape[1]
    jobs[0].input.n_tokens = jobs[0].hidden.n_tokens = len(x)
    normed, normed_int8 = f32_array(jobs[0].input.x, x.size), int8_arrays(jobs[0].input, x.size)
    normalize(pool, x, f32_array(layer.norm, n_embd), layer.eps, normed, normed_int8)
    run_feed_forwards(pool, jobs)
    update = f32_array(jobs[0].out, x.size).reshape(x.shape)
    finish_update(pool, update, 0, layer.post_norm, layer.eps, layer.residual_scale)
    add_into(x, update)
