"""Hy3: Qwen3's attention, DeepSeek-V3's router, and a dense first layer (hunyuan.tencent.com)."""

from dataclasses import replace

from gguf import MODEL_TENSOR

from q4run.gguf_file import GGUFFile
from q4run.models.config import ModelConfig, has_tensor, n_layers, read_attention
from q4run.models.keys import MOE_KEYS, FamilyKeys
from q4run.models.parts import QKNorm, Router, Scores
from q4run.models.readers import read_moe
from q4run.models.rope_keys import NEOX

ARCHITECTURE = "hy_v3"
KEYS = FamilyKeys(applied=MOE_KEYS, fixed={})
ROUTER = Router(Scores.SIGMOID, renormalise=False)


def read_config(file: GGUFFile) -> ModelConfig:
    """Every layer alike but for the first feed-forwards, which are dense.

    llama.cpp tells these by the absence of a router; a file may say how many there are besides.
    """
    attention = replace(read_attention(file, NEOX), qk_norm=QKNorm.WEIGHTED)
    layers = range(n_layers(file))
    routers = (i for i in layers if has_tensor(file, MODEL_TENSOR.FFN_GATE_INP, i))
    return read_moe(file, attention, ROUTER, default_leading_dense=next(routers, 0))
