"""Figures as people read them."""

import statistics
from collections.abc import Callable, Sequence

from rich.console import Console

from q4run.bench.figures.figures import Figures

# Into a pipe, rows must not be folded to the 80 columns that rich assumes there.
_PIPE_WIDTH = 120


def console(*, stderr: bool = False, pipe_width: int = _PIPE_WIDTH) -> Console:
    """Where tables go: as wide as the terminal, or ``pipe_width`` where there is none."""
    terminal = Console(highlight=False, emoji=False, stderr=stderr)
    if terminal.is_terminal:
        return terminal
    return Console(width=pipe_width, highlight=False, emoji=False, stderr=stderr)


def with_range(numbers: Sequence[float | None], write: Callable[[float], str]) -> str:
    """The median and, where they differ, the least and the most of what is known."""
    known = [number for number in numbers if number is not None]
    if not known:
        return ""
    middle, least, most = (write(f(known)) for f in (statistics.median, min, max))
    return middle if least == most else f"{middle}  ({least} to {most})"


def over(value: float | None, base: float | None) -> float | None:
    """``value / base``; None where there is no such value, or nothing to divide it by."""
    return value / base if value is not None and base else None


def threads_of(run: Figures) -> str:
    n_threads: int = run["threads"]
    return f"{n_threads} thread" + "s" * (n_threads > 1)


def number(value: float) -> str:
    """Three digits: 1234, 43.9, 2.87."""
    if value >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def span(values: Sequence[float], write: Callable[[float], str] = number, to: str = "–") -> str:
    """The least and the most: ``1.30–1.42``; one of them where they read the same."""
    least, most = write(min(values)), write(max(values))
    return least if least == most else f"{least}{to}{most}"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]], n_left: int = 1) -> str:
    """A table in Markdown, whose columns beyond the first ``n_left`` are set to the right."""
    rule = "|" + "---|" * n_left + "---:|" * (len(header) - n_left)
    lines = ["| " + " | ".join(cells) + " |" for cells in (header, *rows)]
    # An empty heading is one space wide.
    return "\n".join([lines[0].replace("|  |", "| |"), rule, *lines[1:]])
