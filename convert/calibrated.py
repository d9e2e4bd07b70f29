"""``convert --calibrate``: a conversion whose tensors are quantised while a text runs through."""

import hashlib
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import gguf

from q4run.convert.calibration.calibration import Calibration
from q4run.convert.calibration.weights import PlannedWeights
from q4run.convert.calibration.windows import read_windows
from q4run.convert.output.layout import lay_out
from q4run.convert.output.stream import BlockPlan, least_plan
from q4run.convert.tensors import PlannedTensor
from q4run.gguf_file import GGUFFile
from q4run.gguf_file.header import parse_header
from q4run.gguf_file.metadata import Metadata
from q4run.models import read_config
from q4run.models.parts import Role
from q4run.text import DEFAULT_WINDOW
from q4run.text.tokenizer import load_tokenizer

# More text gains little: 130,000 tokens are 8,000 for each of sixteen experts.
DEFAULT_CHUNKS = 256
# Of values that are quantised at once: 800 rows of Scout's.
LARGEST_BLOCK = 2**22


def add_calibration(
    tensors: Sequence[PlannedTensor],
    metadata: gguf.GGUFWriter,
    out: Path,
    text: Path,
    chunks: int | None,
) -> tuple[list[PlannedTensor], Calibration]:
    """The tensors in the order in which they can be calibrated, and what quantises them.

    metadata: complete, the tokenizer's keys included; it gets keys that name text and windows.
    Raises ``Error`` for a text that cannot be used.
    """
    # The output matrix sees the last layer's results: it has to come after all layers.
    in_order = sorted(tensors, key=lambda planned: planned.tensor.role is Role.OUTPUT)
    file = _as_written(in_order, metadata, out)
    tokenizer = load_tokenizer(file.metadata)
    windows = read_windows(text, tokenizer, DEFAULT_WINDOW, chunks or DEFAULT_CHUNKS)
    metadata.add_string("quantize.calibration.dataset", str(text))
    metadata.add_int32("quantize.calibration.chunks_count", len(windows))
    metadata.add_string("quantize.calibration.tokens", hashlib.sha256(windows.data).hexdigest())
    weights = PlannedWeights(planned.tensor for planned in tensors)
    calibration = Calibration(read_config(file), weights, windows, out)
    return [
        replace(planned, calibration=calibration)
        if calibration.handles(planned.tensor, planned.fmt)
        else planned
        for planned in in_order
    ], calibration


def block_plan(tensors: Sequence[PlannedTensor]) -> BlockPlan:
    """Runs of rows as long as compensation wants them: one after another, by one thread."""
    least = least_plan(tensors, 1)
    largest = max(p.tensor.n_rows * p.tensor.n_cols for p in tensors if p.calibration is not None)
    block = max(least.block_values, min(LARGEST_BLOCK, largest))
    return replace(least, block_values=block, read_values=max(least.read_values, block))


def _as_written(tensors: Sequence[PlannedTensor], metadata: gguf.GGUFWriter, out: Path) -> GGUFFile:
    """The model as its file will describe it, before there is one."""
    part = lay_out(out, metadata, tensors, None)[0]
    header = parse_header(io.BytesIO(part.header), out, part.n_bytes)
    return GGUFFile(
        path=out,
        parts=(out,),
        version=header.version,
        alignment=header.alignment,
        size=header.size,
        metadata=Metadata(header.metadata),
        tensors=header.tensors,
    )
