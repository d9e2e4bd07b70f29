"""Texts that show where a tokenizer cuts, and small byte-level vocabularies to cut them with."""

import json
import random
from functools import cache
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer

_RANGES = [(0x20, 0x7E), (0xA0, 0x24F), (0x300, 0x36F), (0x370, 0x52F), (0x5D0, 0x6FF)]
_RANGES += [(0x900, 0xE7F), (0x1E00, 0x1FFF), (0x2000, 0x206F), (0x2150, 0x218F), (0x3000, 0x30FF)]
_RANGES += [(0x4E00, 0x9FFF), (0xAC00, 0xD7A3), (0xFF00, 0xFFEF), (0x1F300, 0x1FAFF)]
_PARTS = ["the ", "I've", "HTTPServer", "don'T", "WE'LL", " ", "  ", "\n", "\r\n", "\n\n ", "\t"]
_PARTS += ["7", "12", "123", "1234567", "½", "١٢٣٤", "x1y", "...", "//", "/\n", "_a", "a_", "-A"]
_PARTS += [
    "é",
    "e\u0301",
    "漢字",
    "カナ",
    "한국",
    "สวัสดี",
    "नमस्ते",
    "🚀",
    "👩‍👩‍👧",
    "ǅ",
    "“q”",
    "。",
    "\u3000",
]


def made_texts(count: int) -> list[str]:
    """Texts of words, digits, marks, scripts, emoji, white space and runs; the seed is fixed."""
    chance = random.Random(7)

    def part() -> str:
        if chance.random() < 0.6:
            return chance.choice(_PARTS) * chance.choice([1, 1, 1, 2, 3, 40])
        low, high = chance.choice(_RANGES)
        return "".join(chr(chance.randint(low, high)) for _ in range(chance.randint(1, 6)))

    return ["".join(part() for _ in range(chance.randint(1, 10))) for _ in range(count)]


@cache
def made_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """A byte-level vocabulary of 900 tokens and its merges, which join words across any border."""
    library = Tokenizer(BPE())
    library.pre_tokenizer = ByteLevel(add_prefix_space=False, use_regex=False)
    alphabet = sorted(ByteLevel.alphabet())
    trainer = BpeTrainer(vocab_size=900, initial_alphabet=alphabet, show_progress=False)
    library.train_from_iterator(made_texts(300), trainer)
    model = json.loads(library.to_str())["model"]
    return model["vocab"], [(left, right) for left, right in model["merges"]]


def made_metadata(pre: str) -> dict[str, Any]:
    """The keys of a GGUF with the made vocabulary."""
    vocab, merges = made_vocabulary()
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": sorted(vocab, key=vocab.__getitem__),
        "tokenizer.ggml.token_type": [1] * len(vocab),
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in merges],
    }
