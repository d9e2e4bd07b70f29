"""docs/families.md names every family and every class that is converted, and no other."""

import re
from pathlib import Path

from q4run.convert.families import FAMILIES as CONVERTED
from q4run.models import FAMILIES

ROWS = [
    line.split("|")[1:4]
    for line in (Path(__file__).parents[2] / "docs" / "families.md").read_text().splitlines()
    if line.startswith("| `")
]


def named(column: int) -> set[str]:
    """What a column has between backticks."""
    return {name for row in ROWS for name in re.findall(r"`([^`]+)`", row[column])}


def test_every_family_is_listed():
    assert named(0) == set(FAMILIES)


def test_every_converted_class_is_listed():
    assert named(2) == set(CONVERTED)
