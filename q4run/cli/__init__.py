"""The ``q4run`` command: one verb per file, loaded only when it is asked for."""

import importlib
import io
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from q4run import __version__
from q4run.cli.errors import (
    end_quietly_when_not_read,
    refuse_other_encodings,
    reporting_errors,
    show_tracebacks,
)
from q4run.cli.groups import flatten

# name: what the verb does, in the list of verbs. Its function is q4run.cli.NAME.NAME.
VERBS = {
    "convert": "Turn a Hugging Face checkpoint into a GGUF file.",
    "imatrix": "Collect activation statistics for convert --imatrix.",
    "inspect": "Show what is in a model file.",
    "plan": "Tell what a model will need and how fast it will be.",
    "run": "Complete one prompt.",
    "chat": "Talk to a model.",
    "doctor": "Show what this machine offers.",
    "perplexity": "Measure how well a model predicts a text.",
    "bench": "Measure speed and memory; compare with llama.cpp.",
}
_EPILOG = (
    "[bold]To begin, with the small model in the box[/]\n\n"
    "q4run chat\n\n"
    "[bold]The main job, in two commands[/]\n\n"
    "q4run convert CHECKPOINT_FOLDER model.gguf --type q4_0\n\n"
    "q4run chat model.gguf --ram-budget 8G"
)


def main() -> None:
    """The console script: runs the command line and exits."""
    for name in ("stdin", "stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by whoever started us
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w"))  # noqa: SIM115
        elif isinstance(stream, io.TextIOWrapper):
            # What an encoding lacks is shown as a question mark, never an error.
            stream.reconfigure(errors="replace")
    end_quietly_when_not_read()
    refuse_other_encodings(sys.argv[1:])
    app(prog_name="q4run")


class _Verb(TyperCommand):
    """A verb's place in the list: imports the verb itself when it is run or its help asked for."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return _load_verb(str(self.name)).make_context(*args, **kwargs)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None


class _Verbs(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        if cmd_name not in VERBS:
            return None
        return _Verb(name=cmd_name, help=VERBS[cmd_name], callback=lambda: None)


def _load_verb(name: str) -> Any:
    """The command for ``q4run.cli.NAME.NAME``, with --debug among its options."""
    verb = getattr(importlib.import_module(f"q4run.cli.{name}"), name)
    command = _command(name, reporting_errors(flatten(verb)))
    command.params += _command("debug", _debug_option).params
    return command


def _command(name: str, function: Any) -> Any:
    verb = typer.Typer(add_completion=False, rich_markup_mode="rich")
    verb.command(name)(function)
    return typer.main.get_command(verb)


def _turn_on_tracebacks(value: bool) -> None:
    if value:
        show_tracebacks(True)


_DEBUG_HELP = "Show where an error comes from (a traceback)."


def _debug_option(
    debug: Annotated[
        bool,
        typer.Option("--debug", help=_DEBUG_HELP, callback=_turn_on_tracebacks, expose_value=False),
    ] = False,
) -> None:
    """Holds the option that every verb gets."""


def _print_version(value: bool) -> None:
    if value:
        typer.echo(f"q4run {__version__}")
        raise typer.Exit()


app = typer.Typer(
    cls=_Verbs,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(epilog=_EPILOG)
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version.", callback=_print_version, is_eager=True
        ),
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help=_DEBUG_HELP)] = False,
) -> None:
    """Run Mixture-of-Experts language models that are larger than your RAM.

    Weights that every token needs stay in RAM; of the experts, only those that
    the model picks are read from disk, into the RAM that you allow.
    """
    show_tracebacks(debug)
