"""The header of one GGUF file: metadata and tensor directory, every bound checked.

The format is that of the GGUF specification (ggml, docs/gguf.md), versions 1 to 3. Files come
from strangers: no length, count, offset or type is used before it is compared with what the
file can hold. Only the header is read, never the tensor data, and nothing stays open.
"""

from __future__ import annotations

import math
import stat
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, GGUFValueType

from q4run.errors import Error, FormatError, UnsupportedError
from q4run.gguf_file.cursor import U32, U64, Cursor, quote
from q4run.gguf_file.magic import MAGIC, check_magic
from q4run.gguf_file.metadata import GGUFArray, read_value

# Of metadata keys, and of tensors, in one file: several times the largest known model's, and
# few enough for a hostile directory not to fill the memory.
MAX_ENTRIES = 1 << 18
MAX_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32
_MOST_PADDING = 1 << 20  # between two files that were joined


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies. The extent is known to be inside the file and to overlap no other.

    ``shape`` is in numpy order, slowest axis first (GGUF's ``ne`` reversed); ``offset`` is
    absolute in ``path``, the split part that holds the bytes. ``parts``: the matrices of a stack
    that the file holds one by one (see stacks.py); ``type``, ``path`` and ``offset`` are then the
    first's.
    """

    name: str
    shape: tuple[int, ...]
    type: GGMLQuantizationType
    path: Path
    offset: int
    n_bytes: int
    parts: tuple[TensorInfo, ...] = ()

    @property
    def stored(self) -> tuple[TensorInfo, ...]:
        """What the file's directory has: the tensor itself, or its matrices."""
        return self.parts or (self,)

    @property
    def n_elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Header:
    """What one GGUF file says before its tensor data; arrays in ``metadata`` are GGUFArray, and
    ``value_types`` has the type each value is stored as."""

    path: Path
    size: int
    version: int
    alignment: int
    metadata: dict[str, Any]
    value_types: dict[str, GGUFValueType]
    tensors: dict[str, TensorInfo]


def read_header(path: Path) -> Header:
    """Read and check the header of one GGUF file, which may be one part of several.

    Raises FormatError (damaged, cut short, not GGUF), UnsupportedError (big-endian, a newer
    version, an unknown tensor type, a header of absurd size) and Error (no such file, a
    folder, no permission).
    """
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise Error(
                f"{path}: a folder, not a GGUF file; give the .gguf file in it, or turn a"
                " checkpoint folder into one with `q4run convert`"
            )
        if not stat.S_ISREG(status.st_mode):
            raise Error(f"{path}: not a regular file; give a GGUF file")
        with path.open("rb") as file:
            header = parse_header(file, path, status.st_size)
            _refuse_joined(file, header)
            return header
    except OSError as error:
        raise Error(f"{path}: cannot be read: {error.strerror or error}") from error


def _refuse_joined(file: BinaryIO, header: Header) -> None:
    """Raises where another GGUF file follows the last tensor."""
    ends = (tensor.offset + tensor.n_bytes for tensor in header.tensors.values())
    end = max(ends, default=0)
    if not end or end + len(MAGIC) > header.size:
        return
    file.seek(end)
    after = file.read(min(header.alignment, _MOST_PADDING) + len(MAGIC)).lstrip(b"\0")
    if after.startswith(MAGIC):
        raise FormatError(
            f"{header.path}: several GGUF files joined into one, as `cat` does it; parts of a split"
            " model stay apart: get them as they were published and give the first, or join them"
            " with llama.cpp's `llama-gguf-split --merge`"
        )


def parse_header(file: BinaryIO, path: Path, size: int) -> Header:
    """The header of a GGUF file of ``size`` bytes that ``file`` begins with, as `read_header`."""
    cursor = Cursor(file, path, size)
    version = check_magic(cursor.path, cursor.take(min(cursor.size, 512)))
    cursor.position = 8
    if version == 1:
        cursor.length = U32
    cursor.place = "the tensor directory"
    n_tensors = _read_entry_count(cursor)
    cursor.place = "the metadata"
    n_keys = _read_entry_count(cursor)
    metadata, value_types = _read_metadata(cursor, n_keys)
    alignment = _alignment(cursor.path, metadata)
    directory = [_read_tensor(cursor, index, n_tensors) for index in range(n_tensors)]
    data_start = -(-cursor.position // alignment) * alignment
    tensors = _place_tensors(cursor, directory, data_start, alignment)
    return Header(cursor.path, cursor.size, version, alignment, metadata, value_types, tensors)


def _read_entry_count(cursor: Cursor) -> int:
    # 8 bytes is less than an entry of either kind takes; each is checked again as it is read.
    count = cursor.count(least_bytes=8)
    if count > MAX_ENTRIES:
        raise UnsupportedError(
            f"{cursor.path}: {cursor.place} has {count} entries, more than q4run reads"
            f" ({MAX_ENTRIES}); this is no usual model file"
        )
    return count


def _read_metadata(cursor: Cursor, count: int) -> tuple[dict[str, Any], dict[str, GGUFValueType]]:
    metadata: dict[str, Any] = {}
    value_types: dict[str, GGUFValueType] = {}
    for index in range(count):
        cursor.place = f"metadata entry {index + 1} of {count}"
        key = cursor.name()
        cursor.place = f"metadata key {quote(key)}"
        if key in metadata:
            raise cursor.damaged("occurs twice")
        value_types[key], metadata[key] = read_value(cursor)
    return metadata, value_types


def _alignment(path: Path, metadata: dict[str, Any]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(alignment) is not int or alignment <= 0 or alignment & (alignment - 1):
        shown = "an array" if isinstance(alignment, GGUFArray) else quote(alignment)
        raise FormatError(
            f"{path}: general.alignment is {shown}, not a power of two; the file is damaged"
        )
    return alignment


def _read_tensor(cursor: Cursor, index: int, count: int) -> TensorInfo:
    """One entry of the directory; its offset still counts from the start of the data."""
    cursor.place = f"tensor {index + 1} of {count}"
    name = cursor.name()
    cursor.place = f"tensor {quote(name)}"
    n_dimensions = cursor.number(U32)
    if n_dimensions > MAX_DIMENSIONS:
        raise cursor.damaged(f"has {n_dimensions} dimensions; GGUF allows {MAX_DIMENSIONS}")
    shape = tuple(reversed([cursor.number(cursor.length) for _ in range(n_dimensions)]))
    if 0 in shape:
        raise cursor.damaged("has a dimension of 0")
    type_id = cursor.number(U32)
    try:
        tensor_type = GGMLQuantizationType(type_id)
        block_size, block_bytes = GGML_QUANT_SIZES[tensor_type]
    except (ValueError, KeyError):
        raise UnsupportedError(
            f"{cursor.path}: {cursor.place} has the type id {type_id}, which this q4run does not"
            " know; get the model in another quantisation, or update q4run and gguf"
        ) from None
    row = shape[-1] if shape else 1
    if row % block_size:
        raise cursor.damaged(
            f"has rows of {row} elements, not whole {tensor_type.name} blocks of {block_size}"
        )
    n_bytes = math.prod(shape) // block_size * block_bytes
    return TensorInfo(name, shape, tensor_type, cursor.path, cursor.number(U64), n_bytes)


def _place_tensors(
    cursor: Cursor, directory: list[TensorInfo], data_start: int, alignment: int
) -> dict[str, TensorInfo]:
    """The directory by name, offsets made absolute; extents inside the file and disjoint."""
    tensors: dict[str, TensorInfo] = {}
    for tensor in directory:
        cursor.place = f"tensor {quote(tensor.name)}"
        if tensor.name in tensors:
            raise cursor.damaged("occurs twice")
        if tensor.offset % alignment:
            if tensor.offset % DEFAULT_ALIGNMENT == 0:
                raise FormatError(
                    f"{cursor.path}: declares general.alignment = {alignment}, but its tensors lie"
                    f" by {DEFAULT_ALIGNMENT}, as llama.cpp's quantiser writes them; make its"
                    " source anew without that key (`q4run convert` does) and quantise that"
                )
            raise cursor.damaged(f"starts at {tensor.offset}, which is not {alignment}-aligned")
        end = data_start + tensor.offset + tensor.n_bytes
        if end > cursor.size:
            raise FormatError(
                f"{cursor.path}: {cursor.place} ends at byte {end}, but the file has only"
                f" {cursor.size}: it is cut short or damaged; download or copy it again"
            )
        tensors[tensor.name] = replace(tensor, offset=data_start + tensor.offset)
    _check_overlaps(cursor.path, tensors)
    return tensors


def _check_overlaps(path: Path, tensors: dict[str, TensorInfo]) -> None:
    end, previous = 0, ""
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.offset):
        if tensor.offset < end:
            raise FormatError(
                f"{path}: tensors {quote(previous)} and {quote(tensor.name)} overlap;"
                " the file is damaged"
            )
        end, previous = tensor.offset + tensor.n_bytes, tensor.name
