"""How the command line ends when something goes wrong: one line and an exit status."""

import functools
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import ParamSpec

import typer
from rich.console import Console

from q4run.machine.interrupts import raising_ctrl_c
from q4run.terminal import describe, one_line, stderr_console

Parameters = ParamSpec("Parameters")

_tracebacks = False


def show_tracebacks(show: bool) -> None:
    """Whether errors also print where they come from (``--debug``)."""
    global _tracebacks
    _tracebacks = show


def reporting_errors(verb: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """The verb, ending in the exit statuses of the command line whatever it raises.

    1 with one line on standard error that begins ``error:``; 130 after Ctrl-C; 0 without a word
    where the reader of standard output (``head``, a pager) closed it. Wrong usage passes through.
    With --json, standard output gets an object with ``error``, so that who reads it has one object
    either way.
    """

    @functools.wraps(verb)
    def guarded(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        try:
            with raising_ctrl_c():
                verb(*args, **kwargs)
                sys.stdout.flush()
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except KeyboardInterrupt:
            if stderr_console().is_terminal:
                print(file=sys.stderr)  # the terminal has written ^C and stayed on that line
            raise typer.Exit(130) from None
        except BrokenPipeError:
            _discard_output()
            raise typer.Exit(0) from None
        except Exception as exception:
            if _tracebacks:
                traceback.print_exc()
            message = describe(exception)
            report_error(message)
            if kwargs.get("json_output"):
                with suppress(OSError):
                    print(json.dumps({"error": one_line(message)}))
            _discard_output()
            raise typer.Exit(1) from None

    return guarded


def end_quietly_when_not_read() -> None:
    """Has every console end the program without a word, and with status 0, where the reader of
    standard output closed it; rich's own way is status 1."""
    Console.on_broken_pipe = _end_quietly  # type: ignore[method-assign,assignment]


def _end_quietly(console: Console) -> None:
    console.quiet = True
    _discard_output()
    raise SystemExit(int(console.stderr))


def refuse_other_encodings(arguments: Sequence[str]) -> None:
    """Ends with one line where an argument is not UTF-8, unless it is the path of something."""
    for argument in arguments:
        if any("\ud800" <= character <= "\udfff" for character in argument):
            value = argument.partition("=")[2] if argument.startswith("-") else ""
            if not os.path.lexists(argument) and not (value and os.path.lexists(value)):
                report_error(f"the argument '{argument}' is not text in UTF-8; convert it first")
                raise SystemExit(1)


def report_error(message: str) -> None:
    """Prints the one line that says what went wrong."""
    with suppress(OSError):
        console = stderr_console()
        console.print("[bold red]error:[/]", end=" ", soft_wrap=True)
        console.print(one_line(message), markup=False, soft_wrap=True)


def _discard_output() -> None:
    """Keeps the interpreter from failing once more as it flushes standard output at its end."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
