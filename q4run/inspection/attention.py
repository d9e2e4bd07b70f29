"""How a model tells positions apart and how far its layers see, as plain data."""

from __future__ import annotations

from typing import Any

from q4run.errors import Error, FormatError
from q4run.gguf_file import GGUFFile
from q4run.models import FAMILIES, read_config
from q4run.models.config import ModelConfig
from q4run.models.parts import tensor_name
from q4run.models.rope import LONG_AND_SHORT, ONE_LIST


def attention_facts(model: GGUFFile, architecture: str | None) -> dict[str, Any] | None:
    """What is known of attention, null for what is not; None where there is nothing at all.

    Keys: heads, kv_heads, head_dim; rope_base, rope_dim (values of each head that are rotated),
    rope_scaling ({type, factor, original_context_length} or null) and rope_factors (whether the
    file has one for each frequency); layers, and of them rope_layers and chunked_layers, whose
    chunk_size is in tokens; sliding_window in tokens. For a family that q4run runs these are what
    it computes with, else what the file's keys say.
    """
    config = _config(model, architecture)
    facts = _of_keys(model, str(architecture)) | ({} if config is None else _of_config(config))
    return facts if any(facts.values()) else None


def _config(model: GGUFFile, architecture: str | None) -> ModelConfig | None:
    if architecture not in FAMILIES:
        return None
    try:
        return read_config(model)
    except Error:  # a file that cannot be run can still be looked at
        return None


def _of_config(config: ModelConfig) -> dict[str, Any]:
    attention = [layer.attention for layer in config.layers]
    chunks = {a.chunk_size for a in attention if a.chunk_size is not None}
    ropes = config.ropes
    return {
        "heads": max(a.n_head for a in attention),
        "kv_heads": max(a.n_head_kv for a in attention),
        "head_dim": max(a.key_dim for a in attention),
        **({"rope_base": ropes[0].theta, "rope_dim": ropes[0].dim} if ropes else {}),
        "layers": len(attention),
        "rope_layers": sum(a.rope is not None for a in attention),
        "chunked_layers": sum(a.chunk_size is not None for a in attention),
        "chunk_size": max(chunks, default=None),
    }


def _of_keys(model: GGUFFile, architecture: str) -> dict[str, Any]:
    def known(get: Any, key: str) -> Any:
        try:
            return get(f"{architecture}.{key}")
        except FormatError:
            return None

    heads = known(model.get_int, "attention.head_count")
    width = known(model.get_int, "embedding_length")
    head_dim = known(model.get_int, "attention.key_length")
    factor = known(model.get_float, "rope.scaling.factor") or known(
        model.get_float, "rope.scale_linear"
    )
    scaling = known(model.get_str, "rope.scaling.type") or ("linear" if factor else None)
    return {
        "heads": heads,
        "kv_heads": known(model.get_int, "attention.head_count_kv"),
        "head_dim": head_dim or (width // heads if width and heads else None),
        "rope_base": known(model.get_float, "rope.freq_base"),
        "rope_dim": known(model.get_int, "rope.dimension_count"),
        "rope_scaling": None
        if scaling in (None, "none")
        else {
            "type": scaling,
            "factor": factor,
            "original_context_length": known(model.get_int, "rope.scaling.original_context_length"),
        },
        "rope_factors": any(
            tensor_name(kind) in model.tensors for kind in (*ONE_LIST, *LONG_AND_SHORT)
        ),
        "layers": None,
        "rope_layers": None,
        "chunked_layers": None,
        "chunk_size": None,
        "sliding_window": known(model.get_int, "attention.sliding_window") or None,
    }
