"""A heat map for the terminal: a row for each layer with experts, a column for each expert.

Of every expert it shows how often it was used and whether it is in RAM. Where the experts are more
than the columns, neighbours share one.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from rich.text import Text

# In a terminal the colour says how often, the height whether in RAM. In plain text, where there is
# no colour, shades are in RAM and thin characters are not. Unused first, then less to more.
_PLAIN = {True: "o░▒▓█", False: ".-+x#"}
_HEIGHTS = {True: "█", False: "▂"}
_COLOURS = ("grey30", "blue", "cyan", "yellow", "red")
_N_LEVELS = len(_COLOURS) - 1
_WIDEST_CELL = 2
_LEAST_CELLS = 8  # in a terminal narrower than this takes, lines are longer than it


@dataclass(frozen=True)
class LayerUse:
    """How often each of a layer's experts was used, and the numbers of those in RAM."""

    layer: int
    counts: Sequence[int]
    in_ram: Collection[int]


def heat_map(layers: Sequence[LayerUse], width: int, *, colour: bool) -> Text:
    """The map with its legend, in lines of at most ``width`` columns; empty without layers.

    Levels are quarters of what the most used cell has. A cell of several experts has the sum of
    their uses, and counts as in RAM where at least half of them are.
    """
    n_experts = max((len(layer.counts) for layer in layers), default=0)
    if not n_experts:
        return Text()
    label_width = max(len("layer"), *(len(str(layer.layer)) for layer in layers))
    room = max(width - label_width - 1, _LEAST_CELLS)
    n_together = -(-n_experts // room)
    n_cells = -(-n_experts // n_together)
    cell_width = max(1, min(_WIDEST_CELL, room // n_cells))
    rows = [_cells(layer, n_together) for layer in layers]
    most = max(count for row in rows for count, _ in row)
    lines = [_heading(n_experts, n_together, label_width)]
    for layer, row in zip(layers, rows, strict=True):
        line = Text(f"{layer.layer:>{label_width}} ")
        for count, in_ram in row:
            line.append_text(_cell(_level(count, most), in_ram, cell_width, colour))
        lines.append(line)
    return Text("\n").join([*lines, *_legend(most, colour)])


def _cells(layer: LayerUse, n_together: int) -> list[tuple[int, bool]]:
    """For every cell of a row its uses, and whether it counts as in RAM."""
    cells = []
    for first in range(0, len(layer.counts), n_together):
        counts = layer.counts[first : first + n_together]
        n_in_ram = sum(first + index in layer.in_ram for index in range(len(counts)))
        cells.append((sum(counts), 2 * n_in_ram >= len(counts)))
    return cells


def _level(count: int, most: int) -> int:
    """0 for unused, 1 to ``_N_LEVELS`` for what share of the most it is."""
    return -(-count * _N_LEVELS // most) if most else 0


def _cell(level: int, in_ram: bool, width: int, colour: bool) -> Text:
    if colour:
        return Text(_HEIGHTS[in_ram] * width, style=_COLOURS[level])
    return Text(_PLAIN[in_ram][level] * width)


def _heading(n_experts: int, n_together: int, label_width: int) -> Text:
    together = f", {n_together} in a column" if n_together > 1 else ""
    return Text(f"{'layer':>{label_width}} experts 0 to {n_experts - 1}{together}")


def _legend(most: int, colour: bool) -> list[Text]:
    lines = []
    for in_ram, place in ((True, "in RAM"), (False, "on disk")):
        line = Text(f"{place}: ")
        line.append_text(_cell(0, in_ram, 1, colour)).append(" unused")
        if most:
            line.append(", used ")
            for level in range(1, _N_LEVELS + 1):
                line.append_text(_cell(level, in_ram, 1, colour))
        lines.append(line)
    if most:
        lines[0].append(f" (up to {most} times)")
    return lines
