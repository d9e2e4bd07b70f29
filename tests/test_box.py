"""The model in the box: what it holds, what it computes, and that it is there without being named.

Compared with what `reference/make_box.py` stored.
"""

import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import invoke

import q4run
from q4run.box import DESCRIPTION, MODEL
from q4run.gguf_file import open_gguf
from q4run.inspection.model import summarize
from q4run.kernels.formats import find_format

REFERENCE = Path(__file__).parent / "reference"
MOST_BYTES = 16 * 10**6
CARD = (MODEL.parent / "MODEL_CARD.md").read_text()


@pytest.fixture(scope="module")
def stored():
    with np.load(REFERENCE / "box.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def model():
    with q4run.load(MODEL, context=1024, kv_type="f32") as model:
        yield model


def expert_tensors() -> dict[str, np.ndarray]:
    """The raw bytes of each expert tensor, uint8 (experts, rows, bytes)."""
    return {
        name: np.fromfile(MODEL, np.uint8, tensor.n_bytes, offset=tensor.offset).reshape(
            *tensor.shape[:2], -1
        )
        for name, tensor in open_gguf(MODEL).tensors.items()
        if name.endswith("_exps.weight")
    }


def test_it_is_small_and_what_it_says_it_is():
    summary = summarize(open_gguf(MODEL))
    n_bytes = MODEL.stat().st_size
    assert n_bytes <= MOST_BYTES
    assert f"{summary['parameters'] / 1e6:.0f} M parameters" in DESCRIPTION
    assert summary["tokenizer"]["chat_template"]
    assert summary["classes"]["experts"]["types"].keys() == {"tq2_0"}
    assert f"{n_bytes / 1e6:.2f} MB" in CARD
    assert f"{summary['parameters'] / 1e6:.1f} M" in CARD
    assert f"{summary['active_parameters'] / 1e6:.1f} M" in CARD


def test_its_experts_are_the_trained_ones_exactly():
    digests = json.loads((REFERENCE / "box_experts.json").read_text())
    tensors = expert_tensors()
    assert tensors.keys() == digests.keys()
    for name, raw in tensors.items():
        fmt = find_format(open_gguf(MODEL).tensor(name).type)
        values = fmt.dequantize(raw)
        assert hashlib.sha256(values.tobytes()).hexdigest() == digests[name]
        blocks = np.abs(values.reshape(-1, fmt.block_size))
        assert ((blocks == 0) | (blocks == blocks.max(1, keepdims=True))).all()


def distance(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """The mean KL divergence in nats, and how often the likeliest token is the same."""

    def logs(logits: np.ndarray) -> np.ndarray:
        shifted = logits.astype(np.float64)
        return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))

    a, b = logs(ours - ours.max(1, keepdims=True)), logs(theirs)
    return float((np.exp(b) * (b - a)).sum(1).mean()), float((a.argmax(1) == b.argmax(1)).mean())


@pytest.mark.parametrize("prompt", ["dialogue", "fable"])
@pytest.mark.parametrize(
    ("kind", "most", "least_same"),
    [
        ("packed", 5e-4, 0.95),  # the same weights: int8 activations are the difference
        ("trained", 1e-3, 0.95),  # and the rounding of all but the experts to q8_0
        ("llama_cpp", 2e-3, 0.95),  # the same file: int8 scales for 256 activations, not for 32
    ],
)
def test_it_computes_what_others_do(model, stored, prompt, kind, most, least_same):
    logits = model.logits(stored[f"{prompt}_ids"].tolist())[stored[f"{prompt}_positions"]]
    divergence, same = distance(logits, stored[f"{prompt}_{kind}"])
    assert divergence < most
    assert same >= least_same


def test_within_less_memory_than_its_experts_take_it_streams(stored):
    ids = stored["dialogue_ids"].tolist()
    with q4run.load(MODEL, context=512) as resident:
        assert resident.plan.all_resident
        expected = resident.logits(ids)
    with q4run.load(MODEL, context=512, ram_budget="12M") as streamed:
        assert not streamed.plan.all_resident
        np.testing.assert_array_equal(streamed.logits(ids), expected)
        assert streamed.stats.bytes_read > 0


def test_run_takes_it_where_no_model_is_named():
    result = invoke("run", "-p", "I want to book a table in San Jose.", "-n", 24, "--temp", 0)
    assert result.exit_code == 0, result.stderr
    assert re.search(r"\b(restaurant|table|time|food|city|date|people)\b", result.stdout)
    assert f"the one in the box, {DESCRIPTION}." in result.stderr.splitlines()[0]


def test_chat_takes_it_where_no_model_is_named():
    result = invoke("chat", "-n", 8, "--ram-budget", "12M", "--context", 512, stdin="Hello!\n")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(("Hello", "Hi"))
    assert "in the box" in result.stderr.splitlines()[0]
    assert "hits" in result.stderr.splitlines()[-1]


def test_bench_takes_it_where_no_model_is_named():
    arguments = ["-p", 8, "-n", 4, "--runs", 1, "--threads", 1, "--json"]
    result = invoke("bench", *arguments)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["model"] == str(MODEL)


def test_a_file_that_is_named_is_not_said_to_be_in_the_box(tmp_path):
    result = invoke("run", tmp_path / "absent.gguf", "-p", "Hi")
    assert result.exit_code == 1
    assert "box" not in result.stderr
