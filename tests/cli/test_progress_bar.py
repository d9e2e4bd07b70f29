"""The bar of convert and imatrix: what a terminal shows, and that a pipe gets nothing."""

import io

import pytest
from rich.console import Console

from q4run.cli import progress


def shown_by(console: Console, monkeypatch, *, shown: bool = True) -> str:
    monkeypatch.setattr(progress, "stderr_console", lambda: console)
    with progress.progress_bar("reading the text", shown=shown) as update:
        update("choosing, 1 of 2", None, None)
        update("running", 10, 40)
    return console.file.getvalue()


def test_a_terminal_shows_what_is_done_and_the_time_left(monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=True, width=80)
    printed = shown_by(console, monkeypatch)
    assert "running" in printed
    assert "-:--:--" in printed  # nothing can be foretold of a bar that has just begun
    assert printed.endswith("\x1b[2K")  # gone


@pytest.mark.parametrize("terminal", [False, True])
def test_nothing_goes_into_a_pipe_or_where_it_is_not_wanted(terminal, monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=80)
    assert shown_by(console, monkeypatch, shown=not terminal) == ""
