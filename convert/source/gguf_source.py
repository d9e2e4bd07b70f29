"""A GGUF file as the source: its metadata kept, its tensors' roles told by their names.

The names are those of llama.cpp (``gguf-py``'s ``TENSOR_NAMES``); which tensors its quantiser
leaves as they are stands in ``llama-quant.cpp``.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
from gguf.gguf_writer import GGUFValue

from q4run.convert.blocks import Blocks
from q4run.convert.source.safetensors_file import read_fully
from q4run.convert.tensors import OutputTensor, Rows, rows_of, stack_of
from q4run.errors import FormatError, UnsupportedError
from q4run.gguf_file import GGUFFile, TensorInfo, open_gguf
from q4run.gguf_file.borders import PADDING_KEY
from q4run.kernels.formats import Format, find_format
from q4run.models.names import layer_of, role_of

# Written anew for the output, or of the source's layout only.
REPLACED_KEYS = re.compile(
    r"general\.(alignment|file_type|quantization_version|architecture)$|split\.|"
    + re.escape(PADDING_KEY)
    + "$"
)
PRE_KEY = gguf.Keys.Tokenizer.PRE
PART_NUMBER = re.compile(r"-\d{5}-of-\d{5}$")
FLOATS: Mapping[str, np.dtype] = {
    "f32": np.dtype("<f4"),
    "f16": np.dtype("<f2"),
    "bf16": np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True)
class GGUFTensor:
    """A tensor of a GGUF file; floats read as such, all else as blocks."""

    info: TensorInfo
    fmt: Format

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def shape(self) -> tuple[int, ...]:
        return self.info.shape or (1,)

    def read_rows(self, first: int, count: int) -> Rows:
        """Rows ``first`` to ``first + count``, counted through all matrices of a stack.

        Raises ``FormatError`` when the file has become shorter or cannot be read.
        """
        row_bytes = self.fmt.row_bytes(self.shape[-1])
        raw = np.empty(count * row_bytes, np.uint8)
        read_fully(self.info.path, self.info.offset + first * row_bytes, raw, self.name)
        if self.fmt.name in FLOATS:
            return raw.view(FLOATS[self.fmt.name]).reshape(count, self.shape[-1])
        return Blocks(raw.reshape(count, row_bytes), self.fmt)


class GGUFSource:
    """A GGUF file, or all parts of a split one given by its first, as a `Source`."""

    def __init__(self, path: Path) -> None:
        """Reads headers only. Raises as ``open_gguf`` does."""
        self._file = open_gguf(path)
        self.files: Sequence[Path] = self._file.parts
        self.n_bytes = self._file.size
        self.name = PART_NUMBER.sub("", path.name.removesuffix(".gguf")) or "model"
        self.architecture = self._file.architecture
        self.tensors = [
            _output_tensor(path, info) for info in sorted(self._file.tensors.values(), key=_place)
        ]
        if not self.tensors:
            raise FormatError(f"{path}: holds no tensors")
        self.notes: list[str] = []
        stored = [part for info in self._file.tensors.values() for part in info.stored]
        first = [info.offset for info in stored if info.path == path]
        self.tokenizer_bytes = min(first, default=path.stat().st_size)

    def write_metadata(self, pre: str | None) -> tuple[gguf.GGUFWriter, list[str]]:
        """The source's keys but for those that are written anew, and for the name that ``pre``
        gives to its pre-tokenizer."""
        metadata = gguf.GGUFWriter(None, self.architecture)
        left_out = []
        for key, value_type in self._file.value_types.items():
            if REPLACED_KEYS.match(key):
                continue
            value = _copied_value(self._file, key, value_type)
            if value is None or not _is_utf8(key):
                left_out.append(key.encode("utf-8", "replace").decode()[:100])
            else:
                metadata.kv_data[0][key] = value
        if pre is not None:
            metadata.kv_data[0][PRE_KEY] = GGUFValue(pre, gguf.GGUFValueType.STRING)
        if not left_out:
            return metadata, []
        return metadata, [f"left out, being empty or lists of lists: {', '.join(left_out[:5])}"]


def _place(info: TensorInfo) -> tuple[int, str]:
    """Layer by layer, however the file has them: that is how an output is divided into parts."""
    layer = layer_of(info.name)
    return -1 if layer is None else layer, info.name


def _format_of(info: TensorInfo) -> Format:
    fmt = find_format(info.type)
    if fmt is None:
        raise UnsupportedError(
            f"{info.path}: tensor '{info.name[:100]}' is stored as {info.type.name.lower()}, which "
            "convert does not read"
        )
    return fmt


def _output_tensor(path: Path, info: TensorInfo) -> OutputTensor:
    shape = info.shape or (1,)
    if len(shape) > 3:
        raise UnsupportedError(
            f"{path}: tensor '{info.name[:100]}' has {len(shape)} dimensions, more than convert "
            "writes"
        )
    tensors = [GGUFTensor(part, _format_of(part)) for part in info.stored]
    if info.parts:
        read = stack_of(tensors)
    else:
        read = rows_of(tensors[0], rows_per_matrix=shape[-2] if len(shape) > 1 else 1)
    stored = next((tensor.fmt for tensor in tensors if tensor.fmt.name not in FLOATS), None)
    return OutputTensor(info.name, shape, role_of(info.name, len(shape)), read, stored=stored)


def _copied_value(file: GGUFFile, key: str, value_type: gguf.GGUFValueType) -> GGUFValue | None:
    """The value under ``key`` for the writer; None for arrays that it cannot write."""
    array = file.metadata.array(key)
    if array is None:
        return GGUFValue(_as_bytes(file.metadata[key]), value_type)
    if not array.count or array.element_type == gguf.GGUFValueType.ARRAY:
        return None
    values = array.values()
    if array.element_type == gguf.GGUFValueType.STRING:
        values = [_as_bytes(value) for value in values]
    return GGUFValue(values, value_type, array.element_type)


def _as_bytes(value: object) -> object:
    """Text as its bytes in the file, which need not be UTF-8; anything else as it is."""
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value


def _is_utf8(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)
