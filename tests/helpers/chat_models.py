"""A model to converse with in tests: a random tiny Llama 4 that babbles and never stops."""

import re
from pathlib import Path

import numpy as np

from helpers.tiny_checkpoints import make_checkpoint
from q4run.convert import convert
from q4run.gguf_file import open_gguf
from q4run.text.tokenizer import load_tokenizer


def make_chat_model(folder: Path) -> Path:
    """An f32 GGUF with a chat template that trims; its greedy answers are letters without end.

    The output rows of all other tokens are zero: their logit never is the largest. To rich, the
    file's name would be markup.
    """
    path = folder / "tiny [red].gguf"
    convert(make_checkpoint("llama4_scout", folder / "checkpoint"), path, type="f32")
    file = open_gguf(path)
    tokenizer = load_tokenizer(file.metadata)
    others = [
        id for id in range(tokenizer.n_vocab) if not re.fullmatch(rb" ?[a-z]+", tokenizer.piece(id))
    ]
    output = file.tensor("output.weight")
    rows = np.memmap(path, np.float32, "r+", offset=output.offset, shape=tuple(output.shape))
    rows[others] = 0
    rows.flush()
    return path
