"""All that a person is told about a conversion beside its figures."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from q4run.convert.calibration.calibration import Calibration
from q4run.convert.output.layout import Part
from q4run.convert.output.outputs import Outputs, ResumableFiles
from q4run.convert.plan import ConversionPlan
from q4run.convert.tensors import PlannedTensor
from q4run.convert.types.recipe import TERNARY
from q4run.convert.types.ternary import NO_LOSS, ternary_notes
from q4run.sizes import format_size


def planning_notes(plan: ConversionPlan) -> list[str]:
    """What can be told before anything is written. Reads samples of a few tensors."""
    return [
        *plan.source.notes,
        *plan.type_notes,
        *_requantising_notes(plan.tensors),
        *plan.metadata_notes,
        *ternary_notes(plan.tensors, is_calibrated=plan.calibration is not None),
        *plan.imatrix_notes,
        *_split_notes(plan.parts, plan.options.split_max_size),
    ]


def leftover_notes(removed: Sequence[Path]) -> list[str]:
    """What was cleared away of conversions to the same output that were killed."""
    names = ", ".join(path.name for path in removed)
    return [f"what a killed conversion had left was removed: {names}"] if removed else []


def resume_notes(outputs: Outputs) -> list[str]:
    """What became of an interrupted conversion, once ``outputs`` are open."""
    if outputs.n_kept:
        return [f"{format_size(outputs.n_kept)} of an interrupted conversion were kept"]
    if isinstance(outputs, ResumableFiles) and outputs.restarted:
        return ["what an interrupted conversion had left was damaged: all was done anew"]
    return []


def loss_notes(calibration: Calibration) -> list[str]:
    """What calibration lost, once all tensors are written."""
    notes = [
        f"{role.value} in {type_name}: {100 * loss.relative:.3g} % squared error in their outputs"
        " on the calibration text"
        for (role, type_name), loss in calibration.losses.items()
    ]
    if any(
        type_name in TERNARY and loss.relative > NO_LOSS
        for (_, type_name), loss in calibration.losses.items()
    ):
        notes.append(
            "the source was not ternary: the model is worse for it; measure how much before you"
            " rely on it"
        )
    if calibration.n_unreached:
        notes.append(
            f"{calibration.n_unreached} expert matrices met no token of the calibration text: they"
            " were fitted to the average of their layer's other experts; a longer text may reach"
            " them"
        )
    return notes


def _requantising_notes(tensors: Sequence[PlannedTensor]) -> list[str]:
    """Tells of tensors that were quantised already and become another type."""
    pairs = [(planned.tensor.stored, planned.fmt) for planned in tensors]
    changes = Counter(
        stored.name
        for stored, fmt in pairs
        if stored is not None and stored is not fmt and fmt.name != "f32"
    )
    if not changes:
        return []
    types = ", ".join(f"{count} from {name}" for name, count in changes.items())
    return [
        f"{changes.total()} tensors are quantised a second time ({types}): to the loss of "
        "then that of now is added; convert the original checkpoint where you can"
    ]


def _split_notes(parts: Sequence[Part], max_size: int | None) -> list[str]:
    n_larger = sum(part.n_bytes > max_size for part in parts) if max_size is not None else 0
    if not n_larger:
        return []
    files = "1 file is" if n_larger == 1 else f"{n_larger} files are"
    return [f"{files} larger than --split-max-size: a tensor is never divided"]
