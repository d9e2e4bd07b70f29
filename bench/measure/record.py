"""Which experts a model uses on a text, token by token: a trace for ``q4run.bench.measure.cache``.

    python -m q4run.bench.measure.record MODEL.gguf TEXT OUT [--tokens N] [--threads N]

The text is a model's own, with its special tokens written out; wherever its token for the beginning
stands, a new context begins. OUT is a trace as of ``q4run run --trace`` or, where its name ends in
.npy, a NumPy array (layers, tokens), for models that use one expert a token: a fifth of the size.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np

import q4run
from q4run.bench.figures.arguments import count
from q4run.bench.models.traces import read_trace
from q4run.errors import Error
from q4run.terminal import describe
from q4run.text.files import read_text


def record(
    model_path: Path,
    text: str,
    out: Path,
    n_tokens: int | None = None,
    threads: int | None = None,
) -> None:
    """Runs the first ``n_tokens`` of a text (None: all) and writes the trace.

    Raises Error where nothing is to be run, a part of the text is longer than the context, or a
    token uses more experts than an array can hold.
    """
    if out.suffix != ".npy":
        _run(model_path, text, out, n_tokens, threads)
        return
    with tempfile.TemporaryDirectory() as folder:
        lines = Path(folder) / "trace"
        _run(model_path, text, lines, n_tokens, threads)
        trace = read_trace(lines)
    if set(trace.n_used) != {1}:
        raise Error(f"{out}: an array holds one expert a token and layer; give a name without .npy")
    experts = np.array([[chosen for (chosen,) in one.experts] for one in trace.passes])
    with open(out, "wb") as file:
        np.save(file, experts.T.astype(np.uint8 if max(trace.n_expert) <= 256 else np.uint16))


def _run(model_path: Path, text: str, out: Path, n_tokens: int | None, threads: int | None) -> None:
    with q4run.load(model_path, threads=threads, trace=out) as model:
        ids = model.tokenize(text, add_bos=False, special=True)[:n_tokens]
        if not ids:
            raise Error("the text is empty: there is nothing to record")
        begins = [i for i, token in enumerate(ids) if token == model.tokenizer.bos_id]
        for begin, end in pairwise(sorted({0, *begins, len(ids)})):
            model.session.clear()
            for token in ids[begin:end]:
                model.session.step(token)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m q4run.bench.measure.record",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", type=Path, metavar="MODEL.gguf")
    parser.add_argument("text", type=Path, metavar="TEXT")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--tokens", type=count, metavar="N", help="only the first of the text")
    parser.add_argument("--threads", type=count, metavar="N")
    arguments = parser.parse_args(words)
    try:
        text = read_text(arguments.text)
        record(arguments.model, text, arguments.out, arguments.tokens, arguments.threads)
    except (Error, OSError) as error:
        sys.exit(f"error: {describe(error)}")


if __name__ == "__main__":
    main()
