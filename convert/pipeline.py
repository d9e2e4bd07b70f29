"""The conversion from end to end: source -> types -> layout -> file."""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import psutil

from q4run.convert.calibrated import add_calibration, block_plan, loss_notes
from q4run.convert.calibration.imatrix import read_imatrix
from q4run.convert.output.journal import fingerprint
from q4run.convert.output.layout import Part, header_bytes, lay_out
from q4run.convert.output.outputs import Outputs, ResumableFiles, TemporaryFiles
from q4run.convert.output.stream import check_memory, least_plan, plan_blocks
from q4run.convert.output.writer import (
    Progress,
    check_folder,
    check_not_source,
    check_targets,
    write_parts,
)
from q4run.convert.source.gguf_source import requantising_notes
from q4run.convert.source.source import open_source
from q4run.convert.summary import Summary, count_types
from q4run.convert.tensors import PlannedTensor
from q4run.convert.types.fit import Fit
from q4run.convert.types.importance import add_imatrix_keys, add_importance, importance_by_name
from q4run.convert.types.recipe import file_type, make_recipe
from q4run.convert.types.ternary import ternary_notes
from q4run.convert.widen import BFLOAT16, largest_bfloat, transpose_columns, widen
from q4run.errors import Error
from q4run.machine.cores import choose_threads
from q4run.machine.memory import available_memory
from q4run.sizes import format_size

DEFAULT_RAM_SHARE = 4
# What a tokenizer's file takes, per byte, while it is parsed and once it is GGUF keys (measured
# on Llama 3's: 9 and 6).
TOKENIZER_PEAK, TOKENIZER_HELD = 12, 8


def convert(
    source: str | Path,
    out: str | Path | None = None,
    *,
    type: str | None = None,
    expert_type: str | None = None,
    recipe: str | None = None,
    tensor_types: Sequence[tuple[str, str]] = (),
    fit: int | None = None,
    imatrix: str | Path | None = None,
    calibrate: str | Path | None = None,
    calibrate_chunks: int | None = None,
    max_ram: int | None = None,
    threads: int | None = None,
    split_max_size: int | None = None,
    dry_run: bool = False,
    force: bool = False,
    resume: bool = False,
    progress: Progress | None = None,
    choosing: Progress | None = None,
) -> Summary:
    """Converts a Hugging Face checkpoint folder, or another GGUF, to GGUF; tells what was done.

    ``out`` is the file to write (default: NAME-TYPE.gguf in the current folder). ``type`` is for
    the always-used matrices and, unless ``expert_type`` is given, for the routed experts; router,
    norms and vectors are f32. ``recipe`` names a pair of types (`RECIPES`); ``tensor_types`` are
    pairs of a pattern and the type of the tensors in whose names it is found. ``fit`` in bytes
    chooses the types instead, so that the file is at most that large. ``imatrix``: an importance
    matrix of this model, made by q4run or llama.cpp, that says which columns matter.
    ``calibrate``: a UTF-8 text of which up to ``calibrate_chunks`` windows run through the model
    meanwhile, so that what some weights lose in rounding others make up for. ``max_ram`` bounds the
    memory of the whole process, in bytes (default: what it holds now and a quarter of what is
    free). ``threads`` quantise (default: one per core); their number changes no byte of the
    result. ``split_max_size`` in bytes makes several files. ``dry_run`` plans and writes nothing.
    ``force`` replaces an existing output. ``resume`` keeps what is finished when the conversion is
    interrupted, even by a crash, and goes on from there when called again with the same source and
    options. ``progress`` is called with (bytes written, bytes in all), ``choosing`` with the groups
    of tensors whose types were measured, and all of them.

    Raises subclasses of `q4run.Error`: ``FormatError`` for damaged input, ``UnsupportedError`` for
    an unknown architecture, feature or type, ``BudgetError`` when ``max_ram`` is too little, and
    ``Error`` for an output that cannot be written. Whatever is raised, no output is left behind
    (with ``resume``, hidden files of what is finished).
    """
    started = time.monotonic()
    source = Path(source)
    if fit is not None and (type or expert_type or recipe or tensor_types):
        raise Error("a size to fit into chooses the types: give either types or the size")
    chosen = make_recipe(type, expert_type, recipe, tensor_types) if fit is None else Fit(fit)
    n_threads = choose_threads(threads)
    if max_ram is None:
        max_ram = _held_memory() + available_memory() // DEFAULT_RAM_SHARE

    opened = open_source(source)
    statistics = read_imatrix(Path(imatrix)) if imatrix is not None else None
    importance = importance_by_name(opened.tensors, statistics, str(imatrix)) if statistics else {}
    if isinstance(chosen, Fit):
        chosen.measure(opened.tensors, importance, choosing)
    tensors, type_notes = chosen.plan(opened.tensors, 0)
    if not dry_run:
        _compile_codecs(tensors)
        least = _least_memory(opened.tokenizer_bytes, tensors, n_threads)
        check_memory(max_ram, _held_memory() + least)
    metadata, metadata_notes = opened.write_metadata()
    if isinstance(chosen, Fit):
        tensors = chosen.plan_beside_headers(
            opened.tensors, lambda planned: header_bytes(metadata, planned, split_max_size)
        )
    metadata.add_file_type(file_type(tensors))
    metadata.add_quantization_version(gguf.GGML_QUANT_VERSION)
    imatrix_notes: list[str] = []
    if statistics is not None:
        tensors, imatrix_notes = add_importance(tensors, importance, str(imatrix))
        add_imatrix_keys(metadata, statistics, str(imatrix))
    out = Path(out) if out is not None else Path(f"{opened.name}-{chosen.name}.gguf")
    calibration = None
    if calibrate is not None:
        tensors, calibration = add_calibration(
            tensors, metadata, out, Path(calibrate), calibrate_chunks
        )
    parts = lay_out(out, metadata, tensors, split_max_size)
    notes = [*opened.notes, *type_notes, *requantising_notes(tensors), *metadata_notes]
    notes += ternary_notes(tensors, is_calibrated=calibration is not None)
    summary = Summary(
        architecture=opened.architecture,
        outputs=[part.path for part in parts],
        written=not dry_run,
        counts=count_types(tensors),
        size_before=opened.n_bytes,
        size_after=sum(part.n_bytes for part in parts),
        seconds=0.0,
        notes=[*notes, *imatrix_notes, *_split_notes(parts, split_max_size)],
    )
    if dry_run:
        return summary

    check_folder(parts)
    check_not_source(parts, opened.files)
    with _outputs(parts, opened.files, resume) as outputs:
        check_targets(parts, force=force, n_kept=outputs.n_kept)
        summary.notes.extend(_resume_notes(outputs))
        if calibration is None:
            plan = plan_blocks(tensors, max_ram, _held_memory(), n_threads)
        else:
            plan = block_plan(tensors)
            calibration.start(max_ram - _held_memory() - plan.n_bytes)
        write_parts(outputs, plan, progress)
    if calibration is not None:
        summary.notes.extend(loss_notes(calibration))
    return replace(summary, seconds=time.monotonic() - started)


def _outputs(parts: Sequence[Part], source_files: Sequence[Path], resume: bool) -> Outputs:
    if not resume:
        return TemporaryFiles(parts)
    return ResumableFiles(parts, fingerprint(parts, source_files))


def _resume_notes(outputs: Outputs) -> list[str]:
    if outputs.n_kept:
        return [f"{format_size(outputs.n_kept)} of an interrupted conversion were kept"]
    if isinstance(outputs, ResumableFiles) and outputs.restarted:
        return ["what an interrupted conversion had left was damaged: all was done anew"]
    return []


def _held_memory() -> int:
    """The resident memory of this process, in bytes."""
    return int(psutil.Process().memory_info().rss)


def _least_memory(tokenizer_bytes: int, tensors: Sequence[PlannedTensor], n_threads: int) -> int:
    """What the conversion takes at least beyond what the process holds before it, in bytes."""
    streaming = least_plan(tensors, n_threads).n_bytes
    return max(TOKENIZER_PEAK * tokenizer_bytes, TOKENIZER_HELD * tokenizer_bytes + streaming)


def _split_notes(parts: Sequence[Part], max_size: int | None) -> list[str]:
    n_larger = sum(part.n_bytes > max_size for part in parts) if max_size is not None else 0
    if not n_larger:
        return []
    files = "1 file is" if n_larger == 1 else f"{n_larger} files are"
    return [f"{files} larger than --split-max-size: a tensor is never divided"]


def _compile_codecs(tensors: Sequence[PlannedTensor]) -> None:
    """Runs what is compiled once, so that the memory its compilation takes is counted as held."""
    for dtype in (np.float32, np.float16, BFLOAT16):
        widen(np.zeros((1, 1), dtype))
    largest_bfloat(np.zeros((1, 1), BFLOAT16))
    for bits in (np.uint8, np.uint16, np.uint32):
        transpose_columns(np.zeros((1, 1), bits), 0, np.zeros((1, 1), bits), 0)
    for fmt in {planned.fmt.name: planned.fmt for planned in tensors}.values():
        fmt.quantize(np.zeros((1, fmt.block_size), np.float32))
    stored = [planned.tensor.stored for planned in tensors]
    for fmt in {fmt.name: fmt for fmt in stored if fmt is not None}.values():
        fmt.dequantize(np.zeros((1, fmt.type_size), np.uint8))
