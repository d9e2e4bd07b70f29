"""ERNIE 4.5 with experts: a softmax router whose choice a bias corrects (ernie.baidu.com)."""

from q4run.gguf_file import GGUFFile
from q4run.models.config import ModelConfig, read_attention
from q4run.models.keys import INTERLEAVE_KEYS, MOE_KEYS, FamilyKeys
from q4run.models.parts import Router
from q4run.models.readers import read_interleave, read_moe

ARCHITECTURE = "ernie4_5-moe"
KEYS = FamilyKeys(applied=MOE_KEYS | INTERLEAVE_KEYS, fixed={})
ROUTER = Router()


def read_config(file: GGUFFile) -> ModelConfig:
    """Experts in every n-th layer after the first few, beside a shared one."""
    return read_moe(file, read_attention(file), ROUTER, step=read_interleave(file))
