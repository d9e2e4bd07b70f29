"""The documents that show figures, and what their blocks are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from q4run.bench.figures.stored import Results
from q4run.bench.pages.plan_page import check_block, machines_block, summary_block
from q4run.bench.pages.readme_figures import (
    allowance_block,
    conversion_block,
    correctness_block,
    first_start_block,
    scout_block,
    speed_block,
)
from q4run.bench.pages.readme_quality import quality_block
from q4run.bench.pages.readme_streaming import streaming_block
from q4run.bench.pages.readme_table import table_block

# By name: paragraphs and tables in Markdown.
Blocks = Mapping[str, Callable[[Results], list[str]]]

DOCUMENTS: dict[str, Blocks] = {
    "README.md": {"first start": first_start_block, "speed in brief": table_block},
    "docs/measured.md": {
        "speed": speed_block,
        "streaming": streaming_block,
        "scout": scout_block,
        "plan": summary_block,
        "quality": quality_block,
        "conversion": conversion_block,
        "correctness": correctness_block,
    },
    "docs/streaming.md": {"allowance": allowance_block},
    "docs/llama-4.md": {"machines": machines_block},
    "docs/benchmarks.md": {"plan": check_block},
}
