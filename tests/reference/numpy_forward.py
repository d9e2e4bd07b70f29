"""Forward passes of Llama 4, Llama and Mixtral in float64 numpy, straight from a checkpoint folder.

An oracle for tests: slow, plain, and independent of q4run and of transformers. Written from Meta's
published model semantics (meta-llama/llama-models, models/llama4 and models/llama3) and the Mixtral
paper (arXiv 2401.04088). Shapes: T tokens, D hidden, H heads, K key/value heads, d head_dim.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, np.dtype[np.float64]]
Weights = dict[str, Array]


@dataclass
class Result:
    """`logits` (T, vocab); per MoE layer the chosen experts (T, k), and the least `router_gap`:
    the smallest distance, over all tokens and layers, from a chosen expert's router logit to the
    best one not chosen."""

    logits: Array
    experts: list[np.ndarray[Any, np.dtype[np.int64]]] = field(default_factory=list)
    router_gap: float = np.inf


def load_checkpoint(folder: Path) -> tuple[dict[str, Any], Weights]:
    """The language model's configuration and its tensors (no vision) from a checkpoint folder."""
    config = json.loads((folder / "config.json").read_text())
    weights: Weights = {}
    for path in sorted(folder.glob("*.safetensors")):
        for name, array in read_safetensors(path).items():
            if not name.startswith(("vision_model.", "multi_modal_projector.")):
                weights[name.removeprefix("language_model.")] = array
    return config.get("text_config", config), weights


def read_safetensors(path: Path) -> Weights:
    """All tensors of a safetensors file (bf16, f16 or f32) as float64."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = (start + offset for offset in entry["data_offsets"])
        if entry["dtype"] == "BF16":
            bits = np.frombuffer(data[begin:end], "<u2").astype(np.uint32) << 16
            values = bits.view(np.float32)
        else:
            values = np.frombuffer(data[begin:end], {"F16": "<f2", "F32": "<f4"}[entry["dtype"]])
        tensors[name] = values.astype(np.float64).reshape(entry["shape"])
    return tensors


def forward(config: dict[str, Any], weights: Weights, token_ids: list[int]) -> Result:
    """The logits of every position of one sequence that starts at position 0."""
    llama4 = config["model_type"] == "llama4_text"
    result = Result(np.empty(0))
    hidden = weights["model.embed_tokens.weight"][token_ids]
    for layer in range(config["num_hidden_layers"]):
        part = f"model.layers.{layer}."
        w = {name[len(part) :]: value for name, value in weights.items() if name.startswith(part)}
        x = rms_norm(hidden, config["rms_norm_eps"]) * w["input_layernorm.weight"]
        attend = llama4_attention if llama4 else llama_attention
        hidden = hidden + attend(x, w, config, layer)
        x = rms_norm(hidden, config["rms_norm_eps"]) * w["post_attention_layernorm.weight"]
        if "feed_forward.router.weight" in w:
            hidden = hidden + llama4_moe(x, w, config, result)
        elif "block_sparse_moe.gate.weight" in w:
            hidden = hidden + mixtral_moe(x, w, config, result)
        else:
            hidden = hidden + dense_ffn(x, w, "feed_forward." if llama4 else "mlp.")
    hidden = rms_norm(hidden, config["rms_norm_eps"]) * weights["model.norm.weight"]
    output = "model.embed_tokens" if config.get("tie_word_embeddings") else "lm_head"
    result.logits = hidden @ weights[f"{output}.weight"].T
    return result


def rms_norm(x: Array, eps: float) -> Array:
    """x / rms(x) over the last axis, without a weight."""
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps)


def silu(x: Array) -> Array:
    """x * sigmoid(x)."""
    return x * sigmoid(x)


def sigmoid(x: Array) -> Array:
    """The logistic function, by tanh so that no exponential overflows."""
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def softmax(x: Array) -> Array:
    """Over the last axis."""
    exps = np.exp(x - x.max(axis=-1, keepdims=True))
    return exps / exps.sum(axis=-1, keepdims=True)


def split_heads(x: Array, head_dim: int) -> Array:
    """(T, H*d) -> (H, T, d)."""
    return x.reshape(len(x), -1, head_dim).swapaxes(0, 1)


def head_size(config: dict[str, Any]) -> int:
    """d: stated, or hidden / heads."""
    return config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]


def rope_angles(config: dict[str, Any], n_tokens: int) -> Array:
    """(T, d/2): position times frequency, the frequencies scaled as Llama 3.1 and Scout ask.

    Slow frequencies (wavelength above original / low) are divided by the factor, fast ones
    (below original / high) kept, those between interpolated.
    """
    rope = config.get("rope_parameters") or (config.get("rope_scaling") or {}) | {
        "rope_theta": config["rope_theta"]
    }
    head_dim = head_size(config)
    frequencies = rope["rope_theta"] ** (-np.arange(0, head_dim, 2) / head_dim)
    if rope.get("rope_type", "default") == "llama3":
        turns = rope["original_max_position_embeddings"] * frequencies / (2 * np.pi)
        low, high = rope["low_freq_factor"], rope["high_freq_factor"]
        # With low == high (Scout) there is no band: the division's result is never used.
        keep = np.clip((turns - low) / (high - low or 1.0), 0.0, 1.0)
        keep = np.where(turns < low, 0.0, np.where(turns > high, 1.0, keep))
        frequencies = frequencies * (keep + (1 - keep) / rope["factor"])
    return np.arange(n_tokens)[:, None] * frequencies


def llama4_attention(x: Array, w: Weights, config: dict[str, Any], layer: int) -> Array:
    """RoPE, q/k norm and chunks on RoPE layers; tuned temperature and all keys on NoPE layers."""
    n_tokens, head_dim = len(x), head_size(config)
    pattern = config.get("no_rope_layers") or [
        (index + 1) % config.get("no_rope_layer_interval", 4) != 0
        for index in range(config["num_hidden_layers"])
    ]
    q = split_heads(x @ w["self_attn.q_proj.weight"].T, head_dim)
    k = split_heads(x @ w["self_attn.k_proj.weight"].T, head_dim)
    position = np.arange(n_tokens)
    if pattern[layer]:
        turn = np.exp(1j * rope_angles(config, n_tokens))
        q, k = rotate_adjacent(q, turn), rotate_adjacent(k, turn)
        if config["use_qk_norm"]:
            q, k = rms_norm(q, config["rms_norm_eps"]), rms_norm(k, config["rms_norm_eps"])
    elif config["attn_temperature_tuning"]:
        steps = np.floor((position + 1) / config["floor_scale"])
        q = q * (np.log(steps + 1) * config["attn_scale"] + 1)[:, None]
    chunked = pattern[layer]
    if config.get("layer_types"):
        chunked = config["layer_types"][layer] == "chunked_attention"
    visible = position[:, None] >= position
    if chunked:
        chunk = position // config["attention_chunk_size"]
        visible &= chunk[:, None] == chunk
    return attention(q, k, x, w, visible)


def llama_attention(x: Array, w: Weights, config: dict[str, Any], layer: int) -> Array:
    """Causal grouped-query attention; the Hub's layout pairs element i with i + d/2 for RoPE."""
    n_tokens, head_dim = len(x), head_size(config)
    turn = np.exp(1j * rope_angles(config, n_tokens))
    q = rotate_halves(split_heads(x @ w["self_attn.q_proj.weight"].T, head_dim), turn)
    k = rotate_halves(split_heads(x @ w["self_attn.k_proj.weight"].T, head_dim), turn)
    return attention(q, k, x, w, np.tri(n_tokens, dtype=bool))


def rotate_adjacent(x: Array, turn: np.ndarray[Any, np.dtype[np.complex128]]) -> Array:
    """RoPE on the pairs (0, 1), (2, 3), ... of the last axis."""
    rotated = (x[..., 0::2] + 1j * x[..., 1::2]) * turn
    return np.stack([rotated.real, rotated.imag], axis=-1).reshape(x.shape)


def rotate_halves(x: Array, turn: np.ndarray[Any, np.dtype[np.complex128]]) -> Array:
    """RoPE on the pairs (0, d/2), (1, d/2 + 1), ... of the last axis."""
    half = x.shape[-1] // 2
    rotated = (x[..., :half] + 1j * x[..., half:]) * turn
    return np.concatenate([rotated.real, rotated.imag], axis=-1)


def attention(
    q: Array, k: Array, x: Array, w: Weights, visible: np.ndarray[Any, np.dtype[np.bool_]]
) -> Array:
    """softmax(q k / sqrt(d)) v, then the output projection; q (H, T, d), k (K, T, d)."""
    head_dim = q.shape[-1]
    v = split_heads(x @ w["self_attn.v_proj.weight"].T, head_dim)
    group = len(q) // len(k)
    scores = q @ k.repeat(group, axis=0).swapaxes(1, 2) / np.sqrt(head_dim)
    mixed = softmax(np.where(visible, scores, -np.inf)) @ v.repeat(group, axis=0)
    return mixed.swapaxes(0, 1).reshape(len(x), -1) @ w["self_attn.o_proj.weight"].T


def dense_ffn(x: Array, w: Weights, prefix: str) -> Array:
    """down(silu(gate x) * up x)."""
    gate = silu(x @ w[f"{prefix}gate_proj.weight"].T)
    return (gate * (x @ w[f"{prefix}up_proj.weight"].T)) @ w[f"{prefix}down_proj.weight"].T


def choose_experts(
    logits: Array, n_chosen: int, result: Result
) -> np.ndarray[Any, np.dtype[np.int64]]:
    """The indices (T, k) of the largest router logits, best first; noted in `result`."""
    order = np.argsort(-logits, axis=-1, kind="stable")
    ranked = np.take_along_axis(logits, order, axis=-1)
    if n_chosen < logits.shape[-1]:
        gap = float(np.min(ranked[:, n_chosen - 1] - ranked[:, n_chosen]))
        result.router_gap = min(result.router_gap, gap)
    result.experts.append(order[:, :n_chosen])
    return order[:, :n_chosen]


def llama4_moe(x: Array, w: Weights, config: dict[str, Any], result: Result) -> Array:
    """Each chosen expert gets its input times sigmoid(router logit); plus the shared expert."""
    logits = x @ w["feed_forward.router.weight"].T
    chosen = choose_experts(logits, config["num_experts_per_tok"], result)
    output = dense_ffn(x, w, "feed_forward.shared_expert.")
    for expert in range(logits.shape[-1]):
        tokens = np.flatnonzero((chosen == expert).any(axis=-1))
        scaled = x[tokens] * sigmoid(logits[tokens, expert])[:, None]
        gate_up = scaled @ w["feed_forward.experts.gate_up_proj"][expert]
        gate, up = np.split(gate_up, 2, axis=-1)
        output[tokens] += (silu(gate) * up) @ w["feed_forward.experts.down_proj"][expert]
    return output


def mixtral_moe(x: Array, w: Weights, config: dict[str, Any], result: Result) -> Array:
    """The chosen experts' outputs, weighted by a softmax over the chosen router logits."""
    logits = x @ w["block_sparse_moe.gate.weight"].T
    chosen = choose_experts(logits, config["num_experts_per_tok"], result)
    share = softmax(np.take_along_axis(logits, chosen, axis=-1))
    output = np.zeros_like(x)
    for expert in range(logits.shape[-1]):
        tokens, rank = np.nonzero(chosen == expert)
        w1, w2, w3 = (w[f"block_sparse_moe.experts.{expert}.w{n}.weight"] for n in (1, 2, 3))
        y = (silu(x[tokens] @ w1.T) * (x[tokens] @ w3.T)) @ w2.T
        output[tokens] += y * share[tokens, rank, None]
    return output
