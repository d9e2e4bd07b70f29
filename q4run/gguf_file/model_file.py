"""A model in GGUF: one file or all parts of a split one, its metadata and where tensors lie.

`open_gguf` reads and checks the headers (see header.py) and keeps no file open; whoever
wants a tensor's bytes reads ``n_bytes`` at ``offset`` of ``path`` from its TensorInfo.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import EllipsisType, MappingProxyType
from typing import Any, TypeVar, cast

from gguf import GGUFValueType

from q4run.errors import FormatError
from q4run.gguf_file.cursor import quote
from q4run.gguf_file.header import Header, TensorInfo, read_header
from q4run.gguf_file.metadata import Metadata
from q4run.gguf_file.stacks import stack_experts

Default = TypeVar("Default")
Element = TypeVar("Element", int, float, str, bool)

_PART_NAME = re.compile(r"(?P<stem>.+)-\d{5}-of-(?P<count>\d{5})\.gguf", re.DOTALL)
_LARGEST_INT = (1 << 64) - 1

_ELEMENT_TYPES: dict[type, frozenset[GGUFValueType]] = {
    int: frozenset(
        {
            GGUFValueType.UINT8,
            GGUFValueType.INT8,
            GGUFValueType.UINT16,
            GGUFValueType.INT16,
            GGUFValueType.UINT32,
            GGUFValueType.INT32,
            GGUFValueType.UINT64,
            GGUFValueType.INT64,
        }
    ),
    float: frozenset({GGUFValueType.FLOAT32, GGUFValueType.FLOAT64}),
    str: frozenset({GGUFValueType.STRING}),
    bool: frozenset({GGUFValueType.BOOL}),
}
_TYPE_NAMES = {int: "an integer", float: "a float", str: "a string", bool: "true or false"}


@dataclass(frozen=True, eq=False, slots=True)
class GGUFFile:
    """What a GGUF model says about itself.

    ``metadata`` is the first part's (llama.cpp reads no other), ``value_types`` what its values are
    stored as; ``alignment`` is one that the
    tensors of every part have; ``tensors`` are in file order over all parts, a layer's separate
    experts stacked (see stacks.py); ``size`` is in bytes, of all parts.
    """

    path: Path
    parts: tuple[Path, ...]
    version: int
    alignment: int
    size: int
    metadata: Metadata
    tensors: Mapping[str, TensorInfo]
    value_types: Mapping[str, GGUFValueType] = field(default_factory=dict)

    @property
    def architecture(self) -> str:
        """``general.architecture``, e.g. ``llama4``. Raises FormatError when missing."""
        return self.get_str("general.architecture")

    def tensor(self, name: str) -> TensorInfo:
        """The tensor of this name. Raises FormatError naming it when the file has none."""
        try:
            return self.tensors[name]
        except KeyError:
            raise FormatError(
                f"{self.path}: the tensor {quote(name)} is missing; the model is not complete"
            ) from None

    def get_int(
        self,
        key: str,
        default: Default | EllipsisType = ...,
        *,
        minimum: int = 0,
        maximum: int = _LARGEST_INT,
    ) -> int | Default:
        """The integer under the complete name ``key``, from minimum to maximum inclusive.

        Without the key: ``default``, unchecked, if one is given. Raises FormatError naming the
        key when it is missing, not an integer, or out of range.
        """
        value = self._get(key, int, default)
        if key in self.metadata and not minimum <= value <= maximum:
            allowed = f"at least {minimum}" if value < minimum else f"at most {maximum}"
            raise FormatError(f"{self.path}: {key} is {value}, but must be {allowed}")
        return cast("int | Default", value)

    def get_float(self, key: str, default: Default | EllipsisType = ...) -> float | Default:
        """The float under ``key``, which must be finite; otherwise like `get_int`."""
        value = self._get(key, float, default)
        if key in self.metadata and not math.isfinite(value):
            raise FormatError(f"{self.path}: {key} is {value}, but must be finite")
        return cast("float | Default", value)

    def get_str(self, key: str, default: Default | EllipsisType = ...) -> str | Default:
        """The string under ``key``; otherwise like `get_int`."""
        return cast("str | Default", self._get(key, str, default))

    def get_bool(self, key: str, default: Default | EllipsisType = ...) -> bool | Default:
        """The truth value under ``key``; otherwise like `get_int`."""
        return cast("bool | Default", self._get(key, bool, default))

    def get_array(
        self, key: str, element_type: type[Element], default: Default | EllipsisType = ...
    ) -> list[Element] | Default:
        """The array under ``key``, of int, float, str or bool; otherwise like `get_int`.

        The list is the file's own copy, made on first use and the same every time: do not
        change it.
        """
        array = self.metadata.array(key)
        if array is None:
            if key not in self.metadata:
                return cast(Default, self._default(key, default))
            raise FormatError(f"{self.path}: {key} is not an array")
        if array.element_type not in _ELEMENT_TYPES[element_type]:
            raise FormatError(
                f"{self.path}: {key} is an array of {array.element_type.name.lower()},"
                f" but each element must be {_TYPE_NAMES[element_type]}"
            )
        return array.values()

    def array_length(self, key: str) -> int:
        """How many elements the array under ``key`` has, without decoding it; 0 without one."""
        array = self.metadata.array(key)
        return 0 if array is None else array.count

    def _get(self, key: str, wanted: type, default: Any) -> Any:
        if key not in self.metadata:
            return self._default(key, default)
        if self.metadata.array(key) is not None:
            raise FormatError(f"{self.path}: {key} is an array, not {_TYPE_NAMES[wanted]}")
        value = self.metadata[key]
        if type(value) is not wanted:
            raise FormatError(f"{self.path}: {key} is {quote(value)}, not {_TYPE_NAMES[wanted]}")
        return value

    def _default(self, key: str, default: Any) -> Any:
        if default is ...:
            raise FormatError(
                f"{self.path}: the metadata key {key} is missing; the model is not complete"
            )
        return default


def open_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Open a GGUF model by its file, or by the first of its split parts (which lie beside it).

    Reads headers only, however large the model is. Raises FormatError (damaged, cut short, not
    GGUF, a part missing or not the first), UnsupportedError (big-endian, unknown tensor type)
    and Error (no such file, a folder, no permission).
    """
    first = read_header(Path(path))
    headers = [first, *_read_other_parts(first)]
    tensors: dict[str, TensorInfo] = {}
    for header in headers:
        for name, tensor in header.tensors.items():
            if name in tensors:
                raise FormatError(
                    f"{header.path}: the tensor {quote(name)} is also in"
                    f" {tensors[name].path.name}; the parts are not of one model"
                )
            tensors[name] = tensor
    opened = GGUFFile(
        path=first.path,
        parts=tuple(header.path for header in headers),
        version=first.version,
        alignment=min(header.alignment for header in headers),
        size=sum(header.size for header in headers),
        metadata=Metadata(first.metadata),
        tensors=MappingProxyType(stack_experts(first.path, tensors)),
        value_types=MappingProxyType(first.value_types),
    )
    if len(headers) > 1:
        expected = opened.get_int("split.tensors.count")
        if expected != len(tensors):
            raise FormatError(
                f"{first.path}: the model should have {expected} tensors, but its"
                f" {len(headers)} parts have {len(tensors)}; download them again"
            )
    return opened


def _read_other_parts(first: Header) -> list[Header]:
    """The headers of parts 2 and on; none for a file that is not split.

    The keys and the names of parts are those of llama.cpp's gguf-split.
    """
    count = _split_number(first, "split.count", default=1)
    if count <= 1:
        return []
    paths = _part_paths(first.path, count)
    number = _split_number(first, "split.no", default=0)
    if number != 0:
        raise FormatError(
            f"{first.path}: this is part {number + 1} of {count}; give the first, {paths[0].name}"
        )
    if first.path != paths[0]:
        raise FormatError(
            f"{first.path}: this is the first of {count} parts, renamed; call it {paths[0].name}"
        )
    for path in paths:
        if not path.exists():
            raise FormatError(f"{path}: this part of the model is missing; download all {count}")
    headers = []
    for index, path in enumerate(paths[1:], start=1):
        header = read_header(path)
        found = (_split_number(header, "split.no", 0), _split_number(header, "split.count", 1))
        if found != (index, count):
            raise FormatError(
                f"{path}: not part {index + 1} of {count} as its name says, but part"
                f" {found[0] + 1} of {found[1]}; download it again"
            )
        headers.append(header)
    return headers


def _split_number(header: Header, key: str, default: int) -> int:
    value = header.metadata.get(key, default)
    if type(value) is not int or value < 0:
        raise FormatError(f"{header.path}: {key} is not a count; the file is damaged")
    return value


def _part_paths(path: Path, count: int) -> list[Path]:
    match = _PART_NAME.fullmatch(path.name)
    if match is None or int(match["count"]) != count:
        raise FormatError(
            f"{path}: this is one of {count} parts, which must keep their names; rename it to"
            f" end in -00001-of-{count:05d}.gguf, with the others beside it"
        )
    return [
        path.with_name(f"{match['stem']}-{number:05d}-of-{count:05d}.gguf")
        for number in range(1, count + 1)
    ]
