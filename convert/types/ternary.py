"""Experts that were trained ternary, and those that were not: what a person should be told."""

from collections.abc import Sequence

from q4run.convert.tensors import PlannedTensor
from q4run.convert.types.recipe import TERNARY, named
from q4run.convert.types.sampling import relative_error, sample_rows
from q4run.models.parts import Role

# Rounding of the scales to f16 leaves less.
NO_LOSS = 1e-6
_N_SAMPLED = 3


def ternary_notes(tensors: Sequence[PlannedTensor], *, is_calibrated: bool) -> list[str]:
    """That experts could be ternary without loss, or that some matrices become so with loss.

    Reads samples of a few tensors. What calibration costs is told when it is done.
    """
    experts = [planned for planned in tensors if planned.tensor.role is Role.EXPERT]
    ternary = [planned for planned in tensors if planned.fmt.name in TERNARY]
    if ternary and not is_calibrated:
        loss = _largest_loss(ternary)
        if loss > NO_LOSS:
            return [
                f"{ternary[0].fmt.name} leaves {100 * loss:.0f} % of the weights' squares as error:"
                " this model was not trained ternary, and is the worse for it; --calibrate TEXT"
                " keeps far more of it, and q4run perplexity --base tells how much is lost"
            ]
    could_be = experts and not ternary and named("tq2_0").fits(experts[0].tensor.n_cols)
    if could_be and _largest_loss(experts, "tq2_0") <= NO_LOSS:
        times = experts[0].fmt.bits_per_weight / named("tq2_0").bits_per_weight
        return [
            "the routed experts are ternary: --expert-type tq2_0 holds them without loss in"
            f" {times:.1f} times less room, tq1_0 in less still, but slower"
        ]
    return []


def _largest_loss(tensors: Sequence[PlannedTensor], type_name: str | None = None) -> float:
    """The largest relative squared error of the first, middle and last tensors' samples."""
    step = max(1, (len(tensors) - 1) // (_N_SAMPLED - 1))
    return max(
        relative_error(named(type_name) if type_name else planned.fmt, *sample_rows(planned.tensor))
        for planned in tensors[::step]
    )
