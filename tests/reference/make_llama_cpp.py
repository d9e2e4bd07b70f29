"""Makes llama_cpp.json: what llama.cpp writes, greedily, from GGUF files.

    python tests/reference/make_llama_cpp.py stories ../shared/data/weights/stories260K.gguf
    python tests/reference/make_llama_cpp.py answers tiny-q8_0.gguf tiny-q4_0.gguf
    python tests/reference/make_llama_cpp.py logits tiny-q8_0.gguf --positions 0 5 -1 --out x.npz

Needs llama-cpp-python (the [bench] extra). Two threads, no flash attention, an f16 KV cache unless
`--kv-type f32` is given. llama.cpp no longer loads GGUF version 1, so the text of stories260K from
version 3 stands for both files: their tensors and vocabularies are equal bit for bit.

An entry holds `prompt_ids`, `generated_ids` (with the token that ended the text, if one did),
`leads` (for each generated token, how far its logit was above the runner-up's: where that is tiny,
another order of summation may choose otherwise) and `text` (of the generated tokens).
"""

import argparse
import json
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

HERE = Path(__file__).resolve().parent
STORY_START = "Once upon a time"
# A question with a known answer, then the first users' messages of the held-out dialogues.
QUESTIONS = (
    "What is the weather going to be like in Berkeley tomorrow?",
    "I want to find a movie",
    "Can you help me search for bus tickets.",
    "Can you tell me a story about a boy?",
    "I want to check the weather on March 7th.",
    "I am looking for a bus?",
    "I need a bus to Anaheim for 3 people.",
    "I want a pet friendly apartment in Vallejo.",
)
PROMPT = (
    "<|begin_of_text|><|header_start|>user<|header_end|>\n\n{question}<|eot|>"
    "<|header_start|>assistant<|header_end|>\n\n"
)
KV_TYPES = {"f16": llama_cpp.GGML_TYPE_F16, "f32": llama_cpp.GGML_TYPE_F32}


def main() -> None:
    """Parses the command line and runs one of the three commands."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    stories = commands.add_parser("stories", help=f"continue {STORY_START!r}, stored as 'stories'")
    answers = commands.add_parser("answers", help="answer the questions, stored by file name")
    logits = commands.add_parser("logits", help="store the logits at some positions as .npz")
    stories.add_argument("files", type=Path, nargs=1, metavar="FILE")
    answers.add_argument("files", type=Path, nargs="+", metavar="FILE")
    logits.add_argument("files", type=Path, nargs=1, metavar="FILE")
    logits.add_argument(
        "--prompt",
        type=Path,
        default=HERE / "tiny_llama4_greedy.json",
        metavar="JSON",
        help="a list of token ids, or an object with prompt_ids",
    )
    for command in (stories, answers):
        command.add_argument("-n", "--tokens", type=int, default=100)
    logits.add_argument("--positions", type=int, nargs="+", default=[-1])
    for command in (stories, answers, logits):
        command.add_argument("--kv-type", choices=KV_TYPES, default="f16")
        command.add_argument(
            "--out", type=Path, default=HERE / "llama_cpp.json", required=command is logits
        )
    args = parser.parse_args()

    if args.command == "stories":
        model = load_model(args.files[0], args.kv_type)
        prompt_ids = model.tokenize(STORY_START.encode())
        entry = {"prompt": STORY_START} | greedy(model, prompt_ids, args.tokens)
        store(args.out, "stories", args.files[0].name, entry, args.kv_type)
    elif args.command == "answers":
        for file in args.files:
            model = load_model(file, args.kv_type)
            for question in QUESTIONS:
                prompt = PROMPT.format(question=question)
                prompt_ids = model.tokenize(prompt.encode(), add_bos=False, special=True)
                entry = {"question": question} | greedy(model, prompt_ids, args.tokens)
                store(args.out, "answers", f"{file.name}: {question}", entry, args.kv_type)
    else:
        ids = read_ids(args.prompt)
        positions = np.arange(len(ids))[args.positions]
        values = prompt_logits(load_model(args.files[0], args.kv_type), ids)[positions]
        np.savez_compressed(args.out, ids=ids, positions=positions, logits=values)


def read_ids(path: Path) -> list[int]:
    """Token ids from a JSON list, or from the `prompt_ids` of a JSON object."""
    content = json.loads(path.read_text())
    return content["prompt_ids"] if isinstance(content, dict) else content


def load_model(path: Path, kv_type: str = "f16") -> llama_cpp.Llama:
    """A model on two threads that keeps the logits of every position."""
    kind = KV_TYPES[kv_type]
    return llama_cpp.Llama(
        str(path),
        n_ctx=1024,
        n_threads=2,
        n_threads_batch=2,
        logits_all=True,
        type_k=kind,
        type_v=kind,
        verbose=False,
    )


def prompt_logits(model: llama_cpp.Llama, ids: list[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """(tokens, vocab) from an empty context."""
    model.reset()
    model.eval(ids)
    return model.scores[: len(ids)].copy()


def greedy(model: llama_cpp.Llama, prompt_ids: list[int], n_tokens: int) -> dict[str, Any]:
    """The most likely continuation of up to `n_tokens`, ended by any end-of-generation token."""
    generated: list[int] = []
    leads: list[float] = []
    last = prompt_logits(model, prompt_ids)[-1]
    vocab = llama_cpp.llama_model_get_vocab(model.model)
    while len(generated) < n_tokens:
        second, best = np.partition(last, -2)[-2:]
        leads.append(round(float(best - second), 5))
        generated.append(int(last.argmax()))
        if llama_cpp.llama_vocab_is_eog(vocab, generated[-1]):
            break
        model.eval(generated[-1:])
        last = model.scores[model.n_tokens - 1]
    before = model.detokenize(prompt_ids, special=True)
    whole = model.detokenize(prompt_ids + generated, special=True)
    return {
        "prompt_ids": prompt_ids,
        "generated_ids": generated,
        "leads": leads,
        "text": whole[len(before) :].decode("utf-8", errors="replace"),
    }


def store(out: Path, section: str, name: str, entry: dict[str, Any], kv_type: str) -> None:
    """Adds an entry to the JSON file, keeping the others."""
    content: dict[str, Any] = json.loads(out.read_text()) if out.exists() else {}
    settings = {"llama_cpp_python": llama_cpp.__version__, "kv_type": kv_type, "threads": 2}
    content.setdefault(section, {})[name] = entry | settings
    out.write_text(json.dumps(content, indent=1) + "\n")
    print(f"{name}: {len(entry['generated_ids'])} tokens, least lead {min(entry['leads'])}")
    print(entry["text"])


if __name__ == "__main__":
    main()
