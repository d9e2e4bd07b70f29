"""Hugging Face checkpoint -> GGUF.

The way data flows: `checkpoint` opens the folder, `families` says what its tensors become,
`recipe` chooses their types, `vocabulary` adds the tokenizer, `layout` computes every file's bytes
and offsets, `stream` reads and quantises block by block, `writer` puts it on disk (`outputs` and
`journal`: what of it stays when it is interrupted). `pipeline` is the order they run in.
"""

from q4run.convert.pipeline import convert
from q4run.convert.summary import Summary, TypeCount

__all__ = ["Summary", "TypeCount", "convert"]
