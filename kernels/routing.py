"""Which experts a token goes to, and with what weights."""

import numpy as np

from q4run.kernels.compiling.compile import inline, kernel
from q4run.kernels.products.products import PRODUCT
from q4run.kernels.simd.memory import f32_array
from q4run.kernels.tokens import add_to_rows

# How logits become the scores that weights are taken from.
SOFTMAX, SIGMOID, CHOSEN_SOFTMAX = range(3)
# A layer's router. Vectors are named by address, float32 (n_expert,). A new property is a field; 0,
# which stands for none, is its default.
ROUTER = np.dtype(
    [
        ("product", PRODUCT, (1,)),  # from the normed tokens to the logits
        ("n_used", np.int64),
        ("bias", np.int64),  # added to the logits
        ("scores", np.int64),  # one of the above
        ("selection_bias", np.int64),  # added to the scores for the choice alone
        ("n_group", np.int64),  # the experts are so many groups, unless it is 0,
        ("n_group_used", np.int64),  # of which so many can be chosen from
        ("renormalise", np.int64),  # weights are divided by their sum
        ("on_input", np.int64),  # weights multiply what the experts get, not what they give
        ("scale", np.float32),  # of the weights, unless it is 0
    ]
)
# What a sum of weights that all are next to nothing is at least (DeepSeek-V3 and its heirs).
_LEAST_SUM = np.float32(1e-20)


@kernel()
def choose_experts(router, logits, chosen, weights):
    """Fills in the experts of each token, the best first, ties to the lower, and their weights.

    router: a ``ROUTER``; logits: float32 (n_tokens, n_expert), of which is left what the choice
    went by: with the bias or, where scores and not logits are compared, the scores; chosen: int64
    (n_tokens, n_used); weights: float32 (n_tokens, n_used). The method is that of DeepSeek-V3
    (arXiv:2412.19437, 2.1.2), of which other routers leave out parts.
    """
    n_expert = logits.shape[1]
    add_to_rows(logits, router.bias)
    scores, allowed = np.empty(n_expert, np.float32), np.empty(n_expert, np.float32)
    for token in range(len(logits)):
        row, experts, of_chosen = logits[token], chosen[token], weights[token]
        if router.selection_bias != 0 or router.n_group > 1:
            _score(router, row, row, scores)
            _add_vector(scores, router.selection_bias)
            for expert in range(n_expert):
                allowed[expert] = scores[expert]
            if router.n_group > 1:
                _hide_groups(router, allowed)
            best_of(allowed, experts, of_chosen)
            for k in range(len(experts)):
                of_chosen[k] = row[experts[k]]
            _weigh(router, row, of_chosen)
            for expert in range(n_expert):
                row[expert] = scores[expert]
        else:
            best_of(row, experts, of_chosen)
            _weigh(router, row, of_chosen)


@kernel()
def best_of(values, places, best):
    """The largest values and their places, largest first, ties to the lower place; as many as
    ``places`` has room for, which must not exceed those there are."""
    k, filled = len(places), 0
    for i in range(len(values)):
        value = values[i]
        if filled == k and not value > best[k - 1]:
            continue
        place = min(filled, k - 1)
        while place > 0 and value > best[place - 1]:
            best[place] = best[place - 1]
            places[place] = places[place - 1]
            place -= 1
        best[place] = value
        places[place] = i
        filled = min(filled + 1, k)


@inline
def _weigh(router, logits, weights):
    """Logits of the chosen to their weights, in place; logits: of all experts."""
    among_chosen = router.scores == CHOSEN_SOFTMAX or (
        router.scores == SOFTMAX and router.renormalise != 0
    )
    # Renormalising a softmax over the chosen is the softmax of the chosen.
    _score(router, weights if among_chosen else logits, weights, weights)
    if router.scores == SIGMOID and router.renormalise != 0:
        total = _LEAST_SUM
        for k in range(len(weights)):
            total += weights[k]
        for k in range(len(weights)):
            weights[k] /= total
    if router.scale:
        for k in range(len(weights)):
            weights[k] *= router.scale


@kernel()
def _score(router, among, logits, scores):
    """The scores of ``logits``: a softmax over ``among``, or sigmoids. Arrays may be the same."""
    one = np.float32(1)
    if router.scores == SIGMOID:
        for i in range(len(logits)):
            scores[i] = one / (one + np.exp(-logits[i]))
    else:
        largest = among[0]
        for i in range(1, len(among)):
            largest = max(largest, among[i])
        total = np.float32(0)
        for i in range(len(among)):
            total += np.exp(among[i] - largest)
        for i in range(len(logits)):
            scores[i] = np.exp(logits[i] - largest) / total


@inline
def _add_vector(values, address):
    if address:
        vector = f32_array(address, len(values))
        for i in range(len(values)):
            values[i] += vector[i]


@kernel()
def _hide_groups(router, scores):
    """Leaves of the groups of experts those whose two best add up to the most; the scores of the
    others become -inf."""
    n_group, n_used = router.n_group, router.n_group_used
    size = len(scores) // n_group
    sums, two = np.empty(n_group, np.float32), np.empty(2, np.float32)
    used, places = np.empty(n_used, np.int64), np.empty(2, np.int64)
    for group in range(n_group):
        best_of(scores[group * size : (group + 1) * size], places, two)
        sums[group] = two[0] + two[1]
    best_of(sums, used, np.empty(n_used, np.float32))
    for expert in range(len(scores)):
        is_used = False
        for i in range(n_used):
            is_used = is_used or used[i] == expert // size
        if not is_used:
            scores[expert] = -np.inf
