"""A model that is no file yet, as if it were one: for what goes by metadata and tensors alone."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import gguf

from q4run.errors import Error
from q4run.gguf_file.header import TensorInfo
from q4run.gguf_file.metadata import GGUFArray, Metadata
from q4run.gguf_file.model_file import GGUFFile

ALIGNMENT = 4096  # as converted files have


def describe_file(
    path: Path,
    metadata: Mapping[str, Any],
    tensors: Iterable[tuple[str, tuple[int, ...], gguf.GGMLQuantizationType]],
    header_bytes: int = 0,
) -> GGUFFile:
    """The file that ``path`` would be; nothing is there to be read.

    metadata: numbers, texts and lists of them by their complete names; tensors: name, shape in
    numpy's order and type, in file order. Raises Error where a row is not whole blocks.
    """
    infos: dict[str, TensorInfo] = {}
    end = header_bytes
    for name, shape, ggml_type in tensors:
        block_size, block_bytes = gguf.GGML_QUANT_SIZES[ggml_type]
        if shape[-1] % block_size:
            raise Error(
                f"rows of {shape[-1]} values ({name}) are not whole {ggml_type.name.lower()} blocks"
                f" of {block_size}; choose another type"
            )
        offset = -(-end // ALIGNMENT) * ALIGNMENT
        info = TensorInfo(name, shape, ggml_type, path, offset, 0)
        n_bytes = info.n_elements // block_size * block_bytes
        infos[name] = TensorInfo(name, shape, ggml_type, path, offset, n_bytes)
        end = offset + n_bytes
    entries = {key: _entry(value) for key, value in metadata.items()}
    size = -(-end // ALIGNMENT) * ALIGNMENT
    return GGUFFile(path, (path,), 3, ALIGNMENT, size, Metadata(entries), infos)


def _entry(value: Any) -> Any:
    if isinstance(value, list) and value:
        return GGUFArray.of(gguf.GGUFValueType.get_type(value[0]), value)
    return value
