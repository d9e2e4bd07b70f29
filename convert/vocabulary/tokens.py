"""The token list of a model, in id order, whatever kind of tokenizer it comes from."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import gguf

from q4run.errors import FormatError

NORMAL = int(gguf.TokenType.NORMAL)
CONTROL = int(gguf.TokenType.CONTROL)
USER_DEFINED = int(gguf.TokenType.USER_DEFINED)
UNUSED = int(gguf.TokenType.UNUSED)
BYTE = int(gguf.TokenType.BYTE)

ADDED_SCORE = -1000.0
UNUSED_SCORE = -10000.0


@dataclass
class Vocabulary:
    """What ``tokenizer.ggml.*`` says of a vocabulary.

    ``model`` is "gpt2" (byte-level BPE, with ``merges``) or "llama" (SentencePiece BPE, with
    ``scores``); ``pre`` names the pre-tokenizer. ``special_ids`` holds the ids the tokenizer's own
    file gives, under "bos", "eos", "unk", "pad". ``add_bos`` and ``add_eos`` are None where it
    does not say.
    """

    model: str
    pre: str
    tokens: list[str]
    types: list[int]
    scores: list[float] = field(default_factory=list)
    merges: list[str] = field(default_factory=list)
    special_ids: dict[str, int] = field(default_factory=dict)
    add_bos: bool | None = None
    add_eos: bool | None = None
    add_space_prefix: bool | None = None
    notes: list[str] = field(default_factory=list)


class TokenTable:
    """Tokens being put in their places; the holes are filled at the end.

    Every method raises ``FormatError``, naming ``where``, for an id outside the vocabulary (whose
    size is that of the embedding matrix).
    """

    def __init__(self, n_vocab: int, where: str) -> None:
        self.where = where
        self.n_vocab = n_vocab
        self._places: list[tuple[str, int, float] | None] = [None] * n_vocab

    def put(self, token_id: Any, text: Any, kind: int, score: float = 0.0) -> None:
        """Places a token; one that is there already is replaced, as added tokens may do."""
        if not isinstance(text, str):
            raise FormatError(f"{self.where}: a token's text is {text!r:.60}, not a string")
        if type(token_id) is not int or not 0 <= token_id < self.n_vocab:
            raise FormatError(
                f"{self.where}: token {text!r:.60} has the id {token_id!r:.30}, "
                f"but the model has {self.n_vocab} tokens"
            )
        self._places[token_id] = (text, kind, score)

    def is_free(self, token_id: int) -> bool:
        return self._places[token_id] is None

    def finish(self) -> tuple[list[str], list[int], list[float]]:
        """Tokens, types and scores; an id without a token becomes the unused token ``[PADn]``."""
        places = [
            place or (f"[PAD{token_id}]", UNUSED, UNUSED_SCORE)
            for token_id, place in enumerate(self._places)
        ]
        tokens = [text for text, _, _ in places]
        if len(set(tokens)) != self.n_vocab:
            twice = next(text for text, n in Counter(tokens).items() if n > 1)
            raise FormatError(f"{self.where}: two tokens have the text {twice!r:.60}")
        return (
            tokens,
            [kind for _, kind, _ in places],
            [score for _, _, score in places],
        )


def put_added_tokens(table: TokenTable, added: Any) -> None:
    """Places the ``added_tokens`` of a ``tokenizer.json``: special ones are control tokens."""
    if not isinstance(added, list):
        raise FormatError(f"{table.where}: added_tokens is not a list")
    for entry in added:
        if not isinstance(entry, dict):
            raise FormatError(f"{table.where}: an added token is not an object")
        kind = CONTROL if entry.get("special") is True else USER_DEFINED
        table.put(entry.get("id"), entry.get("content"), kind, ADDED_SCORE)


def post_processor_ends(tokenizer: dict[str, Any]) -> tuple[str | None, str | None]:
    """The special tokens a ``tokenizer.json`` puts before and after every text, if any."""
    processor = tokenizer.get("post_processor")
    if not isinstance(processor, dict):
        return None, None
    processors = processor.get("processors", [processor])
    for step in processors if isinstance(processors, list) else []:
        if not isinstance(step, dict) or step.get("type") != "TemplateProcessing":
            continue
        parts = step.get("single")
        if not isinstance(parts, list) or not parts:
            continue
        return _special_token(parts[0]), _special_token(parts[-1])
    return None, None


def _special_token(part: Any) -> str | None:
    special = part.get("SpecialToken") if isinstance(part, dict) else None
    text = special.get("id") if isinstance(special, dict) else None
    return text if isinstance(text, str) else None
