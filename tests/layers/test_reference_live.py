"""The stored reference logits: that they belong to the checkpoints the tests make, that an
independent float64 forward pass agrees with them, and (marker `reference`) that transformers
still computes them."""

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from helpers.tiny_checkpoints import CASES, case_named, fingerprint, make_checkpoint
from helpers.tiny_tokenizer import VOCAB_SIZE
from reference import numpy_forward
from tokenizers import Tokenizer

REFERENCE = Path(__file__).resolve().parents[1] / "reference"
CASE_NAMES = [case.name for case in CASES]

# Over the largest logit: float32 rounding in another order; 1e-6 to 3e-6 were measured.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def stored() -> dict[str, Any]:
    """The contents of logits.npz."""
    with np.load(REFERENCE / "logits.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def stored_trained() -> dict[str, Any]:
    """The contents of tiny_llama4.npz."""
    with np.load(REFERENCE / "tiny_llama4.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def transformers_forward() -> ModuleType:
    """The module that runs transformers, or a skip where it is not installed."""
    for name in ("torch", "transformers"):
        pytest.importorskip(name, reason=f"{name} comes with the [reference] extra")
    from reference import transformers_forward

    return transformers_forward


def assert_close(actual: Any, expected: Any) -> None:
    """The largest difference stays below `TOLERANCE` of the largest expected value."""
    assert actual.shape == expected.shape
    assert np.abs(actual - expected).max() < TOLERANCE * np.abs(expected).max()


def test_every_case_is_stored_and_no_other(stored: dict[str, Any]) -> None:
    assert sorted(stored) == sorted([*CASE_NAMES, "about"])


@pytest.mark.parametrize("name", CASE_NAMES)
def test_checkpoint_is_the_one_the_logits_were_made_from(
    name: str, stored: dict[str, Any], tmp_path: Path
) -> None:
    case = case_named(name)
    about = json.loads(str(stored["about"]))
    checkpoint = make_checkpoint(name, tmp_path)
    assert fingerprint(checkpoint, case.token_ids) == about["cases"][name]["fingerprint"]
    assert stored[name].shape == (len(case.token_ids), VOCAB_SIZE)
    assert stored[name].dtype == np.float32


@pytest.mark.parametrize("name", CASE_NAMES)
def test_float64_forward_pass_agrees(name: str, stored: dict[str, Any], tmp_path: Path) -> None:
    config, weights = numpy_forward.load_checkpoint(make_checkpoint(name, tmp_path))
    result = numpy_forward.forward(config, weights, case_named(name).token_ids)
    assert_close(result.logits, stored[name])
    # A choice nearer to a tie than this could fall either way in float32.
    assert result.router_gap > 5e-3


@pytest.mark.parametrize("name", ["llama4_scout", "llama_gqa", "mixtral_top_2"])
def test_tokenizer_covers_the_vocabulary_and_decodes_back(name: str, tmp_path: Path) -> None:
    make_checkpoint(name, tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert tokenizer.get_vocab_size() == VOCAB_SIZE
    assert sorted(tokenizer.get_vocab().values()) == list(range(VOCAB_SIZE))
    text = "The rain and the träin, in 1999\n\nto Spain 🚂"
    encoding = tokenizer.encode(text)
    assert encoding.tokens[:1] == ["<|begin_of_text|>"]
    assert "Ġand" in encoding.tokens
    assert tokenizer.decode(encoding.ids) == text
    tokenizer_config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert tokenizer.token_to_id(tokenizer_config["eos_token"]) is not None


def test_float64_forward_pass_agrees_on_the_trained_model(
    shared_data: Path, stored_trained: dict[str, Any]
) -> None:
    folder = shared_data / "weights" / "tiny-llama4"
    config, weights = numpy_forward.load_checkpoint(folder)
    result = numpy_forward.forward(config, weights, stored_trained["chat_ids"].tolist())
    assert_close(result.logits[-1], stored_trained["chat_last"])
    experts = np.stack([layer[:, 0] for layer in result.experts])
    np.testing.assert_array_equal(experts, stored_trained["chat_experts"])


@pytest.mark.reference
@pytest.mark.parametrize(
    "name",
    [
        "llama4_scout",
        "llama4_maverick",
        "llama4_conditional",
        "llama_rope_scaling",
        "mixtral_sharded",
    ],
)
def test_transformers_still_computes_the_stored_logits(
    name: str, stored: dict[str, Any], transformers_forward: ModuleType, tmp_path: Path
) -> None:
    model = transformers_forward.load_model(make_checkpoint(name, tmp_path))
    live = transformers_forward.logits(model, case_named(name).token_ids)
    assert_close(live, stored[name])


@pytest.mark.reference
def test_transformers_still_computes_the_trained_models_logits(
    shared_data: Path, stored_trained: dict[str, Any], transformers_forward: ModuleType
) -> None:
    model = transformers_forward.load_model(shared_data / "weights" / "tiny-llama4")
    for prompt in ("chat", "valid"):
        live = transformers_forward.logits(model, stored_trained[f"{prompt}_ids"].tolist())
        rows, columns = stored_trained[f"{prompt}_positions"], stored_trained[f"{prompt}_columns"]
        assert_close(live[np.ix_(rows, columns)], stored_trained[f"{prompt}_logits"])
        assert_close(live[-1], stored_trained[f"{prompt}_last"])
