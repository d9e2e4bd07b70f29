"""What a tensor of any family does, by its GGUF name: also of families that q4run does not run.

Of a family that it runs, ask the declared parts (`ModelConfig.tensors`).
"""

import re

from q4run.models.parts import Role

EXPERTS = "experts"

# What a tensor is for, by its name in llama.cpp's naming; the first match counts.
_CLASSES = (
    ("embedding", r"token_embd|token_types|position_embd"),
    ("norms", r".*_norm(_\d+)?"),
    ("attention", r"attn_.*"),
    ("router", r"ffn_gate_inp|exp_probs_b"),
    ("shared experts", r"ffn_.*_shexp"),
    (EXPERTS, r"ffn_.*_exps|ffn_(gate|up|down)\.\d+"),
    ("dense ffn", r"ffn_.*"),
    ("output", r"output|cls.*"),
    ("other", r".*"),
)
CLASSES = tuple(name for name, _ in _CLASSES)
_CLASS_PATTERNS = tuple((name, re.compile(pattern, re.DOTALL)) for name, pattern in _CLASSES)
_LAYER = re.compile(r"blk\.(\d{1,9})\.")
_NAME_AFFIXES = re.compile(r"^blk\.\d+\.|\.(weight|bias|scale)$")
# Small tables that are read value by value: llama.cpp too never quantises them.
_TABLES = re.compile(
    r"ssm_conv1d|shortconv\.conv|time_mix_|pos_embd|position_embd|token_types|attn_rel_b|altup|laurel"
)


def tensor_class(name: str) -> str:
    """The part of the model that a tensor belongs to, e.g. "attention" or "experts"."""
    stem = _NAME_AFFIXES.sub("", name)
    return next(label for label, pattern in _CLASS_PATTERNS if pattern.fullmatch(stem))


def layer_of(name: str) -> int | None:
    """Tells which layer a tensor of this GGUF name belongs to; None: to none."""
    match = _LAYER.match(name)
    return None if match is None else int(match[1])


def role_of(name: str, n_dimensions: int) -> Role:
    """Tells what a tensor of this GGUF name does, for whoever chooses its type."""
    kind = name.removesuffix(".weight").rpartition(".")[2]
    if kind.startswith(("rope_freqs", "rope_factors")):
        return Role.ROPE_FACTORS
    if name.endswith(".bias") or kind in ("attn_sinks", "exp_probs_b"):
        return Role.BIAS
    if kind.startswith("ffn_gate_inp"):
        return Role.ROUTER
    if n_dimensions < 2 or not name.endswith(".weight") or "_norm" in kind:
        return Role.NORM
    if _TABLES.search(name):
        return Role.NORM
    if kind == "token_embd":
        return Role.EMBEDDING
    if kind == "output":
        return Role.OUTPUT
    return Role.EXPERT if kind.endswith("_exps") else Role.MATRIX
