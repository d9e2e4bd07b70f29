"""llama.cpp's runs, for ``q4run.bench.measure.compare``: a request in, their figures out, both
JSON.

Run as a script, by a Python that need have nothing but llama-cpp-python.
"""

import importlib
import json
import resource
import sys
import time
from typing import Any


def load(request: dict[str, Any]) -> Any:
    """The model as llama-cpp-python loads it, but for what the request sets.

    Its default is to repack weights into a copy in RAM beside its memory map of the file. Where
    memory is limited that copy would get it killed: ``repack`` false turns it off.
    """
    library = importlib.import_module("llama_cpp")
    defaults = library.llama_model_default_params

    def model_parameters() -> Any:
        parameters = defaults()
        parameters.use_extra_bufts = request["repack"]
        return parameters

    # The constructor below has no argument for it.
    importlib.import_module(
        "llama_cpp.llama"
    ).llama_cpp.llama_model_default_params = model_parameters
    kv_type = getattr(library, "GGML_TYPE_" + request["kv_type"].upper())
    return library.Llama(
        request["model"],
        n_ctx=request["context"],
        n_batch=512,
        n_threads=request["threads"],
        n_threads_batch=request["threads"],
        type_k=kv_type,
        type_v=kv_type,
        verbose=False,
    )


def measure(request: dict[str, Any]) -> list[dict[str, Any]]:
    """What ``q4run.bench.measure.speed.measure`` tells of q4run, as far as it applies."""
    prompt, continuation = request["prompt"], request["continuation"]
    started = time.perf_counter()
    model = load(request)
    load_s = time.perf_counter() - started
    n_uncounted = int(request["warm_up"])
    passes = [run(model, prompt, continuation) for _ in range(n_uncounted + request["passes"])]
    unknown = dict.fromkeys(("floor_bytes", "busy_share"))
    return [
        {
            "model": request["model"],
            "threads": request["threads"],
            "io": "mmap",
            "ram_budget": None,
            "start": "warm" if i or n_uncounted else "cold",
            "from_disk_share": None,
            "prefill": {
                "tokens": len(prompt),
                "tok_s": len(prompt) / prompt_s,
                "disk_bytes": read[0],
                "once_per_chunk_bytes": None,
                "wait_s": None,
                **unknown,
            },
            "decode": {
                "tokens": len(continuation),
                "tok_s": len(continuation) / decode_s,
                "as_chat_tok_s": None,
                "bytes_per_token": None,
                "read_limit_ratio": None,
                "disk_bytes": read[1],
                "disk_share": None,
                **unknown,
            },
            "load_s": load_s,
            "first_token_s": passes[0][0],
            "peak_rss": peak_rss(),
            "experts": dict.fromkeys(
                ("count", "slots", "hit_rate", "bytes_read", "requests", "read_gb_s", "wait_s")
            ),
            "notes": [],
        }
        for i, (prompt_s, decode_s, read) in enumerate(passes[n_uncounted:])
    ]


def run(
    model: Any, prompt: list[int], continuation: list[int]
) -> tuple[float, float, tuple[int | None, int | None]]:
    """Seconds that the prompt and decoding took, and the bytes that came from disk in each."""
    model.reset()
    read = [disk_bytes()]
    started = time.perf_counter()
    model.eval(prompt)
    prompt_s = time.perf_counter() - started
    read.append(disk_bytes())
    started = time.perf_counter()
    for token in continuation:
        model.eval([token])
    decode_s = time.perf_counter() - started
    read.append(disk_bytes())
    return prompt_s, decode_s, (difference(*read[:2]), difference(*read[1:]))


def disk_bytes() -> int | None:
    """What Linux has fetched from disk for this process, page faults included; else None."""
    try:
        with open("/proc/self/io") as counters:
            return int(counters.read().partition("\nread_bytes:")[2].split()[0])
    except (OSError, IndexError):
        return None


def difference(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


def peak_rss() -> int:
    try:
        with open("/proc/self/status") as status:
            # Linux's getrusage would also count what the parent held before the exec.
            return int(status.read().partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    print(json.dumps(measure(json.load(sys.stdin))))
