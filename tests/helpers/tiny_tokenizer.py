"""A byte-level BPE tokenizer of 320 tokens, as Hugging Face files, for the tiny checkpoints."""

import json
from pathlib import Path
from typing import Any

VOCAB_SIZE = 320

MERGES = """
Ġ t|h e|Ġt he|i n|Ġ a|r e|o n|e r|Ġ s|Ġ w|a t|e n|o r|i s|l l|o u
Ġ c|n d|in g|Ġ b|i t|Ġ o|Ġ f|e s|Ġ m|Ġa nd|a l|Ġ p|e d|Ġ i|Ġt o|Ċ Ċ
"""
PIECES = [tuple(pair.split()) for pair in MERGES.strip().replace("\n", "|").split("|")]

SPECIAL_TOKENS = {
    "llama4": [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|header_start|>",
        "<|header_end|>",
        "<|eom|>",
        "<|eot|>",
        "<|finetune_right_pad|>",
    ],
    "llama": [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eom_id|>",
        "<|eot_id|>",
        "<|finetune_right_pad_id|>",
    ],
}
SPECIAL_TOKENS["mixtral"] = SPECIAL_TOKENS["llama"]

# The published pre-tokenizer patterns of Llama 4 (that of o200k) and Llama 3.
SPLIT_PATTERN = {
    "llama4": (
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
    "llama": (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}
SPLIT_PATTERN["mixtral"] = SPLIT_PATTERN["llama"]


def special_id(family: str, token: str) -> int:
    """The id of a special token; they follow the bytes and the merges."""
    return 256 + len(PIECES) + SPECIAL_TOKENS[family].index(token)


def write_tokenizer(family: str, folder: Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json` (with a chat template) to `folder`."""
    vocab = [_byte_character(byte) for byte in range(256)]
    vocab += [left + right for left, right in PIECES]
    special = list(SPECIAL_TOKENS[family])
    n_reserved = VOCAB_SIZE - len(vocab) - len(special)
    special += [f"<|reserved_special_token_{number}|>" for number in range(n_reserved)]
    added = [
        {"id": len(vocab) + number, "content": content, "special": True}
        | dict.fromkeys(["single_word", "lstrip", "rstrip", "normalized"], False)
        for number, content in enumerate(special)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    tokenizer: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Split",
                    "pattern": {"Regex": SPLIT_PATTERN[family]},
                    "behavior": "Isolated",
                    "invert": False,
                },
                byte_level | {"use_regex": False},
            ],
        },
        "post_processor": _begin_with(special[0], len(vocab)),
        "decoder": byte_level | {"use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": family != "llama4",
            "vocab": {token: number for number, token in enumerate(vocab)},
            "merges": [list(pair) for pair in PIECES],
        },
    }
    start, end, turn = special[2], special[3], special[5]
    template = (
        "{{- bos_token }}{%- for message in messages %}"
        f"{{{{- '{start}' + message['role'] + '{end}\\n\\n' }}}}"
        f"{{{{- message['content'] | trim }}}}{{{{- '{turn}' }}}}"
        "{%- endfor %}{%- if add_generation_prompt %}"
        f"{{{{- '{start}assistant{end}\\n\\n' }}}}"
        "{%- endif %}"
    )
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": special[0],
        "eos_token": turn,
        "pad_token": special[6],
        "clean_up_tokenization_spaces": False,
        "chat_template": template,
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config), encoding="utf-8")


def _byte_character(byte: int) -> str:
    """The printable stand-in for a byte in byte-level BPE, as defined by GPT-2."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if byte in printable:
        return chr(byte)
    return chr(256 + [other for other in range(256) if other not in printable].index(byte))


def _begin_with(token: str, token_id: int) -> dict[str, Any]:
    """A post-processor that puts `token` before every text."""
    before = {"SpecialToken": {"id": token, "type_id": 0}}
    first, second = ({"Sequence": {"id": part, "type_id": 0}} for part in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [before, first],
        "pair": [before, first, before, second],
        "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}},
    }
