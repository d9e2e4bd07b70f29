"""A trained model as a Hugging Face folder: python -m q4run.bench.tiny_llama4.export RUN FOLDER

RUN is the output folder of the training. `transformers` loads FOLDER and `q4run convert` takes it.
The experts are written ternary, as they are computed with; bfloat16 holds them without loss.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from q4run.bench.tiny_llama4.checkpoint import CHECKPOINT, LOG, TOKENIZER, load_checkpoint
from q4run.bench.tiny_llama4.model import ModelConfig
from q4run.bench.tiny_llama4.parameters import Parameters, is_float32
from q4run.bench.tiny_llama4.tokenizer import BOS, END_OF_TEXT, EOT, PAD, write_tokenizer

# As long as the chunks: positions past them were never seen, but cost nothing to allow.
CONTEXT = 8192
_SAMPLING = {"do_sample": True, "temperature": 0.6, "top_p": 0.9}
_ATTENTION = {name: f"self_attn.{name}_proj" for name in "qkvo"}
_NAMES = _ATTENTION | {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "router": "feed_forward.router",
}


def write_folder(parameters: Parameters, tokenizer: Tokenizer, folder: Path) -> None:
    """config.json, generation_config.json, model.safetensors and the tokenizer's files."""
    folder.mkdir(parents=True, exist_ok=True)
    ids = {name: tokenizer.token_to_id(name) for name in (BOS, END_OF_TEXT, EOT, PAD)}
    tokens = {
        "bos_token_id": ids[BOS],
        "eos_token_id": [ids[EOT], ids[END_OF_TEXT]],
        "pad_token_id": ids[PAD],
    }
    _write_json(folder / "config.json", _config(parameters.config) | tokens)
    _write_json(folder / "generation_config.json", tokens | _SAMPLING)
    tensors = {name: tensor.contiguous() for name, tensor in to_transformers(parameters).items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(tokenizer, folder, CONTEXT)


def read_folder(folder: Path) -> Parameters:
    """What `write_folder` wrote, in float32, to be computed with and not trained on."""
    values = json.loads((folder / "config.json").read_text())
    config = ModelConfig(
        n_vocab=values["vocab_size"],
        n_embd=values["hidden_size"],
        n_layer=values["num_hidden_layers"],
        n_head=values["num_attention_heads"],
        n_head_kv=values["num_key_value_heads"],
        head_dim=values["head_dim"],
        n_ff_expert=values["intermediate_size"],
        n_expert=values["num_local_experts"],
        rope_theta=values["rope_theta"],
        rms_eps=values["rms_norm_eps"],
        nope_interval=values["no_rope_layer_interval"],
        chunk_size=values["attention_chunk_size"],
        floor_scale=values["floor_scale"],
        attn_scale=values["attn_scale"],
    )
    stored = load_file(folder / "model.safetensors")
    parts = [part.float().flatten() for part in _from_transformers(config, stored).values()]
    flat = torch.cat(parts)
    return Parameters(config, flat, flat)


def _config(config: ModelConfig) -> dict[str, Any]:
    layers = range(config.n_layer)
    return {
        "architectures": ["Llama4ForCausalLM"],
        "model_type": "llama4_text",
        "vocab_size": config.n_vocab,
        "hidden_size": config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_head_kv,
        "head_dim": config.head_dim,
        "intermediate_size": config.n_ff_expert,
        "intermediate_size_mlp": config.n_ff_expert,
        "num_local_experts": config.n_expert,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 1,
        "moe_layers": list(layers),
        "hidden_act": "silu",
        "rms_norm_eps": config.rms_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "no_rope_layer_interval": config.nope_interval,
        "no_rope_layers": [int(config.has_rope(layer)) for layer in layers],
        "layer_types": [
            "chunked_attention" if config.has_rope(layer) else "full_attention" for layer in layers
        ],
        "use_qk_norm": True,
        "attention_chunk_size": config.chunk_size,
        "attn_temperature_tuning": True,
        "floor_scale": config.floor_scale,
        "attn_scale": config.attn_scale,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "use_cache": True,
    }


def to_transformers(parameters: Parameters) -> dict[str, Tensor]:
    """Tensors by their names there; experts as (experts, inputs, outputs)."""
    trained = parameters.views(parameters.trained)
    result = {}
    for name, computed in parameters.views(parameters.computed).items():
        values = trained[name] if is_float32(name) else computed
        layer, _, own = name.partition(".")
        base = f"model.layers.{layer}"
        if name == "embedding":
            result["model.embed_tokens.weight"] = values
        elif name == "norm":
            result["model.norm.weight"] = values
        elif own == "shared.gate_up":
            shared = f"{base}.feed_forward.shared_expert"
            gate, up = values[0].chunk(2)
            result |= {f"{shared}.gate_proj.weight": gate, f"{shared}.up_proj.weight": up}
        elif own == "shared.down":
            result[f"{base}.feed_forward.shared_expert.down_proj.weight"] = values[0]
        elif own.startswith("experts."):
            result[f"{base}.feed_forward.{own}_proj"] = values.transpose(1, 2)
        else:
            result[f"{base}.{_NAMES[own]}.weight"] = values
    return result


def _from_transformers(config: ModelConfig, stored: dict[str, Tensor]) -> dict[str, Tensor]:
    result = {}
    for name, shape in config.shapes().items():
        layer, _, own = name.partition(".")
        base = f"model.layers.{layer}"
        shared = f"{base}.feed_forward.shared_expert"
        if name == "embedding":
            values = stored["model.embed_tokens.weight"]
        elif name == "norm":
            values = stored["model.norm.weight"]
        elif own == "shared.gate_up":
            parts = [stored[f"{shared}.{part}_proj.weight"] for part in ("gate", "up")]
            values = torch.cat(parts)[None]
        elif own == "shared.down":
            values = stored[f"{shared}.down_proj.weight"][None]
        elif own.startswith("experts."):
            values = stored[f"{base}.feed_forward.{own}_proj"].transpose(1, 2)
        else:
            values = stored[f"{base}.{_NAMES[own]}.weight"]
        if values.shape != shape:
            raise ValueError(f"{name} is {tuple(values.shape)}, not {shape}")
        result[name] = values
    return result


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")


def main() -> None:
    """Parses the command line and writes the folder."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="the training's output folder")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    arguments = parser.parse_args()
    state, _ = load_checkpoint(arguments.run / CHECKPOINT, torch.bfloat16)
    tokenizer = Tokenizer.from_file(str(arguments.run / TOKENIZER))
    write_folder(state.parameters, tokenizer, arguments.folder)
    if (arguments.run / LOG).exists():
        shutil.copy(arguments.run / LOG, arguments.folder)
    print(f"{arguments.folder}: after {state.step} steps")


if __name__ == "__main__":
    main()
