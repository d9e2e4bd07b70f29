"""Hunyuan-A13B: queries and keys normed after they are rotated (arXiv:2411.02265)."""

from dataclasses import replace

from q4run.gguf_file import GGUFFile
from q4run.models.config import ModelConfig, read_attention
from q4run.models.keys import MOE_KEYS, FamilyKeys
from q4run.models.parts import QKNorm, Router
from q4run.models.readers import read_moe
from q4run.models.rope_keys import NEOX

ARCHITECTURE = "hunyuan-moe"
KEYS = FamilyKeys(applied=MOE_KEYS, fixed={})
ROUTER = Router()


def read_config(file: GGUFFile) -> ModelConfig:
    """Every layer alike: attention, then experts."""
    attention = replace(read_attention(file, NEOX), qk_norm=QKNorm.WEIGHTED_AFTER_ROPE)
    return read_moe(file, attention, ROUTER)
