"""OLMoE: queries and keys normed over all heads, weights not renormalised (arXiv:2409.02060)."""

from dataclasses import replace

from q4run.gguf_file import GGUFFile
from q4run.models.config import ModelConfig, read_attention
from q4run.models.keys import MOE_KEYS, FamilyKeys
from q4run.models.parts import QKNorm, Router
from q4run.models.readers import read_moe
from q4run.models.rope_keys import NEOX

ARCHITECTURE = "olmoe"
KEYS = FamilyKeys(applied=MOE_KEYS, fixed={})
ROUTER = Router(renormalise=False)


def read_config(file: GGUFFile) -> ModelConfig:
    """Every layer alike: attention, then experts."""
    attention = replace(read_attention(file, NEOX), qk_norm=QKNorm.WHOLE)
    return read_moe(file, attention, ROUTER)
