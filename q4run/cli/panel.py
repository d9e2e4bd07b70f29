"""What the live panel shows: lines for a terminal, from figures of a model at one moment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import set_cell_size

from q4run.cli.heat_map import Line, compact_map, joined, line_width
from q4run.experts.use import ExpertUse
from q4run.sizes import format_size

_BAR_WIDTH = 16
_LEAST_MAP = 3  # lines of a map and its legend: with fewer, there are figures only
# Styles as terminals know them (SGR).
_CODES = {
    "bold": "1",
    "dim": "2",
    "green": "32",
    "grey30": "90",
    "blue": "34",
    "cyan": "36",
    "yellow": "33",
    "red": "31",
}


@dataclass(frozen=True)
class Figures:
    """A model at work on one answer. Rates per second, sizes in bytes, None where there is none.

    ``prompt_done`` of the ``prompt_tokens`` are in the cache; with ``tokens`` 0 the prompt is still
    being read, and the rates are its. ``rate_now``, ``read_rate`` and ``wait_share`` (of the time,
    standing still for the disk) are of the last seconds, ``rate`` and ``hit_rate`` of all.
    """

    prompt_done: int
    prompt_tokens: int
    tokens: int
    rate_now: float | None
    rate: float | None
    hit_rate: float | None
    read_rate: float
    wait_share: float
    resident: int
    budget: int
    allowance: int


def panel(
    figures: Figures, use: ExpertUse | None, width: int, height: int, *, colour: bool
) -> list[str]:
    """At most ``height`` lines, at least 1, each narrower than ``width`` columns.

    How many they are depends on the room and the model alone, so that the panel keeps its place.
    ``use`` None is a model without experts. Without ``colour`` there are no escape codes.
    """
    width = max(width - 1, 1)  # the last column is where terminals differ
    lines = [_rule(_tokens(figures), width)]
    if use is not None:
        lines.append(joined(_experts(figures), width))
    lines.append(joined(_memory(figures), width))
    lines = lines[:height]
    if use is not None and height - len(lines) >= _LEAST_MAP:
        lines += compact_map(use, width, height - len(lines), colour=colour)
    return [_painted(line, width, colour) for line in lines]


def _rule(facts: Sequence[Line], width: int) -> Line:
    """A line across, with the facts in it."""
    line: Line = [("── ", "dim"), *joined(facts, width - 3), (" ", "")]
    return [*line, ("─" * (width - line_width(line)), "dim")]


def _tokens(figures: Figures) -> list[Line]:
    if not figures.tokens:
        read = f"reading the prompt: {figures.prompt_done} of {figures.prompt_tokens} tokens"
        facts: list[Line] = [[(read, "bold")]]
        if figures.prompt_done and figures.rate:
            facts.append([(f"{_short(figures.rate)} tok/s", "")])
        return facts
    rates: list[Line] = []
    if figures.rate_now is not None:
        rates.append([(f"{_short(figures.rate_now)} tok/s now", "bold")])
    if figures.rate is not None:
        rates.append([(f"{_short(figures.rate)} mean", "")])
    return [*rates, [(f"{figures.tokens} token" + "s" * (figures.tokens != 1), "")]]


def _experts(figures: Figures) -> list[Line]:
    hits = "–" if figures.hit_rate is None else f"{100 * figures.hit_rate:.0f} %"
    return [
        [(f"hits {hits}", "")],
        [(f"reading {figures.read_rate / 1e9:.2f} GB/s", "")],
        [(f"waiting {100 * min(figures.wait_share, 1):.0f} % of the time", "")],
    ]


def _memory(figures: Figures) -> list[Line]:
    limit = figures.budget + figures.allowance
    share = figures.resident / limit
    filled = min(round(_BAR_WIDTH * share), _BAR_WIDTH)
    bar = ("█" * filled, "green" if share <= 1 else "yellow")
    amount = f" {format_size(figures.resident)} of {format_size(limit)}"
    parts = f"budget {format_size(figures.budget)} + {format_size(figures.allowance)} for Python"
    return [
        [("RAM ", ""), bar, ("░" * (_BAR_WIDTH - filled), "dim"), (amount, "")],
        [(parts, "dim")],
    ]


def _short(rate: float) -> str:
    """Three digits, more or less."""
    return f"{rate:.0f}" if rate >= 99.95 else f"{rate:.1f}" if rate >= 9.995 else f"{rate:.2f}"


def _painted(line: Line, width: int, colour: bool) -> str:
    """The line as it goes to a terminal."""
    if line_width(line) > width:
        line = [(set_cell_size("".join(text for text, _ in line), width), "")]
    if not colour:
        return "".join(text for text, _ in line)
    return "".join(f"\x1b[{_CODES[style]}m{text}\x1b[m" if style else text for text, style in line)
