"""RoPE scalings that q4run is compared with transformers on: configurations only.

``MODELS`` are changes of tiny checkpoints, whose whole logits are compared: contexts and bases are
small enough that each scaling acts within their tokens. ``PUBLISHED`` are the settings of known
models, whose frequencies are compared.
"""

import json
from pathlib import Path
from typing import Any

from helpers.tiny_checkpoints import make_checkpoint

YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
LONGROPE = {
    "rope_type": "longrope",
    "short_factor": [1.0, 1.05, 1.1, 1.3, 1.6, 2.0, 2.5, 3.0],
    "long_factor": [1.1, 1.4, 2.0, 3.5, 6.0, 9.0, 14.0, 20.0],
}
# A tiny case of `tiny_cases`, and the keys of its config.json that differ; None removes a key.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("llama_gqa", {}),
    "linear": ("llama_gqa", {"rope_scaling": {"type": "linear", "factor": 4.0}}),
    "linear, new form": (
        "llama_gqa",
        {"rope_theta": None}
        | {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 500.0}},
    ),
    "yarn": ("llama_gqa", {"rope_theta": 500.0, "rope_scaling": YARN}),
    "yarn, attention factor": (
        "llama_gqa",
        {"rope_theta": 500.0}
        | {"rope_scaling": YARN | {"beta_fast": 16, "beta_slow": 2, "attention_factor": 0.7}},
    ),
    "yarn, multipliers": (
        "llama_gqa",
        {"rope_theta": 500.0}
        | {"rope_scaling": YARN | {"factor": 40.0, "mscale": 0.707, "mscale_all_dim": 1.2}},
    ),
    "yarn, not truncated": (
        "llama_gqa",
        {"rope_theta": 500.0, "rope_scaling": YARN | {"truncate": False}},
    ),
    "yarn, llama4": ("llama4_no_qk_norm", {"rope_parameters": YARN | {"rope_theta": 500.0}}),
    "longrope, short": (
        "llama_gqa",
        {"rope_scaling": LONGROPE, "original_max_position_embeddings": 64},
    ),
    "longrope, long": (
        "llama_gqa",
        {"rope_scaling": LONGROPE | {"original_max_position_embeddings": 32}},
    ),
    "longrope, factor": (
        "llama_gqa",
        {"rope_scaling": LONGROPE | {"factor": 8.0, "original_max_position_embeddings": 32}},
    ),
}

_LONG = [1.0 + 0.9 * i for i in range(48)]
_SHORT = [1.0 + 0.02 * i for i in range(48)]
# Head size, the keys of config.json, and the context in use.
PUBLISHED: dict[str, tuple[int, dict[str, Any], int]] = {
    "Llama 3.1": (
        128,
        {"rope_theta": 500000.0, "max_position_embeddings": 131072}
        | {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}
            | {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}},
        4096,
    ),
    "Qwen3, yarn": (
        128,
        {"rope_theta": 1e6, "max_position_embeddings": 131072}
        | {"rope_scaling": {"type": "yarn", "factor": 4.0}
            | {"original_max_position_embeddings": 32768}},
        4096,
    ),
    "gpt-oss": (
        64,
        {"rope_theta": 150000.0, "max_position_embeddings": 131072}
        | {"rope_scaling": {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0}
            | {"beta_slow": 1.0, "truncate": False, "original_max_position_embeddings": 4096}},
        4096,
    ),
    "Ministral 3": (
        128,
        {"max_position_embeddings": 262144}
        | {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0}
            | {"mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 32.0, "beta_slow": 1.0}
            | {"original_max_position_embeddings": 16384}},
        4096,
    ),
    "yarn without a factor": (
        64,
        {"rope_theta": 10000.0, "max_position_embeddings": 163840}
        | {"rope_scaling": {"type": "yarn", "mscale": 0.707, "mscale_all_dim": 1.0}
            | {"original_max_position_embeddings": 4096, "factor": None}},
        4096,
    ),
    "Gemma 3, linear": (
        256,
        {"rope_theta": 1e6, "max_position_embeddings": 131072}
        | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
        4096,
    ),
    "Phi-4-mini, short": (
        128,
        {"rope_theta": 10000.0, "max_position_embeddings": 131072, "partial_rotary_factor": 0.75}
        | {"original_max_position_embeddings": 4096}
        | {"rope_scaling": {"type": "longrope", "long_factor": _LONG, "short_factor": _SHORT}},
        4096,
    ),
    "Phi-4-mini, long": (
        128,
        {"rope_theta": 10000.0, "max_position_embeddings": 131072, "partial_rotary_factor": 0.75}
        | {"original_max_position_embeddings": 4096}
        | {"rope_scaling": {"type": "longrope", "long_factor": _LONG, "short_factor": _SHORT}},
        4097,
    ),
}  # fmt: skip


def make_scaled_checkpoint(name: str, folder: Path) -> Path:
    """Writes the checkpoint of one of ``MODELS`` into `folder` and returns it."""
    case, changes = MODELS[name]
    make_checkpoint(case, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
