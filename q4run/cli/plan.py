"""``q4run plan``: what a model will need and how fast it will be, without loading it."""

from __future__ import annotations

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from q4run.cli import options
from q4run.cli.known_shapes import NAMES, facts_of, geometry_named
from q4run.cli.opening import model_in_the_box
from q4run.errors import Error
from q4run.machine.memory import total_memory
from q4run.settings import Settings
from q4run.sizes import parse_size
from q4run.terminal import Waiting

if TYPE_CHECKING:
    from q4run.gguf_file import GGUFFile
    from q4run.models.config import ModelConfig
    from q4run.planning.machine_speed import Given

_NEW_PANEL = "A model that is not converted yet"
_MACHINE_PANEL = "Another machine"


def check_rate(text: str | None) -> str | None:
    """Refuses, as wrong usage, what is no amount a second: 7G, 400GB/s, 500M."""
    if text is not None:
        try:
            _rate(text)
        except Error as error:
            raise typer.BadParameter(str(error)) from None
    return text


def _rate(text: str) -> int:
    return parse_size(text.strip().removesuffix("/s"))


@dataclass(frozen=True)
class NewModel:
    """What a model that is not converted yet will be."""

    geometry: Annotated[
        str | None,
        typer.Option(
            "--geometry",
            metavar="NAME",
            help=f"A known model's shape instead of a file: {', '.join(NAMES)}.",
            rich_help_panel=_NEW_PANEL,
            show_default=False,
        ),
    ] = None
    type_name: Annotated[
        str | None,
        typer.Option(
            "--type",
            metavar="T",
            help="The type to convert to, as in convert.",
            rich_help_panel=_NEW_PANEL,
            show_default=False,
        ),
    ] = None
    expert_type: Annotated[
        str | None,
        typer.Option(
            "--expert-type",
            metavar="T",
            help="Another type for the routed experts.",
            rich_help_panel=_NEW_PANEL,
            show_default=False,
        ),
    ] = None
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            metavar="NAME",
            help="Types for a usual case, as in convert.",
            rich_help_panel=_NEW_PANEL,
            show_default=False,
        ),
    ] = None

    @property
    def types(self) -> list[str]:
        """The options of ``convert`` that choose the types."""
        given = {
            "--recipe": self.recipe,
            "--type": self.type_name,
            "--expert-type": self.expert_type,
        }
        return [word for name, value in given.items() if value for word in (name, value)]


@dataclass(frozen=True)
class Machine:
    """A machine other than this one, in what is given."""

    ram: Annotated[
        str | None,
        typer.Option(
            "--ram",
            metavar="SIZE",
            help="RAM of the machine. Not given: this one's.",
            rich_help_panel=_MACHINE_PANEL,
            show_default=False,
            callback=options.check_size,
        ),
    ] = None
    disk: Annotated[
        str | None,
        typer.Option(
            "--disk",
            metavar="SIZE",
            help="What its disk reads in a second: 7G. Not given: measured.",
            rich_help_panel=_MACHINE_PANEL,
            show_default=False,
            callback=check_rate,
        ),
    ] = None
    memory_bandwidth: Annotated[
        str | None,
        typer.Option(
            "--memory-bandwidth",
            metavar="SIZE",
            help="What its memory gives to all threads in a second: 400G. Not given: measured.",
            rich_help_panel=_MACHINE_PANEL,
            show_default=False,
            callback=check_rate,
        ),
    ] = None
    core_speed: Annotated[
        str | None,
        typer.Option(
            "--core-speed",
            metavar="OPERATIONS",
            help="What one core multiplies and adds in a second, in 8 bits: 250G. Not given:"
            " this machine's, measured.",
            rich_help_panel=_MACHINE_PANEL,
            show_default=False,
            callback=check_rate,
        ),
    ] = None
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Measure this machine anew. Else what was measured counts for a day.",
        ),
    ] = False


def plan(
    *,
    model: Annotated[
        Path | None,
        typer.Argument(
            help="A GGUF file (of a split model, the first part), or a Hugging Face checkpoint"
            " folder. Not given: --geometry, or the model in the box.",
            metavar="MODEL",
            show_default=False,
        ),
    ] = None,
    new: NewModel,
    machine: Machine,
    settings: Annotated[
        Settings, options.settings_options("ram_budget", "threads", "context", "kv_type")
    ],
    json_output: options.Json = False,
) -> None:
    """Tell what a model will need and how fast it will be, without loading it.

    Shows where every byte will live, how much a token reads from disk, and
    the expected speed for several budgets. Measures this machine first, for
    a few seconds.

    [bold]Examples[/]
      q4run plan model.gguf
      q4run plan model.gguf --ram-budget 8G --context 16384
      q4run plan Llama-4-Scout --type q8_0 --expert-type q4_0
      q4run plan --geometry maverick --type q4_0 --ram 64G --disk 7G
      q4run plan --geometry qwen3-30b-a3b --type q4_0 --json
    """
    is_new = _check_given(model, new)
    is_box = new.geometry is None and model is None
    if is_box:
        model = model_in_the_box()
    with Waiting("reading headers") as waiting:
        from q4run.planning.advice import make_planner

        file, config = _described(model, new)
        planner = make_planner(
            file,
            _given(machine, settings.threads),
            paths=() if is_new else file.parts,
            context=settings.context,
            kv_type=settings.kv_type,
            config=config,
            anew=machine.measure,
            progress=waiting.update,
        )
    if settings.ram_budget is None:
        rows = planner.rows()
        row = planner.best(rows)
    else:
        row = planner.row(parse_size(str(settings.ram_budget), planner.ram.total))
        rows = planner.rows(row.budget)
    from q4run.cli import plan_report

    command = shlex.join(_chat_words(None if is_box else file.path, row.budget, settings))
    if model is not None and is_new:
        convert = ["q4run", "convert", str(model), str(file.path), *new.types]
        command = f"{shlex.join(convert)} && {command}"
    shape = facts_of(new.geometry)
    if json_output:
        print(json.dumps(plan_report.as_json(planner, rows, row, command, shape)))
    else:
        plan_report.print_plan(planner, rows, row, command, shape)


def _check_given(model: Path | None, new: NewModel) -> bool:
    """Returns whether the model is not converted yet. Raises typer.BadParameter and Error for
    what does not go together."""
    is_folder = model is not None and model.is_dir()
    is_new = new.geometry is not None or is_folder
    if new.geometry is not None and model is not None:
        raise typer.BadParameter("give a MODEL or a --geometry, not both")
    if not is_new and new.types:
        raise typer.BadParameter("a GGUF file has its types: --type is for a folder or --geometry")
    if model is not None and is_folder and not (model / "config.json").is_file():
        raise Error(
            f"{model}: a folder without config.json is no Hugging Face checkpoint; give one that"
            " is, or a GGUF file"
        )
    if is_new and not (new.type_name or new.recipe):
        raise typer.BadParameter("give a --type or a --recipe: what to convert it to")
    return is_new


def _given(machine: Machine, threads: int | None) -> Given:
    from q4run.planning.machine_speed import Given

    return Given(
        threads=threads,
        memory=_rate(machine.memory_bandwidth) if machine.memory_bandwidth else None,
        disk=_rate(machine.disk) if machine.disk else None,
        core=_rate(machine.core_speed) if machine.core_speed else None,
        ram=parse_size(machine.ram, total_memory()) if machine.ram else None,
    )


def _chat_words(path: Path | None, budget: int, settings: Settings) -> list[str]:
    """Returns the words of the command to go on with."""
    words = ["q4run", "chat", *([str(path)] if path else [])]
    words += ["--ram-budget", f"{budget // 10**6}M"]
    words += ["--context", str(settings.context)] if settings.context else []
    words += ["--kv-type", settings.kv_type] if settings.kv_type != Settings.kv_type else []
    words += ["--threads", str(settings.threads)] if settings.threads else []
    return words


def _described(model: Path | None, new: NewModel) -> tuple[GGUFFile, ModelConfig | None]:
    """The model's file, or what converting would make of the folder or the shape; of a shape also
    what it is, for its family need not run yet."""
    if new.geometry is None and model is not None and not model.is_dir():
        from q4run.gguf_file import open_gguf

        return open_gguf(model), None
    from q4run.convert.preview import preview_checkpoint, preview_geometry
    from q4run.convert.types.recipe import make_recipe
    from q4run.models.shapes import config_of

    types = make_recipe(new.type_name, new.expert_type, new.recipe, ())
    if new.geometry is None:
        assert model is not None
        return preview_checkpoint(model, types), None
    geometry = geometry_named(new.geometry)
    return preview_geometry(new.geometry, geometry, types), config_of(geometry)
