"""Rotary position embedding (Su et al., arXiv:2104.09864)."""

from q4run.kernels.compiling.compile import kernel


@kernel()
def rotate_halves(x, cos, sin):
    """Rotates the pairs (x[i], x[i + n_rot / 2]) in place: GGUF's NEOX form.

    x, cos, sin: as for ``rotate_adjacent``.
    """
    half = cos.shape[1]
    for token in range(x.shape[0]):
        for head in range(x.shape[1]):
            for i in range(half):
                a, b = x[token, head, i], x[token, head, half + i]
                c, s = cos[token, i], sin[token, i]
                x[token, head, i] = a * c - b * s
                x[token, head, half + i] = a * s + b * c


@kernel()
def rotate_adjacent(x, cos, sin):
    """Rotates the pairs (x[2i], x[2i + 1]) in place: GGUF's NORM form.

    x: float32 (n_tokens, n_head, head_dim); cos, sin: float32 (n_tokens, n_rot / 2). The values
    past n_rot of a head stay as they are.
    """
    for token in range(x.shape[0]):
        for head in range(x.shape[1]):
            for i in range(cos.shape[1]):
                a, b = x[token, head, 2 * i], x[token, head, 2 * i + 1]
                c, s = cos[token, i], sin[token, i]
                x[token, head, 2 * i] = a * c - b * s
                x[token, head, 2 * i + 1] = a * s + b * c
