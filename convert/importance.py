"""What an importance matrix says about the tensors that are to be written."""

from collections.abc import Sequence
from dataclasses import replace

import gguf
import numpy as np

from q4run.convert.calibration.imatrix import Entry, ImportanceMatrix
from q4run.convert.layout import PlannedTensor
from q4run.convert.tensors import OutputTensor, Role
from q4run.errors import FormatError

QUANTISED = (Role.OUTPUT, Role.MATRIX, Role.EXPERT)
# Types that hold floats: nothing is weighed there.
FLOATS = ("f32", "f16", "bf16")


def add_importance(
    tensors: Sequence[PlannedTensor], imatrix: ImportanceMatrix, source: str
) -> tuple[list[PlannedTensor], list[str]]:
    """The tensors with the importance of their columns where the matrix has it, and notes.

    An expert that no token reached gets the average of its layer's others. source: the file, for
    messages. Raises ``FormatError`` where the matrix is of another model.
    """
    _check_is_of_this_model(tensors, imatrix, source)
    planned, missing, unreached = [], [], 0
    for one in tensors:
        entry = imatrix.entries.get(one.tensor.name)
        if one.fmt.name in FLOATS or one.tensor.role not in QUANTISED:
            planned.append(one)
        elif entry is None:
            missing.append(one.tensor.name)
            planned.append(one)
        else:
            mean, n_unreached = _mean_squares(one.tensor, entry, source)
            unreached += n_unreached
            planned.append(replace(one, importance=mean))
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


def importance_by_name(
    tensors: Sequence[OutputTensor], imatrix: ImportanceMatrix | None, source: str
) -> dict[str, np.ndarray]:
    """What the columns of each tensor count, float32 (n_matrices, n_cols), where it is known."""
    if imatrix is None:
        return {}
    return {
        tensor.name: _mean_squares(tensor, imatrix.entries[tensor.name], source)[0]
        for tensor in tensors
        if tensor.name in imatrix.entries
    }


def add_imatrix_keys(metadata: gguf.GGUFWriter, imatrix: ImportanceMatrix, source: str) -> None:
    """The keys by which llama.cpp's quantiser tells what it used."""
    metadata.add_string("quantize.imatrix.file", source)
    if imatrix.text:
        metadata.add_string("quantize.imatrix.dataset", imatrix.text)
    metadata.add_int32("quantize.imatrix.entries_count", len(imatrix.entries))
    if imatrix.n_chunks:
        metadata.add_int32("quantize.imatrix.chunks_count", imatrix.n_chunks)


def _check_is_of_this_model(
    tensors: Sequence[PlannedTensor], imatrix: ImportanceMatrix, source: str
) -> None:
    names = {planned.tensor.name for planned in tensors}
    foreign = [name for name in imatrix.entries if name not in names]
    if foreign:
        raise FormatError(
            f"{source}: is of another model, for {foreign[0][:80]!r} is no tensor of this one:"
            " make it from this model with q4run imatrix"
        )


def _mean_squares(tensor: OutputTensor, entry: Entry, source: str) -> tuple[np.ndarray, int]:
    """float32 (n_matrices, n_cols), and how many of the matrices no token reached."""
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
    return mean.astype(np.float32), int((~reached).sum())
