"""Sharded bf16 checkpoints of any size with random weights: for what depends on bytes, not sense.

The form is that of Llama 4 Scout, four layers with as many experts as the size asks for. Experts
are stacks stored input-major, the hardest case for a converter with little memory.
"""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers

from q4run.bench.models.geometries import GEOMETRIES
from q4run.bench.models.random_blocks import random_blocks
from q4run.models.shapes import Geometry
from q4run.text.patterns import O200K

N_LAYERS = 4
SHARD_BYTES = 4 * 10**9
BOS, EOT = "<|begin_of_text|>", "<|eot|>"
# So many values are made; tensors repeat them, each time from another one on.
POOL_VALUES = 1 << 22

Shapes = dict[str, tuple[int, ...]]


def write_checkpoint(folder: Path, n_bytes: int, seed: int = 0) -> int:
    """Writes a checkpoint of about ``n_bytes`` (at least one expert a layer) and returns its size.

    The same arguments give the same bytes. ``folder`` is made; its files are replaced.
    """
    geometry = GEOMETRIES["scout"]
    n_expert = 1
    while _size(_shapes(geometry, n_expert + 1)) <= n_bytes:
        n_expert += 1
    shapes = _shapes(geometry, n_expert)
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    (folder / "config.json").write_text(json.dumps(_config(geometry, n_expert), indent=1))
    _write_tokenizer(folder)
    shards = list(_divide(shapes))
    names = [f"model-{n + 1:05}-of-{len(shards):05}.safetensors" for n in range(len(shards))]
    weights = _Weights(seed)
    for name, shard in zip(names, shards, strict=True):
        weights.write(folder / name, shard)
    weight_map = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
    index = {"metadata": {"total_size": _size(shapes)}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return _size(shapes)


def _size(shapes: Shapes) -> int:
    return sum(2 * math.prod(shape) for shape in shapes.values())


def _shapes(geometry: Geometry, n_expert: int) -> Shapes:
    n_embd, n_ff, head_dim = geometry.n_embd, geometry.n_ff, geometry.head_dim
    shapes: Shapes = {"model.embed_tokens.weight": (geometry.n_vocab, n_embd)}
    for layer in range(N_LAYERS):
        base = f"model.layers.{layer}"
        for name, n_head in (("q", geometry.n_head), ("k", geometry.n_head_kv)):
            shapes[f"{base}.self_attn.{name}_proj.weight"] = (n_head * head_dim, n_embd)
        shapes |= {
            f"{base}.self_attn.v_proj.weight": (geometry.n_head_kv * head_dim, n_embd),
            f"{base}.self_attn.o_proj.weight": (n_embd, geometry.n_head * head_dim),
            f"{base}.input_layernorm.weight": (n_embd,),
            f"{base}.post_attention_layernorm.weight": (n_embd,),
            f"{base}.feed_forward.router.weight": (n_expert, n_embd),
            f"{base}.feed_forward.experts.gate_up_proj": (n_expert, n_embd, 2 * n_ff),
            f"{base}.feed_forward.experts.down_proj": (n_expert, n_ff, n_embd),
            f"{base}.feed_forward.shared_expert.gate_proj.weight": (n_ff, n_embd),
            f"{base}.feed_forward.shared_expert.up_proj.weight": (n_ff, n_embd),
            f"{base}.feed_forward.shared_expert.down_proj.weight": (n_embd, n_ff),
        }
    return shapes | {
        "model.norm.weight": (n_embd,),
        "lm_head.weight": (geometry.n_vocab, n_embd),
    }


def _config(geometry: Geometry, n_expert: int) -> dict[str, Any]:
    return {
        "architectures": ["Llama4ForCausalLM"],
        "model_type": "llama4_text",
        "hidden_size": geometry.n_embd,
        "num_hidden_layers": N_LAYERS,
        "num_attention_heads": geometry.n_head,
        "num_key_value_heads": geometry.n_head_kv,
        "head_dim": geometry.head_dim,
        "intermediate_size": geometry.n_ff,
        "intermediate_size_mlp": geometry.n_ff_dense,
        "num_local_experts": n_expert,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 1,
        "vocab_size": geometry.n_vocab,
        "max_position_embeddings": 131072,
        "rope_theta": geometry.rope_theta,
        "bos_token_id": 256,
        "eos_token_id": 257,
    }


def _write_tokenizer(folder: Path) -> None:
    """The bytes, and two special tokens."""
    (pattern,) = O200K.patterns
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: n for n, token in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (BOS, EOT)])
    tokenizer.save(str(folder / "tokenizer.json"))


def _divide(shapes: Shapes) -> Iterator[Shapes]:
    """The tensors shard by shard."""
    shard: Shapes = {}
    for name, shape in shapes.items():
        if shard and _size(shard) + 2 * math.prod(shape) > SHARD_BYTES:
            yield shard
            shard = {}
        shard[name] = shape
    yield shard


class _Weights:
    """Random bf16 from one pool, each run of it from another place on."""

    def __init__(self, seed: int) -> None:
        self._rng = np.random.default_rng(seed)
        self._pool = random_blocks("bf16", POOL_VALUES, 0.02, self._rng).reshape(-1).data

    def write(self, path: Path, shapes: Shapes) -> None:
        header: dict[str, Any] = {}
        offset = 0
        for name, shape in shapes.items():
            extent = [offset, offset + 2 * math.prod(shape)]
            header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": extent}
            offset = extent[1]
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with path.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            self._write_values(file, offset)

    def _write_values(self, file: BinaryIO, n_bytes: int) -> None:
        while n_bytes:
            begin = 2 * int(self._rng.integers(POOL_VALUES))
            n_bytes -= file.write(self._pool[begin:][:n_bytes])
