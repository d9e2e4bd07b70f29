"""The options that say how much a model is to think before it answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

from q4run.terminal import note
from q4run.text.reasoning import Variables, no_thinking, reasoning_effort

if TYPE_CHECKING:
    from q4run.model import Model


def _check_level(level: str | None) -> str | None:
    if level is not None and not level.strip():
        raise typer.BadParameter("name a level, such as low, medium or high")
    return level


@dataclass(frozen=True)
class Thinking:
    """How much the model is to think; it is up to its chat template to pass that on."""

    no_think: Annotated[
        bool,
        typer.Option(
            "--no-think", help="Answer without reasoning first, where the chat template can ask."
        ),
    ] = False
    reasoning_effort: Annotated[
        str | None,
        typer.Option(
            "--reasoning-effort",
            metavar="LEVEL",
            help="How much to reason first, where the chat template can ask: low, medium, high, or"
            " what else the model knows.",
            show_default=False,
            callback=_check_level,
        ),
    ] = None

    def __post_init__(self) -> None:
        if self.no_think and self.reasoning_effort:
            raise typer.BadParameter("give either --no-think or --reasoning-effort")

    def refuse(self, why: str) -> None:
        """Raises typer.BadParameter if one of the options is given."""
        for name in self._given():
            raise typer.BadParameter(f"{name}: {why}")

    def choose_variables(self, model: Model) -> Variables:
        """Returns what to tell the model's template; says so where it takes no notice."""
        if model.template is None:
            for name in self._given():
                note(f"{model.path.name} has no chat template: {name} is left out.")
            return {}
        syntax = model.template.syntax
        if self.no_think:
            found = no_thinking(syntax.variables, syntax.constants)
            self._say_if_none(found, model, "has no variable that turns reasoning off")
            return found
        if self.reasoning_effort:
            found = reasoning_effort(self.reasoning_effort, syntax.variables)
            self._say_if_none(found, model, "has no variable for the effort of reasoning")
            return found
        return {}

    def _given(self) -> list[str]:
        given = {"--no-think": self.no_think, "--reasoning-effort": self.reasoning_effort}
        return [name for name, value in given.items() if value]

    def _say_if_none(self, found: Variables, model: Model, why: str) -> None:
        if not found:
            note(f"The chat template of {model.path.name} {why}: {self._given()[0]} is left out.")
