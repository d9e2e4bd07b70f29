"""Makes tiny_llama4.npz and tiny_llama4_greedy.json from the trained Llama 4 checkpoint.

    python tests/reference/make_trained.py ../shared/data/weights/tiny-llama4

Needs torch and transformers (the [reference] extra). All in float32, without a KV cache.

tiny_llama4.npz, for each PROMPT of "chat" (a question in the chat format) and "valid" (held-out
text): PROMPT_ids (tokens), PROMPT_positions (rows kept), PROMPT_columns (vocabulary columns kept),
PROMPT_logits (rows, columns), PROMPT_last (vocab; the last position in full), and PROMPT_experts
(layers, tokens), the expert that each token goes to. tiny_llama4_greedy.json holds the greedy
answer to the question, up to and with the token that ends it.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from reference import numpy_forward, transformers_forward  # noqa: E402

QUESTION = "What is the weather going to be like in Berkeley tomorrow?"
CHAT = (
    "<|begin_of_text|><|header_start|>user<|header_end|>\n\n"
    f"{QUESTION}<|eot|><|header_start|>assistant<|header_end|>\n\n"
)
N_VALID = 600
N_COLUMNS = 64
# float32 against float64 on a long prompt, relative to the largest logit.
TOLERANCE = 3e-5
MAX_ANSWER = 200


def main() -> None:
    """Parses the command line, runs both prompts and the greedy answer, writes two files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, help="the tiny-llama4 folder")
    parser.add_argument("--out", type=Path, default=HERE, metavar="FOLDER")
    args = parser.parse_args()

    tokenizer = Tokenizer.from_file(str(args.checkpoint / "tokenizer.json"))
    valid = (args.checkpoint / "valid.txt").read_text(encoding="utf-8")
    prompts = {
        "chat": tokenizer.encode(CHAT, add_special_tokens=False).ids,
        "valid": tokenizer.encode(valid[: 8 * N_VALID], add_special_tokens=False).ids[:N_VALID],
    }
    model = transformers_forward.load_model(args.checkpoint)
    config, weights = numpy_forward.load_checkpoint(args.checkpoint)
    versions = transformers_forward.versions()
    stored: dict[str, Any] = {"about": np.array(json.dumps({"versions": versions}))}
    for name, ids in prompts.items():
        exact = numpy_forward.forward(config, weights, ids)
        stored |= prompt_vectors(name, model, ids, exact)
    np.savez_compressed(args.out / "tiny_llama4.npz", **stored)

    answer = greedy_answer(model, prompts["chat"], config["eos_token_id"])
    text = tokenizer.decode(answer["generated_ids"], skip_special_tokens=True)
    print(f"greedy: {text!r}, least lead of a token {min(answer['leads'])}")
    record = {"question": QUESTION, "prompt": CHAT} | answer | {"text": text, "versions": versions}
    (args.out / "tiny_llama4_greedy.json").write_text(json.dumps(record, indent=1) + "\n")


def prompt_vectors(
    name: str, model: torch.nn.Module, ids: list[int], exact: numpy_forward.Result
) -> dict[str, Any]:
    """The arrays to store for one prompt, once they agree with the float64 forward pass."""
    logits = transformers_forward.logits(model, ids)
    error = float(np.abs(logits - exact.logits).max() / np.abs(exact.logits).max())
    print(f"{name}: {len(ids)} tokens, error {error:.1e}, router gap {exact.router_gap:.1e}")
    assert error < TOLERANCE, f"{name}: transformers and float64 numpy differ by {error:.1e}"
    positions = np.arange(0, len(ids), 1 if len(ids) < 100 else 6)
    columns = np.linspace(0, logits.shape[1] - 1, N_COLUMNS).astype(np.int32)
    return {
        f"{name}_ids": np.array(ids, np.int32),
        f"{name}_positions": positions.astype(np.int32),
        f"{name}_columns": columns,
        f"{name}_logits": logits[np.ix_(positions, columns)],
        f"{name}_last": logits[-1],
        f"{name}_experts": np.stack([layer[:, 0] for layer in exact.experts]).astype(np.uint8),
    }


def greedy_answer(
    model: torch.nn.Module, prompt_ids: list[int], end_ids: list[int]
) -> dict[str, Any]:
    """The most likely tokens one by one, the whole sequence run anew for each.

    `leads` tells for each how far its logit was above the runner-up's.
    """
    generated: list[int] = []
    leads: list[float] = []
    while len(generated) < MAX_ANSWER and not (generated and generated[-1] in end_ids):
        last = transformers_forward.logits(model, prompt_ids + generated)[-1]
        second, best = np.partition(last, -2)[-2:]
        leads.append(round(float(best - second), 5))
        generated.append(int(last.argmax()))
    return {"prompt_ids": prompt_ids, "generated_ids": generated, "leads": leads}


if __name__ == "__main__":
    main()
