"""The heat map of experts: what stands where, and that it fits."""

import pytest
from rich.cells import cell_len

from q4run.cli.heat_map import LayerUse, heat_map


def lines(layers: list[LayerUse], width: int = 80) -> list[str]:
    return heat_map(layers, width, colour=False).plain.split("\n")


def cells(line: str) -> str:
    """A row without the layer's number."""
    return line[6:]


@pytest.mark.parametrize("colour", [False, True])
@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("n_experts", [16, 64, 128])
def test_the_map_fits_and_shows_every_expert(n_experts, width, colour):
    layers = [LayerUse(i, [e % 7 for e in range(n_experts)], range(8)) for i in range(48)]
    text = heat_map(layers, width, colour=colour)
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
    text = heat_map([LayerUse(0, [0, 9, 0, 9], {0, 1})], 80, colour=True)
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
    assert heat_map([], 80, colour=False).plain == ""
    assert heat_map([LayerUse(0, [], set())], 80, colour=True).plain == ""


@pytest.mark.parametrize("width", [0, 1, 20, 53])
def test_narrow_terminals(width):
    drawn = lines([LayerUse(0, [1] * 128, set())], width)
    assert len(cells(drawn[1])) <= max(8, width - 6)
    assert len(drawn) == 4
