"""Random tiny Hugging Face checkpoints: the same bytes on every machine, made without torch.

`make_checkpoint(name, folder)` writes what the Hub would hold for such a model: `config.json`,
one or several `*.safetensors`, `tokenizer.json`, `tokenizer_config.json`. The ordinary tests
convert the folder and run it; `reference/make_logits.py` runs the same folder in transformers.

Weights come from the raw 64-bit output of PCG64, whose stream numpy keeps fixed: the four 16-bit
parts of a word are added, centred and scaled (a sum of four uniform numbers is close to normal,
within +-3.5 standard deviations), then rounded once to the stored type. A tensor depends only on
its name and the case's seed.
"""

import hashlib
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from helpers.tiny_cases import CASES, Case, case_named
from helpers.tiny_tokenizer import VOCAB_SIZE, special_id, write_tokenizer

__all__ = ["CASES", "Case", "case_named", "fingerprint", "make_checkpoint"]


def make_checkpoint(case_name: str, folder: Path) -> Path:
    """Writes the checkpoint of a case into `folder` (made if absent) and returns the folder."""
    case = case_named(case_name)
    folder.mkdir(parents=True, exist_ok=True)
    config = case.text_config
    config["bos_token_id"] = special_id(case.family, "<|begin_of_text|>")
    end_of_turn = "<|eot|>" if case.family == "llama4" else "<|eot_id|>"
    ends = [special_id(case.family, token) for token in ("<|end_of_text|>", end_of_turn)]
    config["eos_token_id"] = ends
    config["torch_dtype"] = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}[case.dtype]
    if case.conditional:
        config = {
            "model_type": "llama4",
            "architectures": ["Llama4ForConditionalGeneration"],
            "text_config": config,
            "vision_config": {"model_type": "llama4_vision_model", "hidden_size": 32},
            "tie_word_embeddings": False,
        }
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    write_tokenizer(case.family, folder)

    tensors = {
        name: _encode(_weights(case.seed, name, shape, std, mean), case.dtype)
        for name, shape, std, mean in _tensor_list(case)
    }
    if case.shards == 1:
        _write_safetensors(folder / "model.safetensors", case.dtype, tensors)
        return folder
    weight_map: dict[str, str] = {}
    for shard in range(case.shards):
        # Every n-th tensor, so that the matrices of one layer lie in different files.
        part = dict(list(tensors.items())[shard :: case.shards])
        file_name = f"model-{shard + 1:05}-of-{case.shards:05}.safetensors"
        _write_safetensors(folder / file_name, case.dtype, part)
        weight_map |= dict.fromkeys(part, file_name)
    total_size = sum(array.nbytes for array in tensors.values())
    index = {"metadata": {"total_size": total_size}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return folder


def fingerprint(checkpoint: Path, token_ids: list[int]) -> str:
    """SHA-256 over the configuration, the tensors and the prompt that stored logits belong to."""
    digest = hashlib.sha256(json.dumps(token_ids).encode())
    for path in [checkpoint / "config.json", *sorted(checkpoint.glob("*.safetensors"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()


TensorSpec = tuple[str, tuple[int, ...], float, float]  # name, shape, standard deviation, mean


def _tensor_list(case: Case) -> Iterator[TensorSpec]:
    """Every tensor of the checkpoint, under the names that the family uses on the Hub."""
    config = case.text_config
    hidden = config["hidden_size"]
    prefix = "language_model." if case.conditional else ""
    embed_std = 3.0 / hidden**0.5 if config["tie_word_embeddings"] else 0.5
    yield f"{prefix}model.embed_tokens.weight", (VOCAB_SIZE, hidden), embed_std, 0.0
    for layer in range(config["num_hidden_layers"]):
        base = f"{prefix}model.layers.{layer}"
        yield from _attention(f"{base}.self_attn", config)
        yield f"{base}.input_layernorm.weight", (hidden,), 0.2, 1.0
        yield f"{base}.post_attention_layernorm.weight", (hidden,), 0.2, 1.0
        if case.family == "llama4":
            yield from _llama4_ffn(f"{base}.feed_forward", config, layer)
        elif case.family == "mixtral":
            yield from _mixtral_ffn(f"{base}.block_sparse_moe", config)
        else:
            yield from _dense_ffn(f"{base}.mlp", hidden, config["intermediate_size"])
    yield f"{prefix}model.norm.weight", (hidden,), 0.2, 1.0
    if not config["tie_word_embeddings"]:
        yield _linear(f"{prefix}lm_head", VOCAB_SIZE, hidden, gain=3.0)
    if case.conditional:
        yield _linear("multi_modal_projector.linear_1", hidden, 32)
        yield "vision_model.class_embedding", (32,), 1.0, 0.0
        yield _linear("vision_model.patch_embedding.linear", 32, 48)


def _linear(name: str, n_out: int, n_in: int, gain: float = 1.0) -> TensorSpec:
    """A matrix that turns unit-variance inputs into outputs with a deviation of `gain`."""
    return f"{name}.weight", (n_out, n_in), gain / n_in**0.5, 0.0


def _attention(base: str, config: dict[str, Any]) -> Iterator[TensorSpec]:
    hidden, n_head = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim", hidden // n_head)
    n_kv = config["num_key_value_heads"] * head_dim
    # Strong q and k, so that a wrong mask, rotation or temperature is plain to see.
    yield _linear(f"{base}.q_proj", n_head * head_dim, hidden, gain=1.3)
    yield _linear(f"{base}.k_proj", n_kv, hidden, gain=1.3)
    yield _linear(f"{base}.v_proj", n_kv, hidden)
    yield _linear(f"{base}.o_proj", hidden, n_head * head_dim)


def _dense_ffn(base: str, hidden: int, n_ff: int) -> Iterator[TensorSpec]:
    yield _linear(f"{base}.gate_proj", n_ff, hidden, gain=1.5)
    yield _linear(f"{base}.up_proj", n_ff, hidden)
    yield _linear(f"{base}.down_proj", hidden, n_ff)


def _llama4_ffn(base: str, config: dict[str, Any], layer: int) -> Iterator[TensorSpec]:
    hidden, n_ff = config["hidden_size"], config["intermediate_size"]
    n_expert = config["num_local_experts"]
    if (layer + 1) % config["interleave_moe_layer_step"] != 0:
        yield from _dense_ffn(base, hidden, config["intermediate_size_mlp"])
        return
    yield _linear(f"{base}.router", n_expert, hidden, gain=2.0)
    yield f"{base}.experts.gate_up_proj", (n_expert, hidden, 2 * n_ff), 1.5 / hidden**0.5, 0.0
    yield f"{base}.experts.down_proj", (n_expert, n_ff, hidden), 1.5 / n_ff**0.5, 0.0
    yield from _dense_ffn(f"{base}.shared_expert", hidden, n_ff)


def _mixtral_ffn(base: str, config: dict[str, Any]) -> Iterator[TensorSpec]:
    hidden, n_ff = config["hidden_size"], config["intermediate_size"]
    yield _linear(f"{base}.gate", config["num_local_experts"], hidden, gain=2.0)
    for expert in range(config["num_local_experts"]):
        yield _linear(f"{base}.experts.{expert}.w1", n_ff, hidden, gain=1.5)
        yield _linear(f"{base}.experts.{expert}.w2", hidden, n_ff)
        yield _linear(f"{base}.experts.{expert}.w3", n_ff, hidden)


def _weights(
    seed: int, name: str, shape: tuple[int, ...], std: float, mean: float
) -> np.ndarray[Any, np.dtype[np.float32]]:
    words = np.random.PCG64([seed, zlib.crc32(name.encode())]).random_raw(int(np.prod(shape)))
    parts = [(words >> np.uint64(shift)) & np.uint64(0xFFFF) for shift in (0, 16, 32, 48)]
    centred = np.sum(parts, axis=0).astype(np.float64) - 2 * 65535  # deviation: 65536 / sqrt(3)
    return (mean + centred * (std * 3**0.5 / 65536)).astype(np.float32).reshape(shape)


def _encode(values: np.ndarray[Any, np.dtype[np.float32]], dtype: str) -> np.ndarray[Any, Any]:
    """Values in their stored form; bf16 as the upper halves of f32, rounded to nearest even."""
    if dtype == "BF16":
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
    return values.astype({"F16": "<f2", "F32": "<f4"}[dtype])


def _write_safetensors(path: Path, dtype: str, tensors: dict[str, np.ndarray[Any, Any]]) -> None:
    """One safetensors file, written by hand since numpy has no bf16 (huggingface/safetensors)."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, array in tensors.items():
        end = offset + array.nbytes
        header[name] = {"dtype": dtype, "shape": list(array.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in tensors.values():
            file.write(array.tobytes())
