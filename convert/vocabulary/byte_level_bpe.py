"""BPE from a ``tokenizer.json``: over bytes (GGUF's tokenizer model ``gpt2``), or over UTF-8 with
byte tokens (``gemma4``)."""

from pathlib import Path
from typing import Any

from q4run.convert.vocabulary.pre_tokenizer import name_pre_tokenizer, patterns_of, steps_of
from q4run.convert.vocabulary.tokens import (
    BYTE,
    NORMAL,
    TokenTable,
    Vocabulary,
    is_byte_token,
    post_processor_ends,
    put_added_tokens,
)
from q4run.errors import FormatError, UnsupportedError
from q4run.text.vocabulary import GEMMA4


def read_byte_level_bpe(
    path: Path, tokenizer: dict[str, Any], n_vocab: int, pre: str | None
) -> Vocabulary:
    """The vocabulary of a byte-level ``tokenizer.json``, parsed already, at ``path``.

    ``pre`` is GGUF's name for its pre-tokenizer, where a person gives it. Raises ``FormatError``
    for a damaged file, ``UnsupportedError`` for a pre-tokenizer or feature that GGUF cannot tell.
    """
    model = tokenizer["model"]
    _refuse_unknown_features(path, tokenizer, model)
    name, notes = name_pre_tokenizer(
        path,
        patterns_of(path, tokenizer) if pre is None else [],
        ignore_merges=bool(model.get("ignore_merges")),
        forced=pre,
    )
    vocabulary = _read_bpe(path, tokenizer, n_vocab, "gpt2", name)
    vocabulary.notes += notes
    return vocabulary


def read_utf8_bpe(path: Path, tokenizer: dict[str, Any], n_vocab: int) -> Vocabulary:
    """The vocabulary of a ``tokenizer.json`` of Gemma 4's kind. Raises ``FormatError``."""
    vocabulary = _read_bpe(path, tokenizer, n_vocab, GEMMA4, GEMMA4)
    for token_id, text in enumerate(vocabulary.tokens):
        if vocabulary.types[token_id] == NORMAL and is_byte_token(text):
            vocabulary.types[token_id] = BYTE
    return vocabulary


def _read_bpe(
    path: Path, tokenizer: dict[str, Any], n_vocab: int, model_name: str, pre: str
) -> Vocabulary:
    model = tokenizer["model"]
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not vocab:
        raise FormatError(f"{path}: has no vocabulary")
    table = TokenTable(n_vocab, str(path))
    for text, token_id in vocab.items():
        if type(token_id) is int and 0 <= token_id < n_vocab and not table.is_free(token_id):
            raise FormatError(f"{path}: two tokens have the id {token_id}")
        table.put(token_id, text, NORMAL)
    put_added_tokens(table, tokenizer.get("added_tokens") or [])
    tokens, types, _ = table.finish()

    merges = _merges(path, model, vocab)
    vocabulary = Vocabulary(model_name, pre, tokens, types, merges=merges, notes=table.notes())
    first, last = post_processor_ends(tokenizer)
    vocabulary.add_bos, vocabulary.add_eos = first is not None, last is not None
    for role, text in (("bos", first), ("eos", last)):
        if text is not None:
            vocabulary.special_ids[role] = _id_of(path, tokens, text)
    return vocabulary


def _id_of(path: Path, tokens: list[str], text: str) -> int:
    if text not in tokens:
        raise FormatError(f"{path}: its post-processor adds {text!r:.60}, which is no token")
    return tokens.index(text)


def _refuse_unknown_features(path: Path, tokenizer: dict[str, Any], model: dict[str, Any]) -> None:
    for feature in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(feature):
            raise UnsupportedError(f"{path}: the BPE feature {feature} is not supported")
    if model.get("byte_fallback"):
        raise UnsupportedError(f"{path}: byte_fallback in byte-level BPE is not supported")
    for step in steps_of(tokenizer.get("normalizer"), "normalizers"):
        # Qwen's tokenizers ask for NFC; readers of GGUF take text as it is.
        if step.get("type") != "NFC":
            raise UnsupportedError(f"{path}: the normalizer {step.get('type')} is not supported")


def _merges(path: Path, model: dict[str, Any], vocab: dict[str, Any]) -> list[str]:
    """The merges as ``a b``; newer files hold pairs, older ones such strings."""
    merges = model.get("merges")
    if not isinstance(merges, list):
        raise FormatError(f"{path}: has no merges")
    result = []
    for merge in merges:
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2:
            raise FormatError(f"{path}: the merge {merge!r:.60} is not a pair")
        left, right = pair
        if not (left in vocab and right in vocab and left + right in vocab):
            raise FormatError(f"{path}: the merge {merge!r:.60} is not of tokens")
        result.append(f"{left} {right}")
    return result
