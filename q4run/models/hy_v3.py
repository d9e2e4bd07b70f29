"""Hy3: Qwen3's attention and DeepSeek-V3's router (tencent.com)."""

from dataclasses import replace

from q4run.gguf_file import GGUFFile
from q4run.models.config import ModelConfig, read_attention
from q4run.models.keys import MOE_KEYS, FamilyKeys
from q4run.models.parts import QKNorm, Router, Scores
from q4run.models.readers import read_moe
from q4run.models.rope_keys import NEOX

ARCHITECTURE = "hy_v3"
KEYS = FamilyKeys(applied=MOE_KEYS, fixed={})
ROUTER = Router(Scores.SIGMOID)


def read_config(file: GGUFFile) -> ModelConfig:
    """Every layer alike but for the first feed-forwards, which are dense."""
    attention = replace(read_attention(file, NEOX), qk_norm=QKNorm.WEIGHTED)
    return read_moe(file, attention, ROUTER)
