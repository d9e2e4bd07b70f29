"""Routers: which experts and with what weights, against float64 and as published code has it."""

from dataclasses import dataclass

import numpy as np
import pytest

from q4run.kernels.routing import CHOSEN_SOFTMAX, ROUTER, SIGMOID, SOFTMAX, best_of, choose_experts

N_EXPERT, N_TOKENS = 12, 40


@dataclass(frozen=True)
class Form:
    """A router; biases are at random where it has them."""

    scores: int = SOFTMAX
    renormalise: bool = True
    scale: float = 1.0
    bias: bool = False
    selection_bias: bool = False
    n_group: int = 1
    n_group_used: int = 1


FORMS = {
    "mixtral": Form(),
    "olmoe": Form(renormalise=False),
    "llama 4": Form(SIGMOID, renormalise=False),
    "gpt-oss": Form(CHOSEN_SOFTMAX, renormalise=False, bias=True),
    "glm": Form(SIGMOID, scale=2.5, selection_bias=True),
    "dots": Form(SIGMOID, renormalise=False, scale=1.5, selection_bias=True),
    "ernie": Form(SOFTMAX, selection_bias=True),
    "groups": Form(SIGMOID, scale=2.5, selection_bias=True, n_group=4, n_group_used=2),
    "groups alone": Form(SOFTMAX, renormalise=False, n_group=3, n_group_used=2),
    "all of it": Form(SOFTMAX, False, 0.7, True, True, 2, 1),
}


def normal(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, dtype=np.float32)


BIAS, SELECTION_BIAS = normal(N_EXPERT, seed=1), normal(N_EXPERT, seed=2) * np.float32(0.3)


def choose(form: Form, logits: np.ndarray, n_used: int) -> tuple[np.ndarray, np.ndarray]:
    """The experts and the weights of each token; ``logits`` become what the choice went by."""
    router = np.zeros(1, ROUTER)
    router["n_used"] = n_used
    router["scores"], router["renormalise"] = form.scores, form.renormalise
    router["scale"] = form.scale if form.scale != 1 else 0
    router["bias"] = BIAS.ctypes.data if form.bias else 0
    router["selection_bias"] = SELECTION_BIAS.ctypes.data if form.selection_bias else 0
    router["n_group"], router["n_group_used"] = form.n_group, form.n_group_used
    chosen = np.full((len(logits), n_used), -1)
    weights = np.full((len(logits), n_used), np.nan, np.float32)
    choose_experts(router[0], logits, chosen, weights)
    return chosen, weights


def expected_choice(form: Form, logits: np.ndarray, n_used: int) -> tuple[np.ndarray, np.ndarray]:
    """The same in float64, step by step as DeepSeek-V3's and Mixtral's own code has it."""
    wide = logits.astype(np.float64) + (BIAS if form.bias else 0)
    if form.scores == SIGMOID:
        scores = 1 / (1 + np.exp(-wide))
    else:
        scores = np.exp(wide) / np.exp(wide).sum(axis=1, keepdims=True)
    choice = scores + (SELECTION_BIAS if form.selection_bias else 0)
    groups = choice.reshape(len(wide), form.n_group, -1)
    sums = np.sort(groups, axis=2)[:, :, -2:].sum(axis=2)
    left_out = np.argsort(-sums, axis=1)[:, form.n_group_used :]
    for token, out in enumerate(left_out):
        groups[token, out] = -np.inf
    chosen = np.argsort(-choice, axis=1)[:, :n_used]
    weights = np.take_along_axis(scores, chosen, axis=1)
    if form.renormalise or form.scores == CHOSEN_SOFTMAX:
        weights /= weights.sum(axis=1, keepdims=True)
    return chosen, weights * form.scale


@pytest.mark.parametrize("n_used", [1, 3, 4])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_as_published_code_chooses(form, n_used):
    logits = normal(N_TOKENS, N_EXPERT, seed=3) * np.float32(2)
    chosen, weights = choose(form, logits.copy(), n_used)
    expected_experts, expected_weights = expected_choice(form, logits, n_used)
    np.testing.assert_array_equal(chosen, expected_experts)
    np.testing.assert_allclose(weights, expected_weights, rtol=2e-6)


def test_biases_and_groups_change_the_choice():
    """Else the test above would not see them."""
    logits = normal(N_TOKENS, N_EXPERT, seed=3) * np.float32(2)
    plain, _ = choose(Form(SIGMOID), logits.copy(), 4)
    for change in (
        Form(SIGMOID, bias=True),
        Form(SIGMOID, selection_bias=True),
        Form(SIGMOID, n_group=4, n_group_used=2),
    ):
        chosen, _ = choose(change, logits.copy(), 4)
        assert (chosen != plain).any(axis=1).mean() > 0.2


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_token_alone_has_the_bits_it_has_in_a_batch(form):
    logits = normal(N_TOKENS, N_EXPERT, seed=4)
    together = choose(form, logits.copy(), 3)
    for token in range(N_TOKENS):
        alone = choose(form, logits[token : token + 1].copy(), 3)
        for one, all_ in zip(alone, together, strict=True):
            np.testing.assert_array_equal(one[0], all_[token])


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_guesses_see_what_the_choice_went_by(form):
    logits = normal(N_TOKENS, N_EXPERT, seed=5)
    chosen, _ = choose(form, logits, 4)
    assert np.isfinite(logits).all()
    if form.n_group == 1:
        np.testing.assert_array_equal(np.argsort(-logits, axis=1, kind="stable")[:, :4], chosen)


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0, 3e38])
def test_any_logits_name_experts_that_exist_once(form, value):
    chosen, _ = choose(form, np.full((3, N_EXPERT), value, np.float32), 4)
    for experts in chosen.tolist():
        assert len(set(experts)) == 4
        assert set(experts) <= set(range(N_EXPERT))


def test_sigmoids_of_nothing_are_not_divided_by_zero():
    _, weights = choose(Form(SIGMOID), np.full((1, N_EXPERT), -200, np.float32), 3)
    assert not weights.any()


def test_no_tokens():
    chosen, weights = choose(FORMS["groups"], np.empty((0, N_EXPERT), np.float32), 3)
    assert chosen.size == weights.size == 0


# The best of a row.


def largest(logits: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    ids = np.full((len(logits), k), -1, np.int64)
    values = np.full((len(logits), k), np.nan, np.float32)
    for row in range(len(logits)):
        best_of(logits[row], ids[row], values[row])
    return ids, values


@pytest.mark.parametrize(("n_expert", "k"), [(1, 1), (4, 1), (4, 2), (4, 4), (128, 8)])
def test_best_of(n_expert, k):
    logits = normal(50, n_expert, seed=6)
    ids, values = largest(logits, k)
    expected = np.argsort(-logits, axis=1, kind="stable")[:, :k]
    np.testing.assert_array_equal(ids, expected)
    np.testing.assert_array_equal(values, np.take_along_axis(logits, expected, axis=1))


def test_ties_go_to_the_lower_expert():
    rng = np.random.default_rng(5)
    logits = rng.integers(0, 3, (200, 9)).astype(np.float32)
    ids, _ = largest(logits, 4)
    np.testing.assert_array_equal(ids, np.argsort(-logits, axis=1, kind="stable")[:, :4])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_still_name_experts(value):
    """A damaged router must not send a token to an expert that does not exist."""
    logits = normal(40, 6, seed=7)
    logits[np.random.default_rng(6).random((40, 6)) < 0.4] = value
    logits[0] = value
    ids, _ = largest(logits, 3)
    assert ((ids >= 0) & (ids < 6)).all()
    assert all(len(set(row)) == 3 for row in ids.tolist())
