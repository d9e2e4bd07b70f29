"""The tiny models that q4run is compared with transformers on: configurations only.

`tiny_checkpoints.make_checkpoint` writes them. Chunks, steps of the attention temperature and the
bounds of the RoPE scaling are small enough that all of them act within `N_TOKENS` tokens.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from helpers.tiny_tokenizer import VOCAB_SIZE, special_id

N_TOKENS = 56


@dataclass(frozen=True)
class Case:
    """One tiny model.

    `config` holds what differs from the family's defaults below; a value of None removes the key.
    `seed` is chosen so that no token is near a tie between a chosen expert and the runner-up.
    """

    name: str
    family: str
    config: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    dtype: str = "BF16"
    shards: int = 1
    conditional: bool = False

    @property
    def token_ids(self) -> list[int]:
        """BOS, then `N_TOKENS - 1` ids spread over the whole vocabulary."""
        words = np.random.PCG64([self.seed, 1]).random_raw(N_TOKENS - 1)
        bos = special_id(self.family, "<|begin_of_text|>")
        return [bos, *(int(word >> 32) % VOCAB_SIZE for word in words)]

    @property
    def text_config(self) -> dict[str, Any]:
        """The language model's part of `config.json`."""
        merged = COMMON_CONFIG | FAMILY_CONFIG[self.family] | self.config
        return {key: value for key, value in merged.items() if value is not None}


COMMON_CONFIG: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "max_position_embeddings": 1024,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "rms_norm_eps": 1e-5,
    "tie_word_embeddings": False,
    "use_cache": True,
    "rope_theta": 10000.0,
}
FAMILY_CONFIG: dict[str, dict[str, Any]] = {
    "llama4": {
        "model_type": "llama4_text",
        "architectures": ["Llama4ForCausalLM"],
        "num_hidden_layers": 5,
        "intermediate_size": 64,
        "intermediate_size_mlp": 96,
        "interleave_moe_layer_step": 1,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "use_qk_norm": True,
        "attention_chunk_size": 8,
        "attn_temperature_tuning": True,
        "floor_scale": 4,
        "attn_scale": 0.3,
    },
    "llama": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 3,
        "intermediate_size": 96,
        "mlp_bias": False,
    },
    "mixtral": {
        "model_type": "mixtral",
        "architectures": ["MixtralForCausalLM"],
        "num_hidden_layers": 3,
        "intermediate_size": 96,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": None,
    },
}
# Scout's form, with the original context brought down so that frequencies fall on both sides.
SCOUT_ROPE = {
    "rope_type": "llama3",
    "factor": 16.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 1.0,
    "original_max_position_embeddings": 128,
}
# Llama 3.1's form, brought down likewise: some wavelengths fall into the smooth band.
LLAMA31_ROPE = SCOUT_ROPE | {"factor": 8.0, "high_freq_factor": 4.0}

CASES: list[Case] = [
    Case("llama4_qk_norm", "llama4", {"rms_norm_eps": 1e-3, "no_rope_layers": []}, seed=10),
    Case(
        "llama4_no_qk_norm",
        "llama4",
        {"use_qk_norm": False, "rope_theta": None}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}},
        seed=16,
    ),
    Case(
        "llama4_scout",
        "llama4",
        {"rope_scaling": SCOUT_ROPE, "attention_chunk_size": 32, "num_local_experts": 16}
        | {"no_rope_layers": [1, 1, 1, 0, 1]},
        seed=3,
    ),
    Case(
        "llama4_maverick",
        "llama4",
        {"use_qk_norm": False, "interleave_moe_layer_step": 2, "num_hidden_layers": 6}
        | {"num_local_experts": 8, "attention_chunk_size": 12, "moe_layers": [1, 3, 5]},
        seed=18,
    ),
    Case(
        "llama4_chunk_12", "llama4", {"attention_chunk_size": 12, "num_hidden_layers": 6}, seed=18
    ),
    Case(
        "llama4_nope_pattern",
        "llama4",
        {"no_rope_layers": [0, 1, 1, 0, 0, 1], "num_hidden_layers": 6}
        | {"interleave_moe_layer_step": 2},
        seed=20,
    ),
    Case("llama4_no_temperature", "llama4", {"attn_temperature_tuning": False}),
    Case("llama4_full_attention", "llama4", {"layer_types": ["full_attention"] * 5}, seed=16),
    Case("llama4_top_2", "llama4", {"num_experts_per_tok": 2, "num_local_experts": 6}, seed=19),
    Case(
        "llama4_tied",
        "llama4",
        {"tie_word_embeddings": True, "head_dim": 24, "num_key_value_heads": 1},
        dtype="F16",
        seed=20,
    ),
    Case("llama4_conditional", "llama4", {"rope_scaling": SCOUT_ROPE}, conditional=True, seed=1),
    Case(
        "llama4_quantisable",
        "llama4",
        {"hidden_size": 256, "intermediate_size": 256, "intermediate_size_mlp": 256}
        | {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32}
        | {"num_hidden_layers": 2, "interleave_moe_layer_step": 2, "num_local_experts": 3}
        | {"no_rope_layers": [1, 0], "rope_theta": 500000.0},
        seed=1,
    ),
    Case("llama_gqa", "llama"),
    Case(
        "llama_mha_odd",
        "llama",
        {"num_key_value_heads": 4, "intermediate_size": 44, "rms_norm_eps": 1e-3, "head_dim": None},
        dtype="F32",
    ),
    Case(
        "llama_rope_scaling",
        "llama",
        {"rope_scaling": LLAMA31_ROPE, "rope_theta": 500.0, "head_dim": 32},
    ),
    Case("llama_tied", "llama", {"tie_word_embeddings": True}, dtype="F16"),
    Case(
        "llama_quantisable",
        "llama",
        {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2}
        | {"num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 32},
    ),
    Case("mixtral_top_2", "mixtral", {"head_dim": None}, seed=13),
    Case("mixtral_sharded", "mixtral", {"num_local_experts": 8}, shards=3, seed=6),
    Case(
        "mixtral_quantisable",
        "mixtral",
        {"hidden_size": 256, "intermediate_size": 256, "num_local_experts": 3}
        | {"num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 64}
        | {"num_hidden_layers": 2, "tie_word_embeddings": True},
        seed=9,
    ),
]


def case_named(name: str) -> Case:
    """The entry of `CASES` called `name`. Raises `KeyError` when there is none."""
    return {case.name: case for case in CASES}[name]
