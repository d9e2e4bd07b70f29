"""GLM-4.5 to 4.7: half of each head rotates, and DeepSeek-V3's router (arXiv:2508.06471)."""

from dataclasses import replace

from gguf import MODEL_TENSOR

from q4run.gguf_file import GGUFFile
from q4run.models.config import ModelConfig, read_attention
from q4run.models.keys import MOE_KEYS, FamilyKeys
from q4run.models.parts import QKNorm, Router, Scores
from q4run.models.readers import read_moe, read_qk_norm
from q4run.models.rope_keys import NEOX

ARCHITECTURE = "glm4moe"
KEYS = FamilyKeys(applied=MOE_KEYS, fixed={})
ROUTER = Router(Scores.SIGMOID, renormalise=False)


def read_config(file: GGUFFile) -> ModelConfig:
    """The first few feed-forwards are dense; large models norm queries and keys, small ones not."""
    attention = read_attention(file, NEOX)
    attention = replace(attention, qk_norm=read_qk_norm(file, QKNorm.WEIGHTED))
    return read_moe(file, attention, ROUTER, norm=MODEL_TENSOR.ATTN_POST_NORM)
