"""Opening a model: its progress while it loads, and what is said about it then and later."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from q4run import box
from q4run.terminal import Patience, Waiting, note, quiet_line

if TYPE_CHECKING:
    from q4run.model import Model
    from q4run.settings import Settings


@contextmanager
def open_model(path: Path | None, settings: Settings) -> Iterator[Model]:
    """Loads a model while a progress line shows how far it is, says what was chosen, closes it.

    Without a path it is the model in the box.
    """
    path = path or model_in_the_box()
    with Waiting("starting") as waiting:
        # These take most of a second: only now, and with the progress line under way.
        from q4run.kernels.compiling.compile import CACHE_FOLDER

        stages = {} if any(CACHE_FOLDER.glob("**/*.nbc")) else {"compiling kernels": _FIRST_TIME}
        from q4run.loading import load

        model = load(
            path,
            **asdict(settings),
            progress=lambda stage, done, total: waiting.update(
                stages.get(stage, stage), done, total
            ),
        )
    model.tell_of_waits(Patience(model.path.name))
    model.tell_of_slots(partial(_say_how_many_fit, model.plan.n_slots))
    with model:
        _say_what_was_chosen(model)
        yield model


def model_in_the_box() -> Path:
    """What to open where no MODEL is named; says so."""
    note(f"No MODEL named: here is the one in the box, {box.DESCRIPTION}.")
    return box.MODEL


def _say_how_many_fit(planned: int, n_slots: int) -> None:
    if n_slots == planned:
        note(f"There is room for {n_slots} experts again.")
    else:
        note(f"Memory is short: {n_slots} of {planned} experts are kept in RAM for now.")


_FIRST_TIME = "compiling kernels (first time on this machine only)"


def _say_what_was_chosen(model: Model) -> None:
    from q4run.sizes import format_size

    plan, config = model.plan, model.config
    n_experts = max((part.n_expert for part in config.experts.values()), default=0)
    shape = f"{config.architecture}, {len(config.layers)} layers"
    parts = f": dense {format_size(plan.dense)}, KV {format_size(plan.kv)}"
    threads = f"{model.threads} thread" + "s" * (model.threads > 1)
    slots, how = "", [threads]
    if plan.n_experts:
        shape += f", {n_experts} experts"
        slots, how = f", {plan.n_slots} of {plan.n_experts} experts", [model.io, threads]
    ram = f"RAM {format_size(plan.total)}"
    quiet_line(
        [model.path.name, shape, f"{ram}{parts}{slots}", *how],
        shorter=[model.path.name, config.architecture, f"{ram}{slots}", *how],
    )
    if model.io_reason and plan.n_experts and not plan.all_resident:
        note(f"Experts are read by {model.io}: {model.io_reason}.")
    for text in model.notes:
        note(text)
    if model.session.context > config.context_length:
        note(
            f"The model was trained on {config.context_length} tokens: in a context of"
            f" {model.session.context}, it gets worse after these."
        )
