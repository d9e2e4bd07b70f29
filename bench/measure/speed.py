"""How fast a model runs: the same prompt, then the same tokens one by one, timed."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

import q4run
from q4run.bench.figures.figures import Figures
from q4run.bench.measure.disk_watch import DiskWatch
from q4run.bench.peer.llama_cpp_speed import difference, disk_bytes
from q4run.errors import Error
from q4run.generation import chat_defaults
from q4run.generation.completion import Completion
from q4run.generation.sampler import Sampler, SamplingParameters
from q4run.gguf_file import open_gguf
from q4run.inspection.model import summarize
from q4run.models.names import EXPERTS
from q4run.text.chat_template import PLAIN_STOP

if TYPE_CHECKING:
    from q4run.generation.stats import Stats
    from q4run.model import Model


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
    watch_disk: bool = True,
    load_disk_bytes: int | None = None,
) -> list[Figures]:
    """Runs ``prompt`` in batches and then ``continuation`` token by token, as often as asked.

    The model must be freshly loaded, and its context hold both. With ``warm_up`` all of it first
    runs once more, of which only ``first_token_s`` tells: what the very first prompt took. Without,
    the first run is a cold one. ``experts`` tells of decoding alone; its ``read_gb_s`` is what was
    read over all the time that decoding took. ``floor_bytes`` are those of the experts that had to
    come from disk: of a prompt in all, in decoding per token. ``as_chat_tok_s`` are the tokens a
    second, by the clock, that a conversation gets after its first: once more behind the same
    prompt, sampled as ``chat`` does by default, turned into text, and searched for a stop text;
    only of warm runs. ``read_limit_ratio`` and ``disk_share`` are left to whoever knows the limits.
    watch_disk: whether ``busy_share``, the disk's share in the waiting, is looked at, by a thread
    of its own. load_disk_bytes: what loading fetched from disk, if somebody looked;
    ``from_disk_share`` then tells how much of what loading and a cold run had to read came from
    disk, and not from the page cache.
    """
    n_bytes = weight_bytes_per_token(model.path)
    kept_bytes = kept_weight_bytes(model.path)
    nothing_waits = warm_up and model.plan.all_resident
    files = open_gguf(model.path).parts if watch_disk and not nothing_waits else ()
    with DiskWatch(files, lambda: model.store.is_waiting) as watch:
        phases = [_run(model, watch, prompt, continuation)]
        used_bytes = _used_bytes(model)
        phases += [_run(model, watch, prompt, continuation) for _ in range(warm_up + runs - 1)]
        as_chat = _chat_rate(model, prompt, len(continuation)) if len(phases) > 1 else None
    return [
        {
            "model": str(model.path),
            "threads": model.threads,
            "io": model.io,
            "ram_budget": model.plan.budget,
            "start": "warm" if i or warm_up else "cold",
            "from_disk_share": None
            if i or warm_up
            else _from_disk_share(kept_bytes, used_bytes, load_disk_bytes, prefill, decode),
            "prefill": {
                "tokens": len(prompt),
                "tok_s": len(prompt) / prefill.seconds,
                "disk_bytes": prefill.disk_bytes,
                "floor_bytes": _prompt_floor(model, len(prompt), prefill),
                "once_per_chunk_bytes": _n_chunks(model, len(prompt)) * _expert_bytes(model),
                "wait_s": prefill.stats.wait_s,
                "busy_share": prefill.busy_share,
            },
            "decode": {
                "tokens": len(continuation),
                "tok_s": len(continuation) / decode.seconds,
                "bytes_per_token": n_bytes,
                "as_chat_tok_s": as_chat if i or warm_up else None,
                "read_limit_ratio": None,
                "disk_bytes": decode.disk_bytes,
                "floor_bytes": _token_floor(model, decode.stats.hit_rate),
                "disk_share": None,
                "busy_share": decode.busy_share,
            },
            "load_s": model.load_s,
            "first_token_s": phases[0][0].seconds,
            "peak_rss": decode.stats.peak_rss,
            "experts": {
                "count": model.plan.n_experts,
                "slots": model.plan.n_slots,
                "hit_rate": decode.stats.hit_rate,
                "bytes_read": decode.stats.bytes_read,
                "requests": decode.stats.requests,
                "read_gb_s": decode.stats.bytes_read / decode.seconds / 1e9,
                "wait_s": decode.stats.wait_s,
            },
        }
        for i, (prefill, decode) in enumerate(phases[warm_up:])
    ]


@dataclass(frozen=True)
class _Phase:
    """A prompt, or the decoding after it: what it took, and what was in RAM when it began."""

    seconds: float
    stats: Stats
    disk_bytes: int | None
    busy_share: float | None
    n_resident: int


def _run(
    model: Model, watch: DiskWatch, prompt: Sequence[int], continuation: Sequence[int]
) -> tuple[_Phase, _Phase]:
    def decode() -> None:
        for token in continuation:
            model.session.step(token)

    model.session.clear()
    return (
        _timed(model, watch, lambda: model.session.feed(prompt)),
        _timed(model, watch, decode),
    )


def _chat_rate(model: Model, prompt: Sequence[int], n_tokens: int) -> float | None:
    """Tokens per second behind ``prompt`` by the clock, all but showing them on a screen included;
    None for one token. Tokens that end an answer do not."""
    marks = model.template.marks if model.template else None
    parameters = SamplingParameters(
        temperature=chat_defaults.TEMPERATURE,
        top_p=chat_defaults.TOP_P,
        min_p=chat_defaults.MIN_P,
        seed=0,
    )
    completion = Completion(
        model.session,
        model.tokenizer,
        prompt,
        Sampler(parameters),
        n_tokens,
        PLAIN_STOP,
        marks,
        ignore_eos=True,
    )
    for _ in completion.parts():
        pass
    return completion.rate


def _timed(model: Model, watch: DiskWatch, work: Callable[[], object]) -> _Phase:
    n_resident = int(np.count_nonzero(model.store.slots.addresses))
    stats, read, looks = model.stats, disk_bytes(), watch.looks
    started = time.perf_counter()
    work()
    seconds = time.perf_counter() - started
    return _Phase(
        seconds,
        model.stats - stats,
        difference(read, disk_bytes()),
        watch.looks.share_since(looks),
        n_resident,
    )


def _from_disk_share(
    kept_bytes: int, used_bytes: int, load_disk_bytes: int | None, *phases: _Phase
) -> float | None:
    """By the kernel's count, of all that a process must have read so far: the weights that stay in
    RAM, and once each expert that it used."""
    counts = [phase.disk_bytes for phase in phases]
    known = [n_bytes for n_bytes in counts if n_bytes is not None]
    if load_disk_bytes is None or len(known) < len(counts):
        return None
    # Reading ahead, the kernel fetches experts while the rest is loaded; so the share of loading
    # alone cannot tell of them, and that of all of it not of experts that were read twice.
    of_loading = load_disk_bytes / kept_bytes
    of_all = (load_disk_bytes + sum(known)) / (kept_bytes + used_bytes)
    return min(1.0, of_loading, of_all)


def _used_bytes(model: Model) -> int:
    """What the experts used so far take in the file."""
    matrices_of = model.store.layout.layers
    return sum(
        sum(count > 0 for count in counts) * sum(matrix.n_bytes for matrix in matrices_of[layer])
        for layer, counts in model.store.uses.items()
    )


def _expert_bytes(model: Model) -> int:
    """What all experts take in the file."""
    return model.store.layout.n_bytes


def _n_chunks(model: Model, n_tokens: int) -> int:
    return -(-n_tokens // model.plan.batch_for(n_tokens))


def _prompt_floor(model: Model, n_tokens: int, prompt: _Phase) -> int | None:
    """Bytes that no cache can spare a prompt: of the experts that its first chunk wants, those that
    are not in RAM, and of each later chunk's those that cannot have stayed there."""
    if not model.plan.n_experts:
        return None
    in_ram = prompt.n_resident + (_n_chunks(model, n_tokens) - 1) * model.plan.n_slots
    missing = max(0, prompt.stats.hits + prompt.stats.misses - in_ram)
    return missing * _expert_bytes(model) // model.plan.n_experts


def _token_floor(model: Model, hit_rate: float | None) -> float | None:
    """Bytes per token that a hit rate leaves to be read: of the experts that a token wants."""
    if hit_rate is None:
        return None
    routed = sum(
        model.config.experts[i].n_expert_used * sum(matrix.n_bytes for matrix in matrices)
        for i, matrices in model.store.layout.layers.items()
    )
    return (1 - hit_rate) * routed


def weight_bytes_per_token(path: Path) -> int | None:
    """Bytes of weights that a decoded token is multiplied with, wherever they come from: those that
    stay in RAM and, of the routed experts, those used. None where the file does not say how many
    that is."""
    summary = summarize(open_gguf(path))
    routed = 0
    if experts := summary["experts"]:
        if experts["used"] is None:
            return None
        n_bytes = summary["classes"].get(EXPERTS, {"bytes": 0})["bytes"]
        routed = n_bytes - n_bytes * (experts["count"] - experts["used"]) // experts["count"]
    return kept_weight_bytes(path) + routed


def kept_weight_bytes(path: Path) -> int:
    """Bytes in the file of the weights that are loaded and stay: all but the routed experts and the
    embedding table, of which a token takes one row (all of it where it is the output too)."""
    summary = summarize(open_gguf(path))
    by_class = {label: figures["bytes"] for label, figures in summary["classes"].items()}
    n_bytes: int = summary["bytes"] - by_class.get(EXPERTS, 0)
    return n_bytes - by_class.get("embedding", 0) if "output" in by_class else n_bytes


def what_to_know(model: Model) -> list[str]:
    """What a person should be told of a loaded model; grows when memory becomes short."""
    notes = list(model.notes)
    if model.plan.n_experts and not model.plan.all_resident:
        notes.insert(0, f"Experts are read by {model.io}: {model.io_reason}.")
    planned = model.plan.n_slots
    model.tell_of_slots(
        lambda n_slots: notes.append(f"Memory was short: room for {n_slots} of {planned} experts.")
    )
    return notes


def main() -> None:
    """Runs in a process of its own: a request (``compare.Request``) in, out a list of the figures
    of each pass, or an error, as a line of JSON."""
    request = json.load(sys.stdin)
    printed: object
    try:
        read = disk_bytes()
        with q4run.load(
            request["model"],
            ram_budget=request["ram_budget"],
            threads=request["threads"],
            io=request["io"],
            cache=request["cache"],
            prefetch=request["prefetch"],
            context=request["context"],
            kv_type=request["kv_type"],
        ) as model:
            notes = what_to_know(model)
            figures = measure(
                model,
                request["prompt"],
                request["continuation"],
                runs=request["passes"],
                warm_up=request["warm_up"],
                watch_disk=request["watch_disk"],
                load_disk_bytes=difference(read, disk_bytes()),
            )
            printed = [one | {"notes": notes} for one in figures]
    except (Error, OSError) as error:
        printed = {"error": str(error)}
    print(json.dumps(printed))


if __name__ == "__main__":
    main()
