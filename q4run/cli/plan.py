"""``q4run plan``: what a model will need and how fast it will be, without loading it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from q4run.cli import options
from q4run.cli.opening import model_in_the_box
from q4run.cli.terminal import Waiting
from q4run.errors import Error
from q4run.machine.memory import total_memory
from q4run.sizes import parse_size

if TYPE_CHECKING:
    from q4run.gguf_file import GGUFFile

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


def plan(
    model: Annotated[
        Path | None,
        typer.Argument(
            help="A GGUF file (of a split model, the first part), or a Hugging Face checkpoint"
            " folder. Not given: --geometry, or the model in the box.",
            metavar="MODEL",
            show_default=False,
        ),
    ] = None,
    geometry: Annotated[
        str | None,
        typer.Option(
            "--geometry",
            metavar="NAME",
            help="A known model's shape instead of a file: scout, maverick, behemoth, mixtral,"
            " small-scout.",
            rich_help_panel=_NEW_PANEL,
            show_default=False,
        ),
    ] = None,
    type_name: Annotated[
        str | None,
        typer.Option(
            "--type",
            metavar="T",
            help="The type to convert to, as in convert.",
            rich_help_panel=_NEW_PANEL,
            show_default=False,
        ),
    ] = None,
    expert_type: Annotated[
        str | None,
        typer.Option(
            "--expert-type",
            metavar="T",
            help="Another type for the routed experts.",
            rich_help_panel=_NEW_PANEL,
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            metavar="NAME",
            help="Types for a usual case, as in convert.",
            rich_help_panel=_NEW_PANEL,
            show_default=False,
        ),
    ] = None,
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
    ] = None,
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
    ] = None,
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
    ] = None,
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
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(
            "--measure",
            help="Measure this machine anew. Else what was measured counts for a day.",
        ),
    ] = False,
    ram_budget: options.RamBudget = None,
    threads: options.Threads = None,
    context: options.Context = None,
    kv_type: options.KV = options.KVType.F16,
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
      q4run plan --geometry scout --type tq1_0 --json
    """
    is_new = geometry is not None or (model is not None and model.is_dir())
    if geometry is not None and model is not None:
        raise typer.BadParameter("give a MODEL or a --geometry, not both")
    if not is_new and (type_name or expert_type or recipe):
        raise typer.BadParameter("a GGUF file has its types: --type is for a folder or --geometry")
    if model is not None and model.is_dir() and not (model / "config.json").is_file():
        raise Error(
            f"{model}: a folder without config.json is no Hugging Face checkpoint; give one that"
            " is, or a GGUF file"
        )
    if is_new and not (type_name or recipe):
        raise typer.BadParameter("give a --type or a --recipe: what to convert it to")
    is_box = geometry is None and model is None
    if is_box:
        model = model_in_the_box()
    with Waiting("reading headers") as waiting:
        from q4run.planning.advice import make_planner
        from q4run.planning.machine_speed import Given

        file = _described(model, geometry, type_name, expert_type, recipe)
        planner = make_planner(
            file,
            Given(
                threads=threads,
                memory=_rate(memory_bandwidth) if memory_bandwidth else None,
                disk=_rate(disk) if disk else None,
                core=_rate(core_speed) if core_speed else None,
            ),
            paths=() if is_new else file.parts,
            total_ram=parse_size(ram, total_memory()) if ram else None,
            context=context,
            kv_type=kv_type.value,
            anew=measure,
            progress=waiting.update,
        )
    if ram_budget is None:
        rows = planner.rows()
        row = planner.best(rows)
    else:
        row = planner.row(parse_size(ram_budget, planner.ram.total))
        rows = planner.rows(row.budget)
    words = ["q4run", "chat", *([] if is_box else [str(file.path)])]
    words += ["--ram-budget", f"{row.budget // 10**6}M"]
    words += ["--context", str(context)] if context else []
    words += ["--kv-type", kv_type.value] if kv_type is not options.KVType.F16 else []
    words += ["--threads", str(threads)] if threads else []
    from q4run.cli import plan_report
    from q4run.models.shapes import GEOMETRIES

    command = shlex.join(words)
    if model is not None and is_new:
        types = [("--recipe", recipe), ("--type", type_name), ("--expert-type", expert_type)]
        made = [word for name, value in types if value for word in (name, value)]
        convert = ["q4run", "convert", str(model), str(file.path), *made]
        command = f"{shlex.join(convert)} && {command}"
    note = GEOMETRIES[geometry].note if geometry else ""
    if json_output:
        print(json.dumps(plan_report.as_json(planner, rows, row, command, note)))
    else:
        plan_report.print_plan(planner, rows, row, command, note)


def _described(
    model: Path | None,
    geometry: str | None,
    type_name: str | None,
    expert_type: str | None,
    recipe: str | None,
) -> GGUFFile:
    """The model's file, or what converting would make of the folder or the shape."""
    if geometry is None and model is not None and not model.is_dir():
        from q4run.gguf_file import open_gguf

        return open_gguf(model)
    from q4run.convert.preview import preview_checkpoint, preview_geometry
    from q4run.convert.types.recipe import make_recipe
    from q4run.models import FAMILIES
    from q4run.models.shapes import GEOMETRIES

    types = make_recipe(type_name, expert_type, recipe, ())
    if geometry is None:
        assert model is not None
        return preview_checkpoint(model, types)
    known = [name for name, shape in GEOMETRIES.items() if shape.architecture in FAMILIES]
    if geometry not in known:
        raise Error(f"there is no geometry '{geometry}'; choose {', '.join(known)}")
    return preview_geometry(geometry, GEOMETRIES[geometry], types)
