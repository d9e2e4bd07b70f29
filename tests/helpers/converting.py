"""Helpers of the converter's tests: checkpoints and converted files as plain arrays."""

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np

from q4run.gguf_file import GGUFFile

DTYPES = {
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
    "U8": np.dtype("u1"),
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def load_checkpoint(folder: Path) -> dict[str, np.ndarray]:
    """Every tensor of a checkpoint as stored, over all its files."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        data = path.read_bytes()
        start = 8 + int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8:start]).items():
            if name == "__metadata__":
                continue
            begin, _ = entry["data_offsets"]
            count = math.prod(entry["shape"])
            flat = np.frombuffer(data, DTYPES[entry["dtype"]], count, start + begin)
            tensors[name] = flat.reshape(entry["shape"])
    return tensors


def save_checkpoint(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """One safetensors file."""
    header: dict[str, Any] = {}
    offset = 0
    for name, array in tensors.items():
        extent = [offset, offset + array.nbytes]
        header[name] = {
            "dtype": NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": extent,
        }
        offset = extent[1]
    text = json.dumps(header).encode()
    data = b"".join(np.ascontiguousarray(array).tobytes() for array in tensors.values())
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def save_sparse_checkpoint(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    """One safetensors file of bf16 zeros that takes no disk space."""
    header = {}
    offset = 0
    for name, shape in shapes.items():
        extent = [offset, offset + 2 * math.prod(shape)]
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": extent}
        offset = extent[1]
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + offset)


def edit_json(path: Path, **changes: Any) -> None:
    """Changes keys of a JSON file; None removes a key."""
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def edit_tensors(folder: Path, **changes: np.ndarray | None) -> None:
    """Replaces tensors of a checkpoint in one file; None removes one."""
    tensors = load_checkpoint(folder) | changes
    save_checkpoint(
        folder / "model.safetensors",
        {name: array for name, array in tensors.items() if array is not None},
    )


def read_gguf(*paths: Path) -> tuple[dict[str, Any], dict[str, gguf.ReaderTensor]]:
    """Metadata values of the first file, and the tensors of all, as the gguf package reads them."""
    readers = [gguf.GGUFReader(path) for path in paths]
    values = {key: field.contents() for key, field in readers[0].fields.items()}
    return values, {tensor.name: tensor for reader in readers for tensor in reader.tensors}


def values_of(tensor: gguf.ReaderTensor) -> np.ndarray:
    """A converted tensor as float32, in numpy's order of dimensions."""
    shape = tuple(int(n) for n in reversed(tensor.shape))
    values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    return np.asarray(values, np.float32).reshape(shape)


def check_borders(file: GGUFFile) -> None:
    """Asserts that a file's tensors of whole pages come first, on borders, without a key for it."""
    assert "general.alignment" not in file.metadata
    assert file.alignment == 32
    for path in file.parts:
        tensors = [tensor for tensor in file.tensors.values() if tensor.path == path]
        whole = [tensor.n_bytes % 4096 == 0 for tensor in tensors]
        assert whole == sorted(whole, reverse=True)
        assert tensors[0].offset % 4096 == 0
        for before, tensor in pairwise(tensors):
            assert tensor.offset == before.offset + -(-before.n_bytes // 32) * 32
