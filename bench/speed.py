"""How fast a model runs: the same prompt, then the same tokens one by one, timed."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import q4run
from q4run.bench.figures import Figures
from q4run.bench.llama_cpp_speed import difference, disk_bytes
from q4run.errors import Error
from q4run.gguf_file import open_gguf
from q4run.summary import EXPERTS, summarize

if TYPE_CHECKING:
    from q4run.model import Model, Stats


def choose_tokens(path: Path, n_prompt: int, n_decode: int) -> tuple[list[int], list[int]]:
    """A prompt and its continuation: a walk over the file's vocabulary, the same every time."""
    n_vocab = max(1, open_gguf(path).array_length("tokenizer.ggml.tokens"))
    ids = [(7 + 31 * i) % n_vocab for i in range(n_prompt + n_decode)]
    return ids[:n_prompt], ids[n_prompt:]


def measure(
    model: Model,
    prompt: Sequence[int],
    continuation: Sequence[int],
    *,
    runs: int = 1,
    warm_up: bool = True,
) -> list[Figures]:
    """Runs ``prompt`` in batches and then ``continuation`` token by token, as often as asked.

    The model must be freshly loaded, and its context hold both. With ``warm_up`` all of it first
    runs once more, of which only ``first_token_s`` tells: what the very first prompt took.
    ``experts`` tells of decoding alone; its ``read_gb_s`` is what was read over all the time that
    decoding took. ``read_limit_ratio`` is left to whoever knows the limit.
    """
    n_bytes = weight_bytes_per_token(model.path)
    first_token_s = _run(model, prompt, continuation)[0] if warm_up else None
    measured = []
    for _ in range(runs):
        prompt_s, decode_s, stats, read = _run(model, prompt, continuation)
        first_token_s = first_token_s or prompt_s
        figures: Figures = {
            "model": str(model.path),
            "threads": model.threads,
            "io": model.io,
            "ram_budget": model.plan.budget,
            "prefill": {
                "tokens": len(prompt),
                "tok_s": len(prompt) / prompt_s,
                "disk_bytes": read[0],
            },
            "decode": {
                "tokens": len(continuation),
                "tok_s": len(continuation) / decode_s,
                "bytes_per_token": n_bytes,
                "read_limit_ratio": None,
                "disk_bytes": read[1],
            },
            "load_s": model.load_s,
            "first_token_s": first_token_s,
            "peak_rss": stats.peak_rss,
            "experts": {
                "hit_rate": stats.hit_rate,
                "bytes_read": stats.bytes_read,
                "read_gb_s": stats.bytes_read / decode_s / 1e9,
                "wait_s": stats.wait_s,
            },
        }
        measured.append(figures)
    return measured


def _run(
    model: Model, prompt: Sequence[int], continuation: Sequence[int]
) -> tuple[float, float, Stats, tuple[int | None, int | None]]:
    """Seconds that the prompt and decoding took, what the model did in the latter, and the bytes
    that came from disk in each."""
    model.session.clear()
    read_before = disk_bytes()
    started = time.perf_counter()
    model.session.feed(prompt)
    prompt_s = time.perf_counter() - started
    before, read_between = model.stats, disk_bytes()
    started = time.perf_counter()
    for token in continuation:
        model.session.step(token)
    decode_s = time.perf_counter() - started
    read = difference(read_before, read_between), difference(read_between, disk_bytes())
    return prompt_s, decode_s, model.stats - before, read


def weight_bytes_per_token(path: Path) -> int | None:
    """Bytes of weights that a decoded token is multiplied with, wherever they come from.

    All but the embedding table, of which it takes one row (all of it where it is the output too),
    and of the routed experts those used. None where the file does not say how many that is.
    """
    summary = summarize(open_gguf(path))
    by_class = {label: figures["bytes"] for label, figures in summary["classes"].items()}
    n_bytes: int = summary["bytes"]
    if "output" in by_class:
        n_bytes -= by_class.get("embedding", 0)
    if experts := summary["experts"]:
        if experts["used"] is None:
            return None
        unused = experts["count"] - experts["used"]
        n_bytes -= by_class.get(EXPERTS, 0) * unused // experts["count"]
    return n_bytes


def main() -> None:
    """One run in a process of its own: a request (``compare.Request``) in, its figures out."""
    request = json.load(sys.stdin)
    prompt, continuation = request["prompt"], request["continuation"]
    try:
        with q4run.load(
            request["model"],
            ram_budget=request["ram_budget"],
            threads=request["threads"],
            io=request["io"],
            cache=request["cache"],
            context=request["context"],
            kv_type=request["kv_type"],
        ) as model:
            (figures,) = measure(model, prompt, continuation, warm_up=request["warm_up"])
    except (Error, OSError) as error:
        figures = {"error": str(error)}
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
