"""Byte-level BPE from a ``tokenizer.json``: GGUF's tokenizer model ``gpt2``."""

from pathlib import Path
from typing import Any

from q4run.convert.vocabulary.tokens import (
    NORMAL,
    TokenTable,
    Vocabulary,
    post_processor_ends,
    put_added_tokens,
)
from q4run.errors import FormatError, UnsupportedError

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
# The published split patterns, by the name GGUF has for each. Two ways to write the same one count.
PRE_TOKENIZERS = {
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+": "gpt-2",
    CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+": "llama-bpe",
    CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+": "qwen2",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    + CONTRACTIONS
    + r"?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    + CONTRACTIONS
    + r"?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+": "llama4",
}
# Readers of GGUF take a whole piece that is a token before they merge only for this pre-tokenizer.
IGNORES_MERGES = ("llama-bpe",)


def is_byte_level(tokenizer: dict[str, Any]) -> bool:
    """Whether a ``tokenizer.json`` is BPE over bytes (and not over characters)."""
    model = tokenizer.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        return False
    steps = _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    return any(step.get("type") == "ByteLevel" for step in steps)


def read_byte_level_bpe(path: Path, tokenizer: dict[str, Any], n_vocab: int) -> Vocabulary:
    """The vocabulary of a byte-level ``tokenizer.json``, parsed already, at ``path``.

    Raises ``FormatError`` for a damaged file, ``UnsupportedError`` for a pre-tokenizer or feature
    that GGUF cannot tell.
    """
    model = tokenizer["model"]
    _refuse_unknown_features(path, tokenizer, model)
    pre = _pre_tokenizer_name(path, tokenizer)

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

    vocabulary = Vocabulary("gpt2", pre, tokens, types, merges=_merges(path, model, vocab))
    first, last = post_processor_ends(tokenizer)
    vocabulary.add_bos, vocabulary.add_eos = first is not None, last is not None
    for role, text in (("bos", first), ("eos", last)):
        if text is not None:
            vocabulary.special_ids[role] = _id_of(path, tokens, text)
    if bool(model.get("ignore_merges")) != (pre in IGNORES_MERGES):
        vocabulary.notes.append(
            f"tokenizer.json has ignore_merges {bool(model.get('ignore_merges'))}, which readers "
            f"of GGUF do not expect of '{pre}': rare words may split differently"
        )
    return vocabulary


def _id_of(path: Path, tokens: list[str], text: str) -> int:
    if text not in tokens:
        raise FormatError(f"{path}: its post-processor adds {text!r:.60}, which is no token")
    return tokens.index(text)


def _steps(stage: Any, list_key: str) -> list[dict[str, Any]]:
    """The steps of a stage that may be one step, a ``Sequence`` of them, or null."""
    if not isinstance(stage, dict):
        return []
    steps = stage.get(list_key, []) if stage.get("type") == "Sequence" else [stage]
    return [step for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []


def _refuse_unknown_features(path: Path, tokenizer: dict[str, Any], model: dict[str, Any]) -> None:
    for feature in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(feature):
            raise UnsupportedError(f"{path}: the BPE feature {feature} is not supported")
    if model.get("byte_fallback"):
        raise UnsupportedError(f"{path}: byte_fallback in byte-level BPE is not supported")
    for step in _steps(tokenizer.get("normalizer"), "normalizers"):
        # Qwen's tokenizers ask for NFC; readers of GGUF take text as it is.
        if step.get("type") != "NFC":
            raise UnsupportedError(f"{path}: the normalizer {step.get('type')} is not supported")


def _pre_tokenizer_name(path: Path, tokenizer: dict[str, Any]) -> str:
    """GGUF's name for the way the file cuts text into words."""
    steps = _steps(tokenizer.get("pre_tokenizer"), "pretokenizers")
    *splits, byte_level = steps
    if byte_level.get("type") != "ByteLevel" or len(splits) > 1:
        kinds = ", ".join(str(step.get("type")) for step in steps)
        raise UnsupportedError(f"{path}: the pre-tokenizer ({kinds}) is not supported")
    if byte_level.get("add_prefix_space"):
        raise UnsupportedError(f"{path}: add_prefix_space in byte-level BPE is not supported")
    if not splits:
        if byte_level.get("use_regex", True):
            return "gpt-2"
        raise UnsupportedError(f"{path}: a pre-tokenizer that never splits is not supported")
    split = splits[0]
    pattern = split.get("pattern")
    regex = pattern.get("Regex") if isinstance(pattern, dict) else None
    # To isolate the matches, or to remove all but the matches: the same where everything matches.
    keeps_matches = (split.get("behavior"), split.get("invert")) in (
        ("Isolated", False),
        ("Removed", True),
    )
    regex = _normalised(regex) if isinstance(regex, str) else "none"
    name = PRE_TOKENIZERS.get(regex)
    if name is None or split.get("type") != "Split" or not keeps_matches:
        raise UnsupportedError(
            f"{path}: the pre-tokenizer's pattern is not supported: {regex[:400]}"
        )
    return name


def _normalised(regex: str) -> str:
    """The pattern as `PRE_TOKENIZERS` writes it."""
    regex = regex.replace("\r", r"\r").replace("\n", r"\n")
    return regex.replace("'(?i:[sdmt]|ll|ve|re)", CONTRACTIONS)


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
