"""Qwen1.5 and Qwen2 with experts beside a shared one with a gate (arXiv:2407.10671)."""

from q4run.gguf_file import GGUFFile
from q4run.models.config import ModelConfig, read_attention
from q4run.models.keys import MOE_KEYS, FamilyKeys
from q4run.models.parts import Router
from q4run.models.readers import read_moe
from q4run.models.rope_keys import NEOX

ARCHITECTURE = "qwen2moe"
KEYS = FamilyKeys(applied=MOE_KEYS, fixed={})
ROUTER = Router(renormalise=False)


def read_config(file: GGUFFile) -> ModelConfig:
    """Every layer alike: attention, then experts."""
    return read_moe(file, read_attention(file, NEOX), ROUTER)
