"""Tiny models that transformers makes at random and q4run converts: a family's traps in each.

``settings`` go to the configuration class; names of classes only, so that reading the cases needs
no torch. Where it is missing, what makes models skips the test.
"""

from copy import deepcopy
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pytest

from helpers.tiny_tokenizer import VOCAB_SIZE

N_TOKENS = 48
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": None,
    "initializer_range": 0.3,
}


@dataclass(frozen=True)
class MadeCase:
    """A model of a class of transformers: ``architecture`` is what its GGUF calls it."""

    name: str
    architecture: str
    config_class: str
    own: dict[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        """All settings that the configuration class gets, which writes into what it is given."""
        return deepcopy(_COMMON | self.own)


_GROWING = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.4,
}

# Routers far from uniform, experts that differ.
_MOE = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32}
_TWO = {"num_hidden_layers": 2}
_V3 = {
    "num_hidden_layers": 3,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "routed_scaling_factor": 2.5,
}
_ALPHA = {"rope_type": "dynamic", "rope_theta": 100.0, "alpha": 50.0, "factor": 1.0}
_HY_V3 = _MOE | {"num_hidden_layers": 3}
_ERNIE = {
    "num_hidden_layers": 3,
    "moe_intermediate_size": 32,
    "moe_num_experts": 6,
    "moe_k": 3,
    "moe_layer_start_index": 1,
}
_GRANITE = {
    "attention_multiplier": 0.11,
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.4,
    "logits_scaling": 5.0,
}
_GEMMA = {"num_hidden_layers": 7, "head_dim": 24, "sliding_window": 12}
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "long_factor": [1.0, 2.0, 5.0, 9.0],
    "short_factor": [1.0, 1.1, 1.5, 2.0],
}
_GPT_OSS = {
    "num_hidden_layers": 3,
    "head_dim": 24,
    "sliding_window": 12,
    "num_local_experts": 6,
    "num_experts_per_tok": 3,
    "rope_parameters": {
        "rope_type": "yarn",
        "rope_theta": 500.0,
        "factor": 4.0,
        "original_max_position_embeddings": 16,
        "truncate": False,
    },
}

MADE_CASES = [
    MadeCase("qwen2", "qwen2", "Qwen2Config", _TWO),
    MadeCase("qwen3", "qwen3", "Qwen3Config", _TWO | {"head_dim": 24}),
    MadeCase(
        "qwen3moe", "qwen3moe", "Qwen3MoeConfig",
        _TWO | _MOE | {"head_dim": 24, "norm_topk_prob": True},
    ),
    MadeCase("qwen3moe, not renormalised", "qwen3moe", "Qwen3MoeConfig", _TWO | _MOE),
    MadeCase(
        "qwen2moe", "qwen2moe", "Qwen2MoeConfig",
        _TWO | _MOE | {"shared_expert_intermediate_size": 80},
    ),
    MadeCase(
        "qwen2moe, renormalised", "qwen2moe", "Qwen2MoeConfig",
        _TWO | _MOE | {"shared_expert_intermediate_size": 80, "norm_topk_prob": True},
    ),
    MadeCase(
        "olmoe", "olmoe", "OlmoeConfig",
        _TWO | {"num_experts": 6, "num_experts_per_tok": 3, "num_key_value_heads": 4},
    ),
    MadeCase(
        "olmoe, renormalised and shared keys", "olmoe", "OlmoeConfig",
        _TWO | {"num_experts": 6, "num_experts_per_tok": 3, "norm_topk_prob": True},
    ),
    MadeCase(
        "glm4moe", "glm4moe", "Glm4MoeConfig",
        _V3 | {"head_dim": 24, "use_qk_norm": True, "attention_bias": True}
        | {"n_group": 2, "topk_group": 1, "partial_rotary_factor": 0.5},
    ),
    MadeCase(
        "glm4moe, Air", "glm4moe", "Glm4MoeConfig",
        _V3 | {"n_shared_experts": 2, "first_k_dense_replace": 0, "norm_topk_prob": False},
    ),
    MadeCase(
        "dots1", "dots1", "Dots1Config",
        _V3 | {"head_dim": 24, "norm_topk_prob": True, "num_key_value_heads": 4},
    ),
    MadeCase("dots1, two shared", "dots1", "Dots1Config", _V3 | {"n_shared_experts": 2}),
    MadeCase(
        "minimax-m2", "minimax-m2", "MiniMaxM2Config",
        _TWO | {"head_dim": 24, "rotary_dim": 12, "num_local_experts": 6, "num_experts_per_tok": 3},
    ),
    MadeCase("ernie4_5-moe", "ernie4_5-moe", "Ernie4_5_MoeConfig", _ERNIE | {"head_dim": 24}),
    MadeCase(
        "ernie4_5-moe, every second", "ernie4_5-moe", "Ernie4_5_MoeConfig",
        _ERNIE | {"moe_layer_interval": 2, "moe_num_shared_experts": 1, "num_hidden_layers": 5},
    ),
    MadeCase(
        "hunyuan-moe", "hunyuan-moe", "HunYuanMoEV1Config",
        _TWO | {"head_dim": 24, "num_experts": 6, "moe_topk": 3},
    ),
    MadeCase(
        "hunyuan-moe, alpha", "hunyuan-moe", "HunYuanMoEV1Config",
        _TWO | {"head_dim": 24, "num_experts": 6, "moe_topk": [3, 3]}
        | {"rope_parameters": _ALPHA},
    ),
    MadeCase(
        "hy_v3", "hy_v3", "HYV3Config",
        _HY_V3 | {"head_dim": 24, "router_scaling_factor": 2.5, "num_shared_experts": 2},
    ),
    MadeCase(
        "hy_v3, two dense", "hy_v3", "HYV3Config",
        _HY_V3 | {"mlp_layer_types": ["dense", "dense", "sparse"], "head_dim": 16},
    ),
    MadeCase("granite", "granite", "GraniteConfig", _TWO | _GRANITE),
    MadeCase(
        "granitemoe", "granitemoe", "GraniteMoeConfig",
        _TWO | _GRANITE | {"num_local_experts": 6, "num_experts_per_tok": 3},
    ),
    MadeCase("gemma3", "gemma3", "Gemma3TextConfig", _GEMMA | {"query_pre_attn_scalar": 24}),
    MadeCase(
        "gemma3, own settings", "gemma3", "Gemma3TextConfig",
        _GEMMA
        | {"layer_types": ["full_attention"] + 2 * ["sliding_attention"], "num_hidden_layers": 3}
        | {"query_pre_attn_scalar": 10, "final_logit_softcapping": 2.0}
        | {"tie_word_embeddings": False}
        | {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e5},
                "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
            }
        },
    ),
    MadeCase("phi3", "phi3", "Phi3Config", _TWO | {"sliding_window": None}),
    MadeCase("phi3, window", "phi3", "Phi3Config", _TWO | {"sliding_window": 20}),
    MadeCase(
        "phi3, long", "phi3", "Phi3Config",
        _TWO
        | {"partial_rotary_factor": 0.5, "original_max_position_embeddings": 64}
        | {"rope_parameters": _LONG},
    ),
    MadeCase("gpt-oss", "gpt-oss", "GptOssConfig", _GPT_OSS),
    MadeCase(
        "gpt-oss, own settings", "gpt-oss", "GptOssConfig",
        _GPT_OSS
        | {"layer_types": ["full_attention"] + 2 * ["sliding_attention"]}
        | {"rope_parameters": {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0}
        | {"original_max_position_embeddings": 16, "truncate": True}},
    ),
    MadeCase("bitnet", "bitnet", "BitNetConfig", _TWO | {"tie_word_embeddings": True}),
    MadeCase(
        "bitnet, silu", "bitnet", "BitNetConfig",
        _TWO | {"hidden_act": "silu", "tie_word_embeddings": True},
    ),
    MadeCase("bitnet, untied", "bitnet", "BitNetConfig", _TWO),
    MadeCase("smollm3", "smollm3", "SmolLM3Config", {"num_hidden_layers": 5, "head_dim": 24}),
    MadeCase(
        "smollm3, own layers",
        "smollm3",
        "SmolLM3Config",
        {"num_hidden_layers": 5, "no_rope_layers": [1, 0, 1, 1, 0], "tie_word_embeddings": False},
    ),
    MadeCase(
        "ministral3",
        "mistral3",
        "Ministral3Config",
        {"num_hidden_layers": 3, "head_dim": 24, "rope_parameters": _GROWING},
    ),
    MadeCase(
        "ministral3, attention factor",
        "mistral3",
        "Ministral3Config",
        {"num_hidden_layers": 3, "head_dim": 24}
        | {"rope_parameters": _GROWING | {"mscale_all_dim": 0.5, "factor": 16.0}},
    ),
]  # fmt: skip


def make_model(case: MadeCase) -> Any:
    """The model with random weights, always the same: norms and biases too."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(1)
    config = getattr(transformers, case.config_class)(**case.settings)
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", dtype=torch.float32
    ).eval()
    # All 1 or 0 where nobody trained them: a missing one would not be seen.
    for name, values in chain(model.named_parameters(), model.named_buffers()):
        if "norm" in name:
            values.data = 1 + 0.3 * torch.randn_like(values)
        elif name.endswith(("bias", "sinks")):
            values.data = 0.3 * torch.randn_like(values)
    return model


def logits_of(model: Any, ids: list[int]) -> np.ndarray:
    """The logits of every token, in float32."""
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].numpy()
