"""How the output is laid out: which tensors go into which file, each file's header, exact sizes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf
from gguf.gguf_writer import SHARD_NAME_FORMAT, GGUFValue

from q4run.convert.output.header import Entry, make_header
from q4run.convert.tensors import PlannedTensor
from q4run.errors import Error
from q4run.gguf_file.borders import BORDER, in_file_order, padded

MAX_PARTS = 2**16 - 1
METADATA_PER_PART_BYTES = 4096


@dataclass(frozen=True)
class Position:
    """A place in a part where a matrix ends: ``n_bytes`` from its start, after ``n_tensors`` whole
    tensors and ``n_matrices`` of the next one."""

    n_bytes: int
    n_tensors: int
    n_matrices: int


@dataclass(frozen=True)
class Part:
    """One file: its final path, all bytes before the first tensor's data, its tensors in order."""

    path: Path
    header: bytes
    tensors: list[PlannedTensor]

    @property
    def n_bytes(self) -> int:
        return len(self.header) + sum(padded(planned.n_bytes) for planned in self.tensors)

    def position_at(self, n_bytes: int) -> Position:
        """The last end of a matrix, or of the header, within the first ``n_bytes``; else 0."""
        at = len(self.header)
        if n_bytes < at:
            return Position(0, 0, 0)
        for index, planned in enumerate(self.tensors):
            end = at + padded(planned.n_bytes)
            if end > n_bytes:
                n_matrices = planned.tensor.n_matrices
                matrix_bytes = planned.n_bytes // n_matrices
                # The last matrix is followed by the padding, with which the tensor ends.
                n_whole = min((n_bytes - at) // matrix_bytes, n_matrices - 1)
                return Position(at + n_whole * matrix_bytes, index, n_whole)
            at = end
        return Position(at, len(self.tensors), 0)


def lay_out(
    out: Path,
    metadata: gguf.GGUFWriter,
    tensors: Sequence[PlannedTensor],
    split_max_size: int | None,
) -> list[Part]:
    """The files to write: one, or several of at most ``split_max_size`` bytes.

    A tensor is never divided, so that a part with one large tensor may exceed the size. Parts are
    named and numbered as llama.cpp expects (``NAME-00001-of-00003.gguf``, keys ``split.*``).
    Raises ``Error`` when there would be more parts than GGUF can number.
    """
    values = dict(metadata.kv_data[0])
    if split_max_size is None:
        groups = [list(tensors)]
    else:
        n_metadata = len(_header(metadata.arch, values, []))
        groups = _divide(tensors, split_max_size, n_metadata)
    groups = [_in_file_order(group) for group in groups]
    if len(groups) == 1:
        return [Part(out, _header(metadata.arch, values, groups[0]), groups[0])]
    if len(groups) > MAX_PARTS:
        raise Error(f"{len(groups)} parts are more than {MAX_PARTS}: raise --split-max-size")

    stem = out.name.removesuffix(".gguf")
    parts = []
    for number, group in enumerate(groups):
        path = out.with_name(SHARD_NAME_FORMAT.format(stem, number + 1, len(groups)))
        own = (values if number == 0 else {}) | {
            gguf.Keys.Split.LLM_KV_SPLIT_NO: GGUFValue(number, gguf.GGUFValueType.UINT16),
            gguf.Keys.Split.LLM_KV_SPLIT_COUNT: GGUFValue(len(groups), gguf.GGUFValueType.UINT16),
            gguf.Keys.Split.LLM_KV_SPLIT_TENSORS_COUNT: GGUFValue(
                len(tensors), gguf.GGUFValueType.INT32
            ),
        }
        parts.append(Part(path, _header(metadata.arch, own, group), group))
    return parts


def header_bytes(
    metadata: gguf.GGUFWriter, tensors: Sequence[PlannedTensor], split_max_size: int | None
) -> int:
    """At most what stands before the tensors of all files together.

    There is room in it for keys that are yet to come, and for one more file than there are now:
    keys, and a tensor that is moved to the end, can need it.
    """
    n_bytes = len(_header(metadata.arch, dict(metadata.kv_data[0]), tensors)) + BORDER
    if split_max_size is None:
        return n_bytes
    n_parts = len(_divide(tensors, split_max_size, n_bytes))
    return n_bytes + n_parts * (METADATA_PER_PART_BYTES + BORDER)


def _divide(
    tensors: Sequence[PlannedTensor], max_size: int, n_metadata: int
) -> list[list[PlannedTensor]]:
    groups: list[list[PlannedTensor]] = [[]]
    size = n_metadata
    for planned in tensors:
        # Name, four dimensions, type and offset take less than 100 bytes beside the name.
        n_bytes = padded(planned.n_bytes) + 100 + len(planned.tensor.name)
        if groups[-1] and size + n_bytes > max_size:
            groups.append([])
            size = METADATA_PER_PART_BYTES
        groups[-1].append(planned)
        size += n_bytes
    return groups


def _in_file_order(tensors: Sequence[PlannedTensor]) -> list[PlannedTensor]:
    """Whole pages first, but what is calibrated stays in the order of its layers."""
    return in_file_order(tensors, lambda t: 0 if t.calibration is not None else t.n_bytes)


def _header(
    architecture: str, values: dict[str, GGUFValue], tensors: Sequence[PlannedTensor]
) -> bytes:
    entries = (
        Entry(planned.tensor.name, planned.tensor.shape, planned.n_bytes, planned.fmt.ggml_type)
        for planned in tensors
    )
    return make_header(architecture, values, entries)
