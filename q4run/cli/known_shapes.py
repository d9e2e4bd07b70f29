"""The known shapes by name, and what ``q4run plan`` says of one beside the plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from q4run.errors import Error
from q4run.sizes import format_size

if TYPE_CHECKING:
    from q4run.convert.preview import ExpertReads
    from q4run.models.shapes import Geometry

# The names in q4run.models.published, which takes too long to import for --help.
NAMES = (
    "scout", "maverick", "behemoth", "mixtral", "small-scout", "qwen3-30b-a3b", "qwen3-235b-a22b",
    "qwen3-coder-480b-a35b", "qwen1.5-moe-a2.7b", "qwen2-57b-a14b", "gpt-oss-20b", "gpt-oss-120b",
    "glm-4.5-air", "glm-4.5", "minimax-m2", "olmoe-1b-7b", "dots1", "hunyuan-a13b", "hy3",
    "ernie-4.5-21b-a3b", "ling-mini-2.0", "ling-flash-2.0", "granite-3.1-1b-a400m",
)  # fmt: skip
# For these a shape tells what a token reads: four bits, and ternary.
_TYPES = ("q4_0", "tq2_0")


@dataclass(frozen=True)
class ShapeFacts:
    """What is said of a known shape; nothing of another model.

    ``reads``: what a token reads of experts, by the type asked for; ``missing``: the
    architecture, where q4run does not run it yet.
    """

    note: str = ""
    reads: Mapping[str, ExpertReads] = field(default_factory=dict)
    missing: str = ""

    def lines(self) -> Iterator[str]:
        """Yields a sentence or more each."""
        if self.reads:
            told = ", ".join(_told(name, reads) for name, reads in self.reads.items())
            yield f"Of its experts a token reads {told}, as long as none is in RAM."
        if self.missing:
            yield f"q4run cannot run {self.missing} models yet: this is what one would take."
        if self.note:
            yield self.note


def _told(name: str, reads: ExpertReads) -> str:
    others = [other for other in reads.types if other != name]
    instead = f" ({' and '.join(others)} where rows are not whole blocks)" if others else ""
    return f"{format_size(reads.n_bytes)} at {name}{instead}"


def geometry_named(name: str) -> Geometry:
    """Returns a known shape; Error where there is none of that name."""
    from q4run.models.published import GEOMETRIES

    if name not in GEOMETRIES:
        raise Error(f"there is no geometry '{name}'; choose {', '.join(GEOMETRIES)}")
    return GEOMETRIES[name]


def facts_of(name: str | None) -> ShapeFacts:
    """Returns what is said of the shape of that name."""
    if name is None:
        return ShapeFacts()
    from q4run.convert.preview import expert_reads
    from q4run.convert.types.recipe import make_recipe
    from q4run.models import FAMILIES

    geometry = geometry_named(name)
    reads = {
        type_name: expert_reads(geometry, make_recipe(type_name, None, None, ()))
        for type_name in _TYPES
    }
    runs = geometry.architecture in FAMILIES
    return ShapeFacts(geometry.note, reads, "" if runs else geometry.architecture)
