"""Ling 2.0, whose checkpoints bring code of their own, against a plain forward pass in float64.

Written from the description of the model (arXiv:2507.17702) and its published configuration: half
of each head rotates, queries and keys are normed head by head before that, experts are chosen by
sigmoids and a bias from the best groups, and a block that predicts further tokens comes last.
"""

from pathlib import Path

import gguf
import numpy as np
import pytest
from helpers.tiny_tokenizer import VOCAB_SIZE

import q4run
from q4run.budget import least_budget
from q4run.experts.layout import read_layout
from q4run.gguf_file import open_gguf
from q4run.models import read_config

N_LAYER, N_EMBD, N_HEAD, N_HEAD_KV, HEAD_DIM, N_ROT = 3, 48, 4, 2, 16, 8
N_EXPERT, N_USED, N_GROUP, N_GROUP_USED = 8, 3, 4, 2
N_FF, N_FF_EXPERT, N_FF_SHARED, SCALE, THETA, EPS = 80, 24, 40, 2.5, 600.0, 1e-6
N_LEADING_DENSE, N_MTP = 1, 1
KEYS = {
    "block_count": N_LAYER + N_MTP,
    "nextn_predict_layers": N_MTP,
    "context_length": 128,
    "embedding_length": N_EMBD,
    "feed_forward_length": N_FF,
    "attention.head_count": N_HEAD,
    "attention.head_count_kv": N_HEAD_KV,
    "attention.key_length": HEAD_DIM,
    "attention.value_length": HEAD_DIM,
    "attention.layer_norm_rms_epsilon": EPS,
    "rope.dimension_count": N_ROT,
    "rope.freq_base": THETA,
    "leading_dense_block_count": N_LEADING_DENSE,
    "expert_count": N_EXPERT,
    "expert_used_count": N_USED,
    "expert_feed_forward_length": N_FF_EXPERT,
    "expert_shared_count": 1,
    "expert_shared_feed_forward_length": N_FF_SHARED,
    "expert_weights_scale": SCALE,
    "expert_weights_norm": True,
    "expert_gating_func": 2,
    "expert_group_count": N_GROUP,
    "expert_group_used_count": N_GROUP_USED,
}


def made_weights() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)

    def matrix(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) * 1.5 / shape[-1] ** 0.5).astype(np.float32)

    def vector(n: int) -> np.ndarray:
        return (1 + 0.3 * rng.standard_normal(n)).astype(np.float32)

    weights = {
        "token_embd.weight": matrix(VOCAB_SIZE, N_EMBD),
        "output_norm.weight": vector(N_EMBD),
        "output.weight": matrix(VOCAB_SIZE, N_EMBD),
    }
    for i in range(N_LAYER):
        layer = {
            "attn_norm.weight": vector(N_EMBD),
            "attn_qkv.weight": matrix((N_HEAD + 2 * N_HEAD_KV) * HEAD_DIM, N_EMBD),
            "attn_q_norm.weight": vector(HEAD_DIM),
            "attn_k_norm.weight": vector(HEAD_DIM),
            "attn_output.weight": matrix(N_EMBD, N_HEAD * HEAD_DIM),
            "ffn_norm.weight": vector(N_EMBD),
        }
        if i < N_LEADING_DENSE:
            layer |= {
                "ffn_gate.weight": matrix(N_FF, N_EMBD),
                "ffn_up.weight": matrix(N_FF, N_EMBD),
                "ffn_down.weight": matrix(N_EMBD, N_FF),
            }
        else:
            layer |= {
                "ffn_gate_inp.weight": 2 * matrix(N_EXPERT, N_EMBD),
                "exp_probs_b.bias": (0.3 * rng.standard_normal(N_EXPERT)).astype(np.float32),
                "ffn_gate_exps.weight": matrix(N_EXPERT, N_FF_EXPERT, N_EMBD),
                "ffn_up_exps.weight": matrix(N_EXPERT, N_FF_EXPERT, N_EMBD),
                "ffn_down_exps.weight": matrix(N_EXPERT, N_EMBD, N_FF_EXPERT),
                "ffn_gate_shexp.weight": matrix(N_FF_SHARED, N_EMBD),
                "ffn_up_shexp.weight": matrix(N_FF_SHARED, N_EMBD),
                "ffn_down_shexp.weight": matrix(N_EMBD, N_FF_SHARED),
            }
        weights |= {f"blk.{i}.{name}": values for name, values in layer.items()}
    # What predicts further tokens is not computed, whatever it holds.
    weights[f"blk.{N_LAYER}.nextn.eh_proj.weight"] = np.full((N_EMBD, 2 * N_EMBD), np.nan, "f4")
    weights[f"blk.{N_LAYER}.attn_norm.weight"] = np.full(N_EMBD, np.nan, "f4")
    return weights


def with_biases(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same with biases of the experts' matrices."""
    rng, biases = np.random.default_rng(4), {}
    for name, values in weights.items():
        if name.endswith("_exps.weight"):
            shape = values.shape[:2]
            biases[name.replace(".weight", ".bias")] = rng.standard_normal(shape).astype(np.float32)
    return weights | biases


def fused(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The same as a file may store it: gate and up of the experts in one stack."""
    stored = {}
    for name, values in weights.items():
        if "ffn_gate_exps" in name:
            both = [values, weights[name.replace("gate_exps", "up_exps")]]
            stored[name.replace("gate_exps", "gate_up_exps")] = np.concatenate(both, axis=1)
        elif "ffn_up_exps" not in name:
            stored[name] = values
    return stored


@pytest.fixture(scope="module", params=["plain", "biases", "fused"])
def form(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def weights(form) -> dict[str, np.ndarray]:
    return made_weights() if form == "plain" else with_biases(made_weights())


@pytest.fixture(scope="module")
def path(form, weights, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("ling") / "model.gguf"
    stored = fused(weights) if form == "fused" else weights
    writer = gguf.GGUFWriter(path, "bailingmoe2")
    kinds = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    for key, value in KEYS.items():
        kinds[type(value)](f"bailingmoe2.{key}", value)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"t{i}" for i in range(VOCAB_SIZE)])
    writer.add_token_scores([0.0] * VOCAB_SIZE)
    for name, values in stored.items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + EPS) * weight


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def rotated(x: np.ndarray) -> np.ndarray:
    """Pairs i and i + N_ROT / 2 of each head, (tokens, heads, HEAD_DIM)."""
    half = N_ROT // 2
    angles = np.arange(len(x))[:, None] * THETA ** (-np.arange(half) / half)
    turned = (x[..., :half] + 1j * x[..., half:N_ROT]) * np.exp(1j * angles)[:, None]
    return np.concatenate([turned.real, turned.imag, x[..., N_ROT:]], axis=-1)


def attention(x: np.ndarray, w: dict[str, np.ndarray]) -> np.ndarray:
    qkv = (norm(x, w["attn_norm.weight"]) @ w["attn_qkv.weight"].T).reshape(len(x), -1, HEAD_DIM)
    q, k, v = np.split(qkv, [N_HEAD, N_HEAD + N_HEAD_KV], axis=1)
    q, k = rotated(norm(q, w["attn_q_norm.weight"])), rotated(norm(k, w["attn_k_norm.weight"]))
    k, v = (np.repeat(part, N_HEAD // N_HEAD_KV, axis=1) for part in (k, v))
    scores = np.einsum("qhd,khd->hqk", q, k) / HEAD_DIM**0.5
    scores[:, np.triu(np.ones((len(x), len(x)), bool), 1)] = -np.inf
    shares = np.exp(scores - scores.max(axis=2, keepdims=True))
    shares /= shares.sum(axis=2, keepdims=True)
    return np.einsum("hqk,khd->qhd", shares, v).reshape(len(x), -1) @ w["attn_output.weight"].T


def product(w: dict[str, np.ndarray], name: str, expert: int, x: np.ndarray) -> np.ndarray:
    bias = w.get(f"{name}.bias")
    return w[f"{name}.weight"][expert] @ x + (0 if bias is None else bias[expert])


def experts(x: np.ndarray, w: dict[str, np.ndarray]) -> np.ndarray:
    out = silu(x @ w["ffn_gate_shexp.weight"].T) * (x @ w["ffn_up_shexp.weight"].T)
    out = out @ w["ffn_down_shexp.weight"].T
    scores = 1 / (1 + np.exp(-x @ w["ffn_gate_inp.weight"].T))
    for token, own in enumerate(scores):
        choice = own + w["exp_probs_b.bias"]
        groups = choice.reshape(N_GROUP, -1)
        best = np.argsort(-np.sort(groups, axis=1)[:, -2:].sum(axis=1))[:N_GROUP_USED]
        allowed = np.isin(np.arange(N_EXPERT) // groups.shape[1], best)
        chosen = np.argsort(-np.where(allowed, choice, -np.inf))[:N_USED]
        for expert in chosen:
            hidden = silu(product(w, "ffn_gate_exps", expert, x[token]))
            hidden = hidden * product(w, "ffn_up_exps", expert, x[token])
            weight = SCALE * own[expert] / own[chosen].sum()
            out[token] += weight * product(w, "ffn_down_exps", expert, hidden)
    return out


def reference(weights: dict[str, np.ndarray], ids: list[int]) -> np.ndarray:
    wide = {name: values.astype(np.float64) for name, values in weights.items()}
    x = wide["token_embd.weight"][ids]
    for i in range(N_LAYER):
        prefix = f"blk.{i}."
        w = {n.removeprefix(prefix): v for n, v in wide.items() if n.startswith(prefix)}
        x = x + attention(x, w)
        normed = norm(x, w["ffn_norm.weight"])
        if i < N_LEADING_DENSE:
            hidden = silu(normed @ w["ffn_gate.weight"].T) * (normed @ w["ffn_up.weight"].T)
            x = x + hidden @ w["ffn_down.weight"].T
        else:
            x = x + experts(normed, w)
    return norm(x, wide["output_norm.weight"]) @ wide["output.weight"].T


@pytest.mark.parametrize("n_tokens", [1, 40])
def test_logits_are_those_of_the_plain_pass(weights, path, n_tokens):
    ids = np.random.default_rng(n_tokens).integers(0, VOCAB_SIZE, n_tokens).tolist()
    expected = reference(weights, ids)
    with q4run.load(path, context=64, kv_type="f32") as model:
        logits = model.logits(ids)
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()


def test_streamed_equals_resident(path):
    ids = np.random.default_rng(5).integers(0, VOCAB_SIZE, 40).tolist()
    with q4run.load(path, context=64, kv_type="f32") as model:
        resident = model.logits(ids)
    file = open_gguf(path)
    config = read_config(file)
    layout = read_layout(file, config)
    budget = least_budget(file, config, layout, context=64, kv_type="f32")
    with q4run.load(path, context=64, kv_type="f32", ram_budget=budget) as model:
        assert not model.plan.all_resident
        assert np.array_equal(model.logits(ids), resident)
