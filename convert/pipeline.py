"""The conversion from end to end: a plan, then the files it describes."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from q4run.convert.calibrated import block_plan
from q4run.convert.notes import leftover_notes, loss_notes, resume_notes
from q4run.convert.options import ConversionOptions
from q4run.convert.output.journal import fingerprint
from q4run.convert.output.leftovers import remove_leftovers
from q4run.convert.output.memory import held_memory
from q4run.convert.output.outputs import Outputs, ResumableFiles, TemporaryFiles
from q4run.convert.output.stream import BlockPlan, plan_blocks
from q4run.convert.output.writer import (
    Progress,
    check_folder,
    check_not_source,
    check_targets,
    write_parts,
)
from q4run.convert.plan import ConversionPlan, plan_conversion
from q4run.convert.summary import Summary, summarize
from q4run.kernels.compiling.compile import take_remarks


def convert(
    source: str | Path,
    out: str | Path | None = None,
    *,
    progress: Progress | None = None,
    choosing: Progress | None = None,
    **options: Any,
) -> Summary:
    """Converts a Hugging Face checkpoint folder, or another GGUF, to GGUF; tells what was done.

    ``out``: the file to write (None: NAME-TYPE.gguf in the current folder). ``options`` are the
    fields of `ConversionOptions`. ``progress`` is called with (bytes written, bytes in all),
    ``choosing`` with the groups of tensors whose types were measured, and all of them.

    Raises as `ConversionOptions`, `plan_conversion` and `write` do. Whatever is raised, no output
    is left behind (with ``resume``, hidden files of what is finished).
    """
    plan = plan_conversion(source, out, ConversionOptions(**options), choosing)
    return summarize(plan) if plan.options.dry_run else write(plan, progress)


def write(plan: ConversionPlan, progress: Progress | None = None) -> Summary:
    """Writes what is planned; tells what was done.

    ``progress`` is called with (bytes written, bytes in all). Raises ``FormatError`` for values
    that are not finite, ``BudgetError`` when the memory is too little, and ``Error`` for an output
    that cannot be written.
    """
    started = time.monotonic()
    summary = summarize(plan)
    check_folder(plan.parts)
    check_not_source(plan.parts, plan.source.files)
    removed = [path for part in plan.parts for path in remove_leftovers(part.path)]
    with _outputs(plan) as outputs:
        check_targets(plan.parts, force=plan.options.force, n_kept=outputs.n_kept)
        notes = [*summary.notes, *leftover_notes(removed), *resume_notes(outputs)]
        write_parts(outputs, _block_plan(plan), progress)
    notes += take_remarks()
    if plan.calibration is not None:
        notes += loss_notes(plan.calibration)
    seconds = plan.seconds + time.monotonic() - started
    return replace(summary, written=True, seconds=seconds, notes=notes)


def _outputs(plan: ConversionPlan) -> Outputs:
    if not plan.options.resume:
        return TemporaryFiles(plan.parts)
    return ResumableFiles(plan.parts, fingerprint(plan.parts, plan.source.files))


def _block_plan(plan: ConversionPlan) -> BlockPlan:
    """How rows are read and quantised, within what the process does not hold already."""
    limits = plan.limits
    if plan.calibration is None:
        return plan_blocks(plan.tensors, limits.max_ram, held_memory(), limits.n_threads)
    blocks = block_plan(plan.tensors)
    plan.calibration.start(limits.max_ram - held_memory() - blocks.n_bytes)
    return blocks
