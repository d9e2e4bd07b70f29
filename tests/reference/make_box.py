"""Makes box.npz and box_experts.json: what the model in the box is to compute, and to hold.

    python tests/reference/make_box.py FOLDER

FOLDER is the checkpoint it was converted from, as `q4run.bench.tiny_llama4.export` writes it. Needs
torch and transformers (the [reference] extra) and llama-cpp-python (the [bench] extra).

box.npz, for each PROMPT of "dialogue" and "fable": PROMPT_ids (tokens), PROMPT_positions (rows
kept), and (rows, vocabulary) logits as f16 of their difference from the row's largest:
PROMPT_trained by transformers from the checkpoint, PROMPT_packed by transformers from the values
that the shipped file holds, PROMPT_llama_cpp by llama.cpp from the file itself (f32 KV cache).
box_experts.json holds the SHA-256 of each expert tensor's trained values, float32 in the file's
order.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import torch
from make_llama_cpp import load_model as load_llama_cpp
from make_llama_cpp import prompt_logits

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from reference import transformers_forward  # noqa: E402

import q4run  # noqa: E402
from q4run.box import MODEL  # noqa: E402
from q4run.convert.families import plan_checkpoint  # noqa: E402
from q4run.convert.source.checkpoint import Checkpoint  # noqa: E402
from q4run.gguf_file import open_gguf  # noqa: E402
from q4run.kernels.formats import find_format  # noqa: E402

PROMPTS = {
    "dialogue": [
        ("user", "I would like to find a place to eat."),
        ("assistant", "Which city are you in? And what type of food do you like?"),
        ("user", "I want something Mexican, in San Jose, and not too expensive."),
        ("assistant", "There is a nice place called Aqui Cal-Mex. Shall I book a table?"),
        ("user", "Yes, please. A table for 2 people at 6:30 in the evening on March 8th."),
        ("assistant", "Please confirm: a table for 2 at 6:30 pm on March 8th."),
    ],
    "fable": [
        ("user", "Tell me a fable about a fox and a crow."),
        (
            "assistant",
            "The Fox and the Crow\n\nA Crow was sitting on a branch of a tree with a piece of"
            " cheese in her beak when a Fox observed her and set his wits to work to discover some"
            " way of getting the cheese.",
        ),
    ],
}
EVERY = 8


def main() -> None:
    """Parses the command line, computes, writes two files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path, metavar="FOLDER")
    folder = parser.parse_args().checkpoint

    trained = transformers_forward.load_model(folder)
    packed = transformers_forward.load_model(folder)
    digests = fill_from_file(packed, folder)
    theirs = load_llama_cpp(MODEL, "f32")
    stored = {"about": np.array(json.dumps({"versions": transformers_forward.versions()}))}
    with q4run.load(MODEL) as model:
        for name, messages in PROMPTS.items():
            turns = [{"role": role, "content": content} for role, content in messages]
            ids = model.tokenize(model.template.render(turns), special=True)
            positions = np.arange(0, len(ids), EVERY)
            stored[f"{name}_ids"] = np.array(ids, np.int32)
            stored[f"{name}_positions"] = positions.astype(np.int32)
            for kind, logits in (
                ("trained", transformers_forward.logits(trained, ids)),
                ("packed", transformers_forward.logits(packed, ids)),
                ("llama_cpp", prompt_logits(theirs, ids)),
            ):
                rows = logits[positions]
                stored[f"{name}_{kind}"] = (rows - rows.max(1, keepdims=True)).astype(np.float16)
    np.savez_compressed(HERE / "box.npz", **stored)
    (HERE / "box_experts.json").write_text(json.dumps(digests, indent=1) + "\n")


def fill_from_file(model: torch.nn.Module, folder: Path) -> dict[str, str]:
    """Gives the model the values that the file holds; digests of the experts it had before.

    The conversion's own plan says which of the checkpoint's tensors is which of the file's: each
    matrix is looked up by its trained values.
    """
    file = open_gguf(MODEL)
    planned = {tensor.name: tensor for tensor in plan_checkpoint(Checkpoint(folder)).tensors}
    places = {
        values.detach().numpy().astype(np.float32).tobytes(): values
        for values in model.parameters()
        if values.dim() == 2
    }
    digests = {}
    for name, tensor in planned.items():
        matrices = [tensor.read(i, 0, tensor.n_rows) for i in range(tensor.n_matrices)]
        trained = np.stack(matrices).astype(np.float32).reshape(tensor.shape)
        if name.endswith("_exps.weight"):
            # Zeros have a sign in the checkpoint and none in the file.
            digests[name] = hashlib.sha256((trained + np.float32(0)).tobytes()).hexdigest()
            continue
        held = file.tensor(name)
        fmt = find_format(held.type)
        if fmt.name == "f32":
            continue
        raw = np.fromfile(MODEL, np.uint8, held.n_bytes, offset=held.offset)
        values = fmt.dequantize(raw.reshape(tensor.n_rows, -1))
        with torch.no_grad():
            places[trained.tobytes()].copy_(torch.from_numpy(values))
    return digests


if __name__ == "__main__":
    main()
