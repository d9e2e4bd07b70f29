"""A heat map for the terminal: how often each expert of each layer was used, and where it is.

Whole, a row for each layer and a column for each expert; compact, as large as there is room for.
Where there are more of them than rows and columns, neighbours share a cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from rich.cells import cell_len
from rich.text import Text

from q4run.experts.use import ExpertUse, expert_use
from q4run.terminal import has_colours, note, stderr_console

if TYPE_CHECKING:
    from q4run.model import Model

# Pieces of a line: a text and its style, in rich's words.
Line = list[tuple[str, str]]

# In a terminal the colour says how often, the height whether in RAM. In plain text, where there is
# no colour, shades are in RAM and thin characters are not. Unused first, then less to more.
_PLAIN = {True: "o░▒▓█", False: ".-+x#"}
_HEIGHTS = {True: "█", False: "▂"}
_COLOURS = ("grey30", "blue", "cyan", "yellow", "red")
_N_LEVELS = len(_COLOURS) - 1
_WIDEST_CELL = 2
_LEAST_CELLS = 8  # in a terminal narrower than this takes, lines are longer than it
# What a person wants to see of a terminal beside a map: figures, a prompt, some text.
_LINES_BESIDE_MAP = 6


def show_experts(model: Model) -> None:
    """The map of experts on standard error; in a terminal, no more of it than fits."""
    use = expert_use(model.store)
    if use is None:
        note(f"{model.path.name} has no experts to show.")
        return
    console = stderr_console()
    colour = has_colours(console)
    shown = heat_map(use, console.width, colour=colour)
    room = max(console.height - _LINES_BESIDE_MAP, 2)
    if console.is_terminal and shown.plain.count("\n") >= room:
        lines = compact_map(use, console.width, room, colour=colour)
        shown = Text("\n").join(Text.assemble(*line) for line in lines)
    console.print(shown, soft_wrap=True)


def heat_map(use: ExpertUse, width: int, *, colour: bool) -> Text:
    """The whole map with its legend, in lines of at most ``width`` columns; empty without experts.

    Levels are quarters of what the most used cell has. A cell of several experts has the sum of
    their uses, and counts as in RAM where at least half of them are.
    """
    if not use.counts.size:
        return Text()
    n_experts = use.counts.shape[1]
    label_width = max(len("layer"), *(len(str(layer)) for layer in use.layers))
    room = max(width - label_width - 1, _LEAST_CELLS)
    n_together = -(-n_experts // room)
    n_cells = -(-n_experts // n_together)
    cells = _cells(use, 1, n_together)
    cell_width = max(1, min(_WIDEST_CELL, room // n_cells))
    lines: list[Line] = [[_heading(n_experts, n_together, label_width)]]
    for layer, row in zip(use.layers, cells.codes, strict=True):
        lines.append([(f"{layer:>{label_width}} ", ""), *_row(row, cell_width, colour)])
    lines += _legend(cells.most, colour)
    return Text("\n").join(Text.assemble(*line) for line in lines)


def compact_map(use: ExpertUse, width: int, height: int, *, colour: bool) -> list[Line]:
    """The map in at most ``width`` columns and ``height`` lines, the last of them its legend;
    nothing where that is too little for any map.

    Layers stand in several blocks side by side where fewer then have to share a row.
    """
    if not use.counts.size or height < 2:
        return []
    label_width = max(len(str(layer)) for layer in use.layers)
    layout = _layout(use.counts.shape, label_width, width, height - 1)
    if layout is None:
        return []
    cells = _cells(use, layout.layers, layout.experts)
    n_cells = cells.codes.shape[1]
    cell_width = min(_WIDEST_CELL, layout.room // n_cells)
    labels = use.layers[:: layout.layers]
    n_rows = -(-len(labels) // layout.blocks)
    lines: list[Line] = []
    for first in range(n_rows):
        line: Line = []
        for row in range(first, len(labels), n_rows):
            line.append((f"{'' if row < n_rows else ' '}{labels[row]:>{label_width}} ", "dim"))
            line += _row(cells.codes[row], cell_width, colour, pad=row + n_rows < len(labels))
        lines.append(line)
    return [*lines, _short_legend(layout, width, colour)]


class _Layout(NamedTuple):
    """How many blocks there are side by side, with room for how many cells, and how many layers
    and experts a cell stands for."""

    blocks: int
    room: int
    layers: int
    experts: int


def _layout(shape: tuple[int, ...], label_width: int, width: int, height: int) -> _Layout | None:
    """That with the fewest layers and experts in a cell, then with the fewest blocks."""
    n_layers, n_experts = shape
    layouts = []
    for blocks in range(1, n_layers + 1):
        room = (width + 1) // blocks - label_width - 2
        if room < min(n_experts, _LEAST_CELLS):
            break
        layouts.append(
            _Layout(blocks, room, -(-n_layers // (blocks * height)), -(-n_experts // room))
        )
    return min(
        layouts, key=lambda found: (found.layers * found.experts, found.blocks), default=None
    )


# What a cell shows: its level, and more than the highest level where it is in RAM; or nothing.
_IN_RAM = _N_LEVELS + 1
_ABSENT = 2 * _IN_RAM


class _Cells(NamedTuple):
    """``codes`` of the cells, (rows, columns), and how often the most used one was used."""

    codes: np.ndarray
    most: int


def _cells(use: ExpertUse, n_layers: int, n_experts: int) -> _Cells:
    """Every so many layers and experts in a cell."""
    is_there = use.counts >= 0
    counts = _sums(np.maximum(use.counts, 0), n_layers, n_experts)
    n_there = _sums(is_there.astype(np.int64), n_layers, n_experts)
    n_in_ram = _sums((use.in_ram & is_there).astype(np.int64), n_layers, n_experts)
    most = int(counts.max())
    levels = -(-counts * _N_LEVELS // most) if most else counts
    codes = np.where(2 * n_in_ram >= n_there, levels + _IN_RAM, levels)
    return _Cells(np.where(n_there > 0, codes, _ABSENT), most)


def _sums(values: np.ndarray, n_rows: int, n_columns: int) -> np.ndarray:
    """The sums of rectangles of so many rows and columns, those at the end smaller."""
    for axis, step in enumerate((n_rows, n_columns)):
        if step > 1:
            values = np.add.reduceat(values, range(0, values.shape[axis], step), axis=axis)
    return values


def _row(codes: np.ndarray, cell_width: int, colour: bool, *, pad: bool = False) -> Line:
    """One row of cells; ``pad`` fills it where the last layers have fewer experts."""
    line: Line = []
    for code, cells in groupby(codes.tolist()):
        length = cell_width * len(list(cells))
        if code != _ABSENT:
            in_ram, level = divmod(code, _IN_RAM)
            line.append(_cell(level, bool(in_ram), length, colour))
        elif pad:
            line.append((" " * length, ""))
    return line


def _cell(level: int, in_ram: bool, width: int, colour: bool) -> tuple[str, str]:
    if colour:
        return _HEIGHTS[in_ram] * width, _COLOURS[level]
    return _PLAIN[in_ram][level] * width, ""


def _heading(n_experts: int, n_together: int, label_width: int) -> tuple[str, str]:
    together = f", {n_together} in a column" if n_together > 1 else ""
    return f"{'layer':>{label_width}} experts 0 to {n_experts - 1}{together}", ""


def _legend(most: int, colour: bool) -> list[Line]:
    lines: list[Line] = []
    for in_ram, place in ((True, "in RAM"), (False, "on disk")):
        line: Line = [(f"{place}: ", ""), _cell(0, in_ram, 1, colour), (" unused", "")]
        if most:
            line += [(", used ", ""), *_shades(in_ram, colour)]
        lines.append(line)
    if most:
        lines[0].append((f" (up to {most} times)", ""))
    return lines


def _shades(in_ram: bool, colour: bool) -> Line:
    return [_cell(level, in_ram, 1, colour) for level in range(1, _N_LEVELS + 1)]


def _short_legend(layout: _Layout, width: int, colour: bool) -> Line:
    """As much of the legend as fits on one line."""
    if colour:
        in_ram, on_disk = _cell(0, True, 1, True), _cell(0, False, 1, True)
        facts: list[Line] = [
            [in_ram, (" in RAM ", "dim"), on_disk, (" on disk", "dim")],
            [in_ram, (" unused ", "dim"), *_shades(True, True), (" used more", "dim")],
        ]
    else:
        facts = [
            [("in RAM ", ""), _cell(0, True, 1, False), *_shades(True, False)],
            [("on disk ", ""), _cell(0, False, 1, False), *_shades(False, False)],
            [("unused to most used", "")],
        ]
    if layout.layers * layout.experts > 1:
        shared = [_count(layout.layers, "layer"), _count(layout.experts, "expert")]
        facts.insert(-1, [("cell: " + " × ".join(shared), "dim")])
    return joined(facts, width)


def _count(number: int, what: str) -> str:
    return f"{number} {what}" + "s" * (number > 1)


def joined(facts: Sequence[Line], width: int) -> Line:
    """Facts on one line of at most ``width`` columns: those that do not fit any more are left out,
    with all after them."""
    line: Line = []
    for fact in facts:
        longer: Line = [*line, (" · ", "dim"), *fact] if line else fact
        if line_width(longer) > width:
            break
        line = longer
    return line


def line_width(line: Line) -> int:
    """The columns that a line takes."""
    return sum(cell_len(text) for text, _ in line)
