"""A Hugging Face checkpoint folder: ``config.json`` and its ``*.safetensors``."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

from q4run.convert.config import Config, read_json
from q4run.convert.source import fp8, mxfp4
from q4run.convert.source.quantized import read_quantization
from q4run.convert.source.safetensors_file import StoredTensor, read_directory
from q4run.convert.source.tensor_names import plain_name
from q4run.convert.tensors import SourceTensor
from q4run.errors import Error, FormatError, UnsupportedError

INDEX_NAME = "model.safetensors.index.json"
NUMBERED = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
PYTORCH_FILES = ("*.bin", "*.pth", "*.pt")
# Scales of what is computed, not of weights: for runtimes that compute in 8 bits.
ACTIVATION_SCALES = re.compile(r"(input_scale|input_scale_ub|output_scale|\.[kqv]_scale)$")


class Checkpoint:
    """The configuration and the tensors of a checkpoint folder, by their plain names.

    A family claims the tensors it expects, with their shapes; `check_all_claimed` then tells what
    was missing and what no rule asked for. Opening reads headers only, never weights.
    """

    def __init__(self, folder: Path) -> None:
        """Raises ``FormatError`` for a damaged folder, ``UnsupportedError`` for another kind."""
        _check_is_checkpoint(folder)
        self.folder = folder
        self.config = Config(read_json(folder / "config.json"), str(folder / "config.json"))
        self.files = _find_files(folder)
        self.quantization = read_quantization(self.config)
        self.tensors = _read_directories(folder, self.files)
        self._claimed: set[str] = set()
        self._missing: list[str] = []

    @property
    def n_bytes(self) -> int:
        """The size of all weight files together."""
        return sum(path.stat().st_size for path in self.files)

    @property
    def name(self) -> str:
        """What people call the model: the folder's name, or the repository's in a Hub cache."""
        folder = self.folder.resolve()
        repository = folder.parent.parent.name
        if folder.parent.name == "snapshots" and repository.startswith("models--"):
            return repository.rsplit("--", 1)[-1]
        return folder.name or "model"

    def check_count(self, key: str, count: int) -> None:
        """Refuses a count of layers or experts that the checkpoint's tensors cannot bear out."""
        if count > len(self.tensors):
            raise FormatError(
                f"{self.config.where}: {key} is {count}, but the checkpoint holds only "
                f"{len(self.tensors)} tensors"
            )

    def has(self, name: str) -> bool:
        """Whether there is a tensor ``name``, in whatever form."""
        return name in self.tensors or self._find_mxfp4(name) is not None

    def claim(self, name: str, shape: tuple[int, ...]) -> SourceTensor:
        """The tensor ``name``, which must have ``shape``.

        Raises ``FormatError`` for another shape, ``UnsupportedError`` for a type that is not read.
        A missing tensor is remembered and told by `check_all_claimed`, so that one message can
        name them all.
        """
        tensor = self._find(name, shape)
        if tensor is None:
            self._missing.append(name)
            if len(self._missing) > len(self.tensors):
                self._refuse_missing()
            return StoredTensor(name, self.folder, "F32", shape, 0)
        return tensor

    def _find(self, name: str, shape: tuple[int, ...]) -> SourceTensor | None:
        """The tensor with what belongs to it, all claimed; None where it is missing."""
        stored = self.tensors.get(name)
        if stored is None:
            pair = self._find_mxfp4(name)
            if pair is None:
                return None
            self._claimed.update(tensor.name for tensor in pair)
            tensor = mxfp4.paired(name, *pair)
            _check_shape(tensor, pair[0].path, shape)
            return tensor
        self._claimed.add(name)
        _check_shape(stored, stored.path, shape)
        if stored.dtype not in fp8.WEIGHT_TYPES or len(shape) < 2:
            _ = stored.numpy_dtype  # refuses unknown types now, not hours into the work
            return stored
        names = fp8.scale_names(name)
        scales = next((self.tensors[other] for other in names if other in self.tensors), None)
        if scales is None:
            raise FormatError(
                f"{stored.path}: tensor '{name}' is stored as {stored.dtype}, but its scales are "
                f"missing ({' or '.join(names)})"
            )
        self._claimed.add(scales.name)
        return fp8.scaled(stored, scales, self.quantization.block)

    def _find_mxfp4(self, name: str) -> tuple[StoredTensor, StoredTensor] | None:
        for packed, scales in mxfp4.names(name):
            if packed in self.tensors and scales in self.tensors:
                return self.tensors[packed], self.tensors[scales]
        return None

    def check_all_claimed(self, ignorable: str) -> list[str]:
        """The names that match the pattern ``ignorable`` and were not claimed.

        Raises ``FormatError`` when a claimed tensor was missing, and ``UnsupportedError`` when
        tensors are left over that do not match.
        """
        self._refuse_missing()
        left = [
            name
            for name in self.tensors
            if name not in self._claimed and not ACTIVATION_SCALES.search(name)
        ]
        unknown = [name for name in left if not re.search(ignorable, name)]
        if unknown:
            raise UnsupportedError(
                f"{self.folder}: holds tensors this architecture does not have: "
                f"{_name_a_few(unknown)}"
            )
        return left

    def _refuse_missing(self) -> None:
        if self._missing:
            raise FormatError(f"{self.folder}: missing tensors: {_name_a_few(self._missing)}")


def _check_shape(tensor: SourceTensor, path: Path, shape: tuple[int, ...]) -> None:
    if tensor.shape != shape:
        raise FormatError(
            f"{path}: tensor '{tensor.name}' has the shape {list(tensor.shape)}, "
            f"but config.json asks for {list(shape)}"
        )


def _name_a_few(names: list[str]) -> str:
    shown = ", ".join(f"'{name[:100]}'" for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _check_is_checkpoint(folder: Path) -> None:
    if not folder.is_dir():
        raise Error(
            f"{folder}: no such folder; download the checkpoint first and give the folder "
            "that holds its config.json"
        )
    if not (folder / "config.json").is_file():
        raise FormatError(f"{folder}: holds no config.json, so it is no Hugging Face checkpoint")


def _find_files(folder: Path) -> list[Path]:
    """The weight files, in the order of precedence that ``transformers`` has."""
    single = folder / "model.safetensors"
    index = folder / INDEX_NAME
    if single.is_file():
        return [single]
    if index.is_file():
        return _files_of_index(index)
    files = sorted(path for path in folder.glob("*.safetensors") if path.is_file())
    if not files:
        if any(any(folder.glob(pattern)) for pattern in PYTORCH_FILES):
            raise UnsupportedError(
                f"{folder}: holds PyTorch weight files only; convert reads *.safetensors"
            )
        raise FormatError(f"{folder}: holds no *.safetensors")
    _check_numbering(folder, files)
    return files


def _files_of_index(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise FormatError(f"{index}: has no weight_map")
    names = set()
    for name in weight_map.values():
        # A stranger's index must not point outside its folder.
        if not isinstance(name, str) or Path(name).name != name or name in ("", "..", "."):
            raise FormatError(f"{index}: names the impossible file {str(name)[:100]!r}")
        names.add(name)
    files = [index.parent / name for name in sorted(names)]
    missing = [path.name for path in files if not path.is_file()]
    if missing:
        raise FormatError(
            f"{index.parent}: missing weight files: {_name_a_few(missing)}; "
            f"{INDEX_NAME} names {len(files)}: fetch the missing ones"
        )
    return files


def _check_numbering(folder: Path, files: list[Path]) -> None:
    """Refuses a numbered set (``model-00001-of-00004.safetensors``) that has gaps."""
    matches = [match for path in files if (match := NUMBERED.fullmatch(path.name))]
    sets = Counter((match[1], int(match[3])) for match in matches)
    for (stem, count), present in sets.items():
        if present != count:
            raise FormatError(
                f"{folder}: '{stem}' is a set of {count} files, but {present} are there: "
                "fetch the missing ones"
            )


def _read_directories(folder: Path, files: list[Path]) -> dict[str, StoredTensor]:
    tensors: dict[str, StoredTensor] = {}
    for path in files:
        for stored_name, stored in read_directory(path).items():
            name = plain_name(stored_name)
            tensor = replace(stored, name=name)
            if name in tensors:
                raise FormatError(
                    f"{path}: tensor '{name[:100]}' is also in {tensors[name].path.name}"
                )
            tensors[name] = tensor
    if not tensors:
        raise FormatError(f"{folder}: its weight files hold no tensors")
    return tensors
