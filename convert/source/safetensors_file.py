"""The directory of one ``*.safetensors`` file, and reading values out of it piece by piece.

Our own reader, because the safetensors library maps the whole file (mapped pages count as this
process's memory, which ``--max-ram`` bounds) and does not say where a tensor lies.
Format: https://github.com/huggingface/safetensors#format
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import ml_dtypes
import numpy as np

from q4run.disk.read_at import read_fully_at
from q4run.errors import FormatError, UnsupportedError
from q4run.gguf_file.magic import refuse_lfs_pointer

MAX_HEADER_BYTES = 100_000_000  # the limit the format itself sets
MAX_DIMENSIONS = 8
_HEAD_BYTES = 64
DTYPES = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
}
BITS = {
    **dict.fromkeys(["BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0"], 8),
    **dict.fromkeys(["U16", "I16", "F16", "BF16"], 16),
    **dict.fromkeys(["U32", "I32", "F32"], 32),
    **dict.fromkeys(["U64", "I64", "F64", "C64"], 64),
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
}


@dataclass(frozen=True)
class StoredTensor:
    """Where a tensor lies: ``offset`` bytes into ``path``, C order, little-endian."""

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def numpy_dtype(self) -> np.dtype:
        """bfloat16, float16 or float32; ``UnsupportedError`` for any other type."""
        dtype: np.dtype | None = DTYPES.get(self.dtype)
        if dtype is None:
            raise UnsupportedError(
                f"{self.path}: tensor '{self.name}' is stored as {self.dtype}; convert reads "
                f"{', '.join(DTYPES)} (take the unquantised checkpoint)"
            )
        return dtype

    def read_rows(self, first: int, count: int) -> np.ndarray:
        """Rows ``first`` to ``first + count``, counted through all matrices of a stack, as an
        array (count, columns) of `numpy_dtype`; raises as `read`."""
        n_cols = self.shape[-1]
        return self.read(first * n_cols, count * n_cols).reshape(count, n_cols)

    def read(self, first: int, count: int) -> np.ndarray:
        """``count`` values from the ``first`` on, as a flat array of `numpy_dtype`.

        Raises ``FormatError`` when the file has become shorter or cannot be read.
        """
        itemsize = self.numpy_dtype.itemsize
        return self.read_bytes(first * itemsize, count * itemsize).view(self.numpy_dtype)

    def read_bytes(self, first: int, count: int) -> np.ndarray:
        """``count`` bytes of the tensor from the ``first`` on, uint8; raises as `read`."""
        values = np.empty(count, np.uint8)
        read_fully(self.path, self.offset + first, values, self.name)
        return values


def read_fully(path: Path, start: int, target: np.ndarray, name: str) -> None:
    """Fills ``target``, uint8, from byte ``start`` of a file on.

    Raises ``FormatError``, which names the tensor, when the file has become shorter or cannot be
    read.
    """
    try:
        with path.open("rb", buffering=0) as file:
            n_read = read_fully_at(file.fileno(), target.data, start)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror}") from None
    if n_read < len(target):
        raise FormatError(f"{path}: ends within tensor '{name}'")


def read_directory(path: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file by name.

    Raises ``FormatError`` unless the header is whole, every tensor has as many bytes as its shape
    and type need, and the tensors fill the file without gap or overlap.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(_HEAD_BYTES)
            refuse_lfs_pointer(path, head)
            n_header = int.from_bytes(head[:8], "little")
            if size < 8 or n_header > min(size - 8, MAX_HEADER_BYTES):
                raise FormatError(
                    f"{path}: its header of {n_header} bytes does not fit into the file's {size}; "
                    "the file is damaged or not a safetensors file"
                )
            file.seek(8)
            header = file.read(n_header)
    except OSError as error:
        raise FormatError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        entries = json.loads(header.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: the header is not valid JSON: {error}") from None
    if not isinstance(entries, dict):
        raise FormatError(f"{path}: the header is not a JSON object")

    entries.pop("__metadata__", None)
    tensors = {}
    extents = []
    data_start = 8 + n_header
    for name, entry in entries.items():
        tensor, n_bytes = _check_entry(path, name, entry, data_start)
        tensors[name] = tensor
        extents.append((tensor.offset, n_bytes, name))
    expected = data_start
    for offset, n_bytes, name in sorted(extents):
        if offset != expected:
            raise FormatError(f"{path}: tensor '{name}' overlaps another or leaves a gap before it")
        expected = offset + n_bytes
    if expected != size:
        raise FormatError(
            f"{path}: its tensors take {expected} bytes, but the file has {size}; "
            "it is truncated or damaged: fetch it again"
        )
    return tensors


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _check_entry(path: Path, name: str, entry: Any, data_start: int) -> tuple[StoredTensor, int]:
    """The tensor an entry of the header describes, and its bytes."""
    shown = name[:100]
    if not isinstance(entry, dict):
        raise FormatError(f"{path}: tensor '{shown}' has no entry of its own in the header")
    dtype, shape, extent = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
    if not isinstance(dtype, str) or dtype not in BITS:
        raise FormatError(f"{path}: tensor '{shown}' has the unknown type {str(dtype)[:20]!r}")
    if not _is_counts(shape) or len(shape) > MAX_DIMENSIONS:
        raise FormatError(f"{path}: tensor '{shown}' has the impossible shape {str(shape)[:60]}")
    if not _is_counts(extent) or len(extent) != 2 or extent[0] > extent[1]:
        raise FormatError(f"{path}: tensor '{shown}' has the bad offsets {str(extent)[:60]}")
    n_bytes = extent[1] - extent[0]
    if math.prod(shape) * BITS[dtype] != n_bytes * 8:
        raise FormatError(
            f"{path}: tensor '{shown}' of shape {shape} and type {dtype} "
            f"cannot take {n_bytes} bytes"
        )
    return StoredTensor(name, path, dtype, tuple(shape), data_start + extent[0]), n_bytes


def _is_counts(value: Any) -> TypeGuard[list[int]]:
    """Whether ``value`` is a list of integers that a file offset can be."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)
