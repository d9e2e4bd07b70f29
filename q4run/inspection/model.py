"""What is in a GGUF model, as plain data: for `q4run inspect`, and whoever wants its figures."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gguf import LlamaFileType

from q4run.errors import FormatError
from q4run.gguf_file import GGUFFile, TensorInfo
from q4run.inspection.attention import attention_facts
from q4run.models import FAMILIES
from q4run.models.names import CLASSES, EXPERTS, tensor_class

# What llama.cpp's quantize (and convert --imatrix) notes, and what convert --calibrate does.
_IMATRIX_NOTES = {"file": str, "dataset": str, "entries_count": int, "chunks_count": int}
_CALIBRATION_NOTES = {"dataset": str, "chunks_count": int, "tokens": str}


def summarize(model: GGUFFile, *, list_tensors: bool = False) -> dict[str, Any]:
    """What the file says, ready for JSON: sizes in bytes, null for what it does not say.

    Keys: path, parts, size, gguf_version, alignment, architecture, supported (whether q4run runs
    it), name, file_type ({number, name} or null), block_count, embedding_length, context_length,
    attention (see `attention_facts`), experts ({count, used} or null), tokenizer ({model, pre,
    vocab_size, chat_template} or null), imatrix and calibration (what was noted of each as the
    model was quantised, or null), and what `_figures` counts, in all and for each class under
    "classes"; active_parameters counts only the experts used per token. With ``list_tensors`` also
    "tensors", in file order. Reads no tensor data.
    """
    architecture = _known(model.get_str, "general.architecture")
    by_class: dict[str, list[TensorInfo]] = {label: [] for label in CLASSES}
    stored = [part for tensor in model.tensors.values() for part in tensor.stored]
    for tensor in stored:
        by_class[tensor_class(tensor.name)].append(tensor)
    experts = _experts(model, architecture)
    summary = {
        "path": str(model.path),
        "parts": [str(part) for part in model.parts],
        "size": model.size,
        "gguf_version": model.version,
        "alignment": model.alignment,
        "architecture": architecture,
        "supported": architecture in FAMILIES,
        "name": _known(model.get_str, "general.name"),
        "file_type": _file_type(model),
        "block_count": _known(model.get_int, f"{architecture}.block_count"),
        "embedding_length": _known(model.get_int, f"{architecture}.embedding_length"),
        "context_length": _known(model.get_int, f"{architecture}.context_length"),
        "attention": attention_facts(model, architecture),
        "experts": experts,
        "tokenizer": _tokenizer(model),
        "imatrix": _notes(model, "quantize.imatrix.", _IMATRIX_NOTES),
        "calibration": _notes(model, "quantize.calibration.", _CALIBRATION_NOTES),
        **_figures(stored),
        "active_parameters": _active_parameters(by_class, experts),
        "classes": {label: _figures(members) for label, members in by_class.items() if members},
    }
    if list_tensors:
        summary["tensors"] = [
            {
                "name": tensor.name,
                "class": tensor_class(tensor.name),
                "type": tensor.type.name.lower(),
                "shape": list(tensor.shape),
                "bytes": tensor.n_bytes,
                "offset": tensor.offset,
                "part": tensor.path.name,
            }
            for tensor in stored
        ]
    return summary


def _known(get: Any, key: str) -> Any:
    """The value of a typed getter, or None: an odd key must not keep the rest from being seen."""
    try:
        return get(key)
    except FormatError:
        return None


def _file_type(model: GGUFFile) -> dict[str, Any] | None:
    """``general.file_type``, named as llama.cpp does (``q4_k_m``); the name null for a new one."""
    number = _known(model.get_int, "general.file_type")
    if number is None:
        return None
    try:
        name = LlamaFileType(number).name
    except ValueError:
        return {"number": number, "name": None}
    return {"number": number, "name": name.removeprefix("MOSTLY_").removeprefix("ALL_").lower()}


def _notes(model: GGUFFile, prefix: str, kinds: dict[str, type]) -> dict[str, Any] | None:
    getters = {str: model.get_str, int: model.get_int}
    notes = {name: _known(getters[kind], prefix + name) for name, kind in kinds.items()}
    return notes if any(value is not None for value in notes.values()) else None


def _experts(model: GGUFFile, architecture: str | None) -> dict[str, int | None] | None:
    count = _known(model.get_int, f"{architecture}.expert_count")
    if not count:
        return None
    return {"count": count, "used": _known(model.get_int, f"{architecture}.expert_used_count")}


def _tokenizer(model: GGUFFile) -> dict[str, Any] | None:
    kind = _known(model.get_str, "tokenizer.ggml.model")
    if kind is None:
        return None
    return {
        "model": kind,
        "pre": _known(model.get_str, "tokenizer.ggml.pre"),
        "vocab_size": model.array_length("tokenizer.ggml.tokens"),
        "chat_template": bool(_known(model.get_str, "tokenizer.chat_template")),
    }


def _figures(tensors: Iterable[TensorInfo]) -> dict[str, Any]:
    """Tensors, parameters, bytes, bits per weight; how many tensors by type, most bytes first."""
    n_tensors = n_parameters = n_bytes = 0
    types: dict[str, int] = {}
    bytes_by_type: dict[str, int] = {}
    for tensor in tensors:
        n_tensors += 1
        n_parameters += tensor.n_elements
        n_bytes += tensor.n_bytes
        kind = tensor.type.name.lower()
        types[kind] = types.get(kind, 0) + 1
        bytes_by_type[kind] = bytes_by_type.get(kind, 0) + tensor.n_bytes
    return {
        "tensor_count": n_tensors,
        "parameters": n_parameters,
        "bytes": n_bytes,
        "bits_per_weight": 8 * n_bytes / n_parameters if n_parameters else None,
        "types": {kind: types[kind] for kind in sorted(types, key=lambda k: -bytes_by_type[k])},
    }


def _active_parameters(
    by_class: dict[str, list[TensorInfo]], experts: dict[str, int | None] | None
) -> int | None:
    """The parameters one token passes through (the whole embedding table counted, as usual)."""
    total = sum(tensor.n_elements for members in by_class.values() for tensor in members)
    if experts is None:
        return total
    count, used = experts["count"], experts["used"]
    if not count or used is None or used > count:
        return None
    routed = sum(tensor.n_elements for tensor in by_class[EXPERTS])
    return total - routed * (count - used) // count
