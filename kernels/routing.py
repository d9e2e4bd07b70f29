"""Which experts a token goes to."""

from q4run.kernels.compiling.compile import kernel


@kernel()
def top_k(logits, ids, values):
    """The k largest logits of each token, largest first, ties to the lower expert.

    logits: float32 (n_tokens, n_expert); ids: int64 (n_tokens, k) and values: float32
    (n_tokens, k) are filled. k must not exceed n_expert.
    """
    n_tokens, n_expert = logits.shape
    k = ids.shape[1]
    for token in range(n_tokens):
        filled = 0
        for expert in range(n_expert):
            value = logits[token, expert]
            if filled == k and not value > values[token, k - 1]:
                continue
            place = min(filled, k - 1)
            while place > 0 and value > values[token, place - 1]:
                values[token, place] = values[token, place - 1]
                ids[token, place] = ids[token, place - 1]
                place -= 1
            values[token, place] = value
            ids[token, place] = expert
            filled = min(filled + 1, k)
