"""Which experts a token goes to, in numpy, as DeepSeek-V3's and Mixtral's own code has it."""

import numpy as np

from q4run.models.parts import Router, Scores


def choose(
    logits: np.ndarray, router: Router, n_used: int, selection_bias: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """The experts of every token and their weights, int64 and float32 (n_tokens, n_used).

    logits: float32 (n_tokens, n_expert), with the router's bias; selection_bias: (n_expert,).
    """
    by_score = selection_bias is not None or router.n_group > 1
    choice = _scores(logits, router) if by_score else logits
    if selection_bias is not None:
        choice = choice + selection_bias
    if router.n_group > 1:
        choice = _of_best_groups(choice, router)
    chosen = np.argsort(-choice, axis=1, kind="stable")[:, :n_used]
    among_chosen = router.renormalise or router.scores is Scores.CHOSEN_SOFTMAX
    if router.scores is not Scores.SIGMOID and among_chosen:
        weights = softmax(np.take_along_axis(logits, chosen, axis=1))
    else:
        weights = np.take_along_axis(_scores(logits, router), chosen, axis=1)
        if router.renormalise:
            weights = weights / (weights.sum(axis=1, keepdims=True) + np.float32(1e-20))
    return chosen, weights * np.float32(router.scale)


def softmax(logits: np.ndarray) -> np.ndarray:
    """The softmax over the last axis."""
    exps = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares: np.ndarray = exps / exps.sum(axis=-1, keepdims=True)
    return shares


def sigmoid(x: np.ndarray) -> np.ndarray:
    """1 / (1 + e^-x), by tanh, so that no exponential overflows."""
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def _scores(logits: np.ndarray, router: Router) -> np.ndarray:
    return sigmoid(logits) if router.scores is Scores.SIGMOID else softmax(logits)


def _of_best_groups(choice: np.ndarray, router: Router) -> np.ndarray:
    """The scores of the groups whose two best add up to the most; -inf for all others."""
    groups = choice.reshape(len(choice), router.n_group, -1).copy()
    sums = np.sort(groups, axis=2)[:, :, -2:].sum(axis=2)
    others = np.argsort(-sums, axis=1, kind="stable")[:, router.n_group_used :]
    np.put_along_axis(groups, others[:, :, None], -np.inf, axis=1)
    return groups.reshape(choice.shape)
