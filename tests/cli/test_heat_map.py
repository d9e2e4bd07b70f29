"""The heat map of experts: what stands where, and that it fits."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import pytest
from rich.cells import cell_len

from q4run.cli.heat_map import compact_map, heat_map, joined, line_width
from q4run.experts.use import ExpertUse


class LayerUse(NamedTuple):
    """A layer's number, how often each of its experts was used, and those in RAM."""

    layer: int
    counts: Sequence[int]
    in_ram: Collection[int]


def made(layers: list[LayerUse]) -> ExpertUse:
    longest = max((len(use.counts) for use in layers), default=0)
    counts = np.full((len(layers), longest), -1, np.int64)
    in_ram = np.zeros((len(layers), longest), bool)
    for row, use in enumerate(layers):
        counts[row, : len(use.counts)] = use.counts
        in_ram[row, list(use.in_ram)] = True
    return ExpertUse([use.layer for use in layers], counts, in_ram)


def lines(layers: list[LayerUse], width: int = 80) -> list[str]:
    return heat_map(made(layers), width, colour=False).plain.split("\n")


def compact(layers: list[LayerUse], width: int, height: int, colour: bool = False) -> list[str]:
    drawn = compact_map(made(layers), width, height, colour=colour)
    assert len(drawn) <= height
    assert all(line_width(line) <= width for line in drawn)
    return ["".join(text for text, _ in line) for line in drawn]


def cells(line: str) -> str:
    """A row without the layer's number."""
    return line[6:]


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("n_experts", [16, 64, 128])
def test_the_map_fits_and_shows_every_expert(n_experts, width, colour):
    layers = [LayerUse(i, [e % 7 for e in range(n_experts)], range(8)) for i in range(48)]
    text = heat_map(made(layers), width, colour=colour)
    drawn = text.plain.split("\n")
    assert len(drawn) == 1 + 48 + 2
    assert max(map(cell_len, drawn)) <= width
    together = -(-n_experts // (width - 6))
    assert len(cells(drawn[1])) == {16: 32, 64: 64, 128: 64}[n_experts]
    assert ("in a column" in drawn[0]) == (together > 1)
    assert bool(text.spans) == colour


def test_shades_are_in_ram_and_thin_characters_are_not():
    counts = [0, 1, 2, 3, 4, 0, 1, 2, 3, 4]
    drawn = lines([LayerUse(3, counts, {0, 1, 2, 3, 4})])
    assert drawn == [
        "layer experts 0 to 9",
        "    3 oo░░▒▒▓▓██..--++xx##",
        "in RAM: o unused, used ░▒▓█ (up to 4 times)",
        "on disk: . unused, used -+x#",
    ]


def test_in_a_terminal_colours_say_how_often_and_heights_where():
    text = heat_map(made([LayerUse(0, [0, 9, 0, 9], {0, 1})]), 80, colour=True)
    row = text.plain.split("\n")[1]
    assert cells(row) == "████▂▂▂▂"
    begin = text.plain.index(row) + 6
    styles = {span.start - begin: span.style for span in text.spans if span.start >= begin}
    assert [styles[at] for at in (0, 2, 4, 6)] == ["grey30", "red", "grey30", "red"]


def test_neighbours_that_share_a_column_add_up():
    counts = [1, 1] + [0] * 124 + [0, 8]
    drawn = lines([LayerUse(0, counts, {2, 4, 5})])
    row = cells(drawn[1])
    assert drawn[0] == "layer experts 0 to 127, 2 in a column"
    assert len(row) == 64
    # 2 uses of 8 on disk; half in RAM, and both, unused; 8 uses on disk
    assert (row[0], row[1], row[2], row[3], row[63]) == ("-", "o", "o", ".", "#")


def test_layers_may_have_different_numbers_of_experts():
    drawn = lines([LayerUse(1, [1] * 16, set()), LayerUse(110, [1] * 5, {4})])
    assert cells(drawn[1]) == "#" * 32
    assert cells(drawn[2]) == "#" * 8 + "██"


def test_a_use_never_looks_like_none():
    drawn = lines([LayerUse(0, [1, 10**12], set())])
    assert cells(drawn[1]) == "--##"


def test_nothing_used_and_nothing_there():
    drawn = lines([LayerUse(0, [0, 0], {1})])
    assert cells(drawn[1]) == "..oo"
    assert drawn[2:] == ["in RAM: o unused", "on disk: . unused"]
    assert heat_map(made([]), 80, colour=False).plain == ""
    assert heat_map(made([LayerUse(0, [], set())]), 80, colour=True).plain == ""


@pytest.mark.parametrize("width", [0, 1, 20, 53])
def test_narrow_terminals(width):
    drawn = lines([LayerUse(0, [1] * 128, set())], width)
    assert len(cells(drawn[1])) <= max(8, width - 6)
    assert len(drawn) == 4


# The compact map


def experts(n_layers: int, n_experts: int, step: int = 1) -> list[LayerUse]:
    counts = [e % 7 for e in range(n_experts)]
    return [LayerUse(i * step, counts, range(n_experts // 3)) for i in range(n_layers)]


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("height", [2, 3, 5, 10, 30])
@pytest.mark.parametrize("width", [39, 79, 119])
@pytest.mark.parametrize(("n_layers", "n_experts"), [(1, 2), (6, 16), (48, 16), (24, 128), (3, 5)])
def test_a_compact_map_fits_and_has_a_legend(n_layers, n_experts, width, height, colour):
    drawn = compact(experts(n_layers, n_experts), width, height, colour)
    assert len(drawn) >= 2
    assert "in RAM" in drawn[-1]


def test_layers_stand_side_by_side_where_rows_are_few():
    drawn = compact(experts(6, 16), 79, 4)
    assert [line.split()[::2] for line in drawn[:-1]] == [["0", "3"], ["1", "4"], ["2", "5"]]
    assert drawn[0].index("3 ") == 1 + 1 + 32 + 1
    assert "cell" not in drawn[-1]


def test_scouts_layers_all_have_a_row_in_a_large_terminal_and_share_them_in_a_small_one():
    assert len(compact(experts(48, 16), 119, 10)) == 8 + 1
    small = compact(experts(48, 16), 79, 5)
    assert len(small) == 5
    assert "cell: 3 layers × 1 expert · " in small[-1]


def test_labels_are_the_numbers_of_the_layers():
    drawn = compact(experts(24, 128, step=2), 79, 7)
    assert [int(line.split()[0]) for line in drawn[:-1]] == [0, 8, 16, 24, 32, 40]
    assert drawn[-1] == (
        "in RAM o░▒▓█ · on disk .-+x# · cell: 4 layers × 2 experts · unused to most used"
    )


def test_cells_add_up_over_layers_and_experts():
    layers = [LayerUse(i, [0] * 128, set()) for i in range(4)]
    layers[0] = LayerUse(0, [1, 0, 5, *[0] * 125], {0, 1})
    layers[1] = LayerUse(1, [1, 0, 3, *[0] * 125], {2})
    row = compact(layers, 68, 3)[0].split(" ", 1)[1]
    # 2 uses of 8, two of four in RAM; 8 uses, one of four in RAM; unused on disk
    assert row == "░#" + "." * 62


def test_no_room_and_no_experts_are_no_map():
    assert compact(experts(6, 16), 79, 1) == []
    assert compact(experts(6, 16), 9, 5) == []
    assert compact([], 79, 8) == []


def test_shorter_layers_keep_the_blocks_in_line():
    drawn = compact([LayerUse(0, [1] * 5, set()), *experts(4, 16)[1:]], 79, 3)
    assert drawn[0].startswith("0 " + "-" * 10 + " " * 22 + " 2 ")
    assert drawn[1].index(" 3 ") == drawn[0].index(" 2 ")


def test_use_since_an_earlier_moment():
    earlier, later = made([LayerUse(0, [1, 2], {0})]), made([LayerUse(0, [4, 2], {1})])
    use = later.since(earlier)
    assert use.counts.tolist() == [[3, 0]]
    assert use.in_ram.tolist() == [[False, True]]
    uneven = made([LayerUse(0, [4, 2], {1}), LayerUse(1, [3], set())])
    assert uneven.since(uneven).counts.tolist() == [[0, 0], [0, -1]]


def test_what_does_not_fit_is_left_out_with_all_after_it():
    facts = [[("one", "")], [("three", "bold")], [("x", "")]]
    assert joined(facts, 80) == [
        ("one", ""),
        (" · ", "dim"),
        ("three", "bold"),
        (" · ", "dim"),
        ("x", ""),
    ]
    assert joined(facts, 10) == [("one", "")]
    assert joined(facts, 2) == []
