"""What an importance matrix says about the tensors that are to be written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import gguf
import numpy as np

from q4run.convert.calibration.imatrix import Entry, ImportanceMatrix
from q4run.convert.tensors import OutputTensor, PlannedTensor
from q4run.errors import FormatError
from q4run.models.parts import Role

QUANTISED = (Role.OUTPUT, Role.MATRIX, Role.EXPERT)
# Types that hold floats: nothing is weighed there.
FLOATS = ("f32", "f16", "bf16")


@dataclass(frozen=True)
class Importance:
    """What a tensor's columns count: ``columns``, float32 (n_matrices, n_cols), the mean square of
    what each multiplies. An expert that no token reached (of ``n_unreached``) has the average of
    its layer's others."""

    columns: np.ndarray
    n_unreached: int


def importance_by_name(
    tensors: Sequence[OutputTensor], imatrix: ImportanceMatrix, source: str
) -> dict[str, Importance]:
    """What the columns of each tensor count, where the matrix has it.

    source: the file, for messages. Raises ``FormatError`` where the matrix is of another model.
    """
    _check_is_of_this_model(tensors, imatrix, source)
    return {
        tensor.name: _importance(tensor, imatrix.entries[tensor.name], source)
        for tensor in tensors
        if tensor.name in imatrix.entries
    }


def add_importance(
    tensors: Sequence[PlannedTensor], importance: Mapping[str, Importance], source: str
) -> tuple[list[PlannedTensor], list[str]]:
    """The tensors with the importance of their columns where it is known, and notes.

    source: the file it is from, for the notes.
    """
    planned, missing, unreached = [], [], 0
    for one in tensors:
        known = importance.get(one.tensor.name)
        if one.fmt.name in FLOATS or one.tensor.role not in QUANTISED:
            planned.append(one)
        elif known is None:
            missing.append(one.tensor.name)
            planned.append(one)
        else:
            unreached += known.n_unreached
            planned.append(replace(one, importance=known.columns))
    notes = []
    if missing:
        names = ", ".join(missing[:3]) + (
            f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        )
        notes.append(f"{source} says nothing of {names}: all their columns count alike")
    if unreached:
        notes.append(
            f"{unreached} expert matrices met no token of the calibration text: they get the"
            " average of their layer's other experts; a longer text may reach them"
        )
    return planned, notes


def add_imatrix_keys(metadata: gguf.GGUFWriter, imatrix: ImportanceMatrix, source: str) -> None:
    """The keys by which llama.cpp's quantiser tells what it used."""
    metadata.add_string("quantize.imatrix.file", source)
    if imatrix.text:
        metadata.add_string("quantize.imatrix.dataset", imatrix.text)
    metadata.add_int32("quantize.imatrix.entries_count", len(imatrix.entries))
    if imatrix.n_chunks:
        metadata.add_int32("quantize.imatrix.chunks_count", imatrix.n_chunks)


def _check_is_of_this_model(
    tensors: Sequence[OutputTensor], imatrix: ImportanceMatrix, source: str
) -> None:
    names = {tensor.name for tensor in tensors}
    foreign = [name for name in imatrix.entries if name not in names]
    if foreign:
        raise FormatError(
            f"{source}: is of another model, for {foreign[0][:80]!r} is no tensor of this one:"
            " make it from this model with q4run imatrix"
        )


def _importance(tensor: OutputTensor, entry: Entry, source: str) -> Importance:
    shape = (tensor.n_matrices, tensor.n_cols)
    if entry.sums.size != tensor.n_matrices * tensor.n_cols or len(entry.counts) not in (
        1,
        tensor.n_matrices,
    ):
        raise FormatError(
            f"{source}: is of another model: {tensor.name} has {entry.sums.size} sums there, but"
            f" {shape[0]} x {shape[1]} columns here: make it from this model with q4run imatrix"
        )
    counts = np.broadcast_to(entry.counts, shape[0])[:, None].astype(np.float64)
    mean = entry.sums.reshape(shape) / np.maximum(counts, 1)
    reached = (counts[:, 0] > 0) & (mean > 0).any(axis=1)
    mean[~reached] = mean[reached].mean(axis=0) if reached.any() else 1.0
    return Importance(mean.astype(np.float32), int((~reached).sum()))
