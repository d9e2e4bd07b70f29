"""Hugging Face checkpoint, or another GGUF -> GGUF.

The way data flows: `source` opens what is converted (a folder with `checkpoint`, of which
`families` says what its tensors become; a file with `gguf_source`), `recipe` or `fit` chooses their
types, `importance` weighs their columns, `vocabulary` adds the tokenizer, `layout` computes every
file's bytes and offsets, `stream` reads and quantises block by block, `writer` puts it on disk
(`outputs` and `journal`: what of it stays when it is interrupted). `options` checks what is asked
for. `plan` is the first half, up to the layout: a dry run and `preview` end there; `pipeline` goes
on and writes. `notes` and `summary` say what came of it. `calibration` is what a model does with a
text: importance matrices come from there.
"""

from q4run.convert.options import ConversionOptions
from q4run.convert.pipeline import convert, write
from q4run.convert.plan import ConversionPlan, plan_conversion
from q4run.convert.summary import Summary, TypeCount, summarize

__all__ = [
    "ConversionOptions",
    "ConversionPlan",
    "Summary",
    "TypeCount",
    "convert",
    "plan_conversion",
    "summarize",
    "write",
]
