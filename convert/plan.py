"""The first half of a conversion: source -> types -> layout. Nothing is written."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import gguf

from q4run.convert.calibrated import add_calibration
from q4run.convert.calibration.calibration import Calibration
from q4run.convert.calibration.imatrix import read_imatrix
from q4run.convert.options import ConversionOptions
from q4run.convert.output.layout import Part, header_bytes, lay_out
from q4run.convert.output.memory import Limits, check_least_memory, choose_limits
from q4run.convert.source.source import Source, open_source
from q4run.convert.tensors import OutputTensor, PlannedTensor
from q4run.convert.types.fit import Progress, measure_fit
from q4run.convert.types.importance import (
    Importance,
    add_imatrix_keys,
    add_importance,
    importance_by_name,
)
from q4run.convert.types.recipe import TypeChoice, file_type


@dataclass(frozen=True, eq=False)
class ConversionPlan:
    """What will be written, from what and within which limits.

    ``tensors`` are in the model's order; ``parts`` hold them in their files'. ``calibration``
    quantises those that it handles. The notes tell what choosing types, reading metadata and
    weighing columns had to tell. ``seconds``: how long planning took.
    """

    source: Source
    options: ConversionOptions
    limits: Limits
    metadata: gguf.GGUFWriter
    tensors: Sequence[PlannedTensor]
    parts: Sequence[Part]
    calibration: Calibration | None
    type_notes: Sequence[str]
    metadata_notes: Sequence[str]
    imatrix_notes: Sequence[str]
    seconds: float


def plan_conversion(
    source: str | Path,
    out: str | Path | None,
    options: ConversionOptions,
    choosing: Progress | None = None,
) -> ConversionPlan:
    """Plans what `write` then does; reads weights only to choose types for a size.

    ``out``: the file to write (None: NAME-TYPE.gguf in the current folder). ``choosing`` is called
    with the groups of tensors whose types were measured, and all of them.

    Raises ``FormatError`` for damaged input, ``UnsupportedError`` for an unknown architecture or
    feature, ``BudgetError`` when the memory is too little to write it (unless for a dry run), and
    ``Error`` where the size to fit into or the calibration text is too small.
    """
    started = time.monotonic()
    limits = choose_limits(options.max_ram, options.threads)
    opened = open_source(Path(source))
    imatrix = read_imatrix(Path(options.imatrix)) if options.imatrix is not None else None
    imatrix_name = str(options.imatrix)
    importance = importance_by_name(opened.tensors, imatrix, imatrix_name) if imatrix else {}
    types = _choose_types(options, opened.tensors, importance, choosing)
    tensors, _ = types.plan(opened.tensors)
    if not options.dry_run:
        check_least_memory(limits, opened.tokenizer_bytes, tensors)
    metadata, metadata_notes = opened.write_metadata(options.pre)
    tensors, type_notes = types.plan(
        opened.tensors, lambda planned: header_bytes(metadata, planned, options.split_max_size)
    )
    metadata.add_file_type(file_type(tensors))
    metadata.add_quantization_version(gguf.GGML_QUANT_VERSION)
    imatrix_notes: list[str] = []
    if imatrix is not None:
        tensors, imatrix_notes = add_importance(tensors, importance, imatrix_name)
        add_imatrix_keys(metadata, imatrix, imatrix_name)
    out = Path(out) if out is not None else Path(f"{opened.name}-{types.name}.gguf")
    calibration = None
    if options.calibrate is not None:
        text = Path(options.calibrate)
        tensors, calibration = add_calibration(
            tensors, metadata, out, text, options.calibrate_chunks
        )
    return ConversionPlan(
        source=opened,
        options=options,
        limits=limits,
        metadata=metadata,
        tensors=tensors,
        parts=lay_out(out, metadata, tensors, options.split_max_size),
        calibration=calibration,
        type_notes=type_notes,
        metadata_notes=metadata_notes,
        imatrix_notes=imatrix_notes,
        seconds=time.monotonic() - started,
    )


def _choose_types(
    options: ConversionOptions,
    tensors: Sequence[OutputTensor],
    importance: Mapping[str, Importance],
    choosing: Progress | None,
) -> TypeChoice:
    if options.fit is None:
        return options.make_recipe()
    return measure_fit(options.fit, tensors, importance, choosing)
