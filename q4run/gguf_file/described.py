"""A model that is no file yet, as if it were one: for what goes by metadata and tensors alone."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf

from q4run.errors import Error
from q4run.gguf_file.borders import in_file_order, padded, up_to_border
from q4run.gguf_file.header import DEFAULT_ALIGNMENT, TensorInfo
from q4run.gguf_file.metadata import GGUFArray, Metadata
from q4run.gguf_file.model_file import GGUFFile


def describe_file(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Iterable[tuple[str, tuple[int, ...], gguf.GGMLQuantizationType]],
    header_bytes: int = 0,
) -> GGUFFile:
    """The file that ``path`` would be; nothing is there to be read.

    metadata: numbers, texts and lists of them by their complete names; tensors: name, shape in
    numpy's order and type, in the model's order. Raises Error where a row is not whole blocks.
    """
    described = [_tensor_info(path, *tensor) for tensor in tensors]
    infos: dict[str, TensorInfo] = {}
    end = up_to_border(header_bytes)
    for info in in_file_order(described, lambda info: info.n_bytes):
        infos[info.name] = replace(info, offset=end)
        end += padded(info.n_bytes)
    entries = {key: _entry(value) for key, value in metadata.items()}
    return GGUFFile(path, (path,), 3, DEFAULT_ALIGNMENT, end, Metadata(entries), infos)


def _tensor_info(
    path: Path, name: str, shape: tuple[int, ...], ggml_type: gguf.GGMLQuantizationType
) -> TensorInfo:
    return TensorInfo(name, shape, ggml_type, path, 0, tensor_bytes(name, shape, ggml_type))


def tensor_bytes(name: str, shape: tuple[int, ...], ggml_type: gguf.GGMLQuantizationType) -> int:
    """What a tensor takes in a file; ``Error`` where its rows are not whole blocks of the type."""
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[ggml_type]
    if shape[-1] % block_size:
        raise Error(
            f"rows of {shape[-1]} values ({name}) are not whole {ggml_type.name.lower()} blocks"
            f" of {block_size}; choose another type"
        )
    return math.prod(shape) // block_size * block_bytes


def _entry(value: Any) -> Any:
    if isinstance(value, list) and value:
        return GGUFArray.of(gguf.GGUFValueType.get_type(value[0]), value)
    return value
