"""The documents that show figures, and what their blocks are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from q4run.bench.figures.stored import Results
from q4run.bench.pages import readme_figures
from q4run.bench.pages.plan_page import check_block, machines_block

# By name: paragraphs and tables in Markdown.
Blocks = Mapping[str, Callable[[Results], list[str]]]

DOCUMENTS: dict[str, Blocks] = {
    "README.md": readme_figures.BLOCKS,
    "docs/llama-4.md": {"machines": machines_block},
    "docs/benchmarks.md": {"plan": check_block},
}
