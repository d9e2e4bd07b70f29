"""Hugging Face checkpoint, or another GGUF -> GGUF.

The way data flows: `source` opens what is converted (a folder with `checkpoint`, of which
`families` says what its tensors become; a file with `gguf_source`), `recipe` or `fit` chooses their
types, `importance` weighs their columns, `vocabulary` adds the tokenizer, `layout` computes every
file's bytes and offsets, `stream` reads and quantises block by block, `writer` puts it on disk
(`outputs` and `journal`: what of it stays when it is interrupted). `pipeline` is the order they run
in, `preview` what would come of it. `calibration` is what a model does with a text: importance
matrices come from there.
"""

from q4run.convert.pipeline import convert
from q4run.convert.summary import Summary, TypeCount

__all__ = ["Summary", "TypeCount", "convert"]
