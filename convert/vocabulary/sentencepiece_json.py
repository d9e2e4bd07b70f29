"""SentencePiece vocabularies from the BPE with byte fallback that a ``tokenizer.json`` holds."""

from pathlib import Path
from typing import Any

from q4run.convert.vocabulary.tokens import (
    BYTE,
    NORMAL,
    TokenTable,
    Vocabulary,
    is_byte_token,
    post_processor_ends,
    put_added_tokens,
    spell_spaces,
)
from q4run.errors import FormatError, UnsupportedError
from q4run.text.sentencepiece import SPACE
from q4run.text.vocabulary import SpacePrefix

_SCHEMES = ("first", "always", "never")
_PREPEND = {"type": "Prepend", "prepend": SPACE}
_REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
# Gemma's: by then there is no space left to split at.
_NOTHING_TO_SPLIT = {
    "type": "Split",
    "pattern": {"String": " "},
    "behavior": "MergedWithPrevious",
    "invert": False,
}


def is_sentencepiece_json(tokenizer: dict[str, Any]) -> bool:
    """Whether a ``tokenizer.json`` is a SentencePiece BPE in the form of transformers."""
    model = tokenizer.get("model")
    return (
        isinstance(model, dict) and model.get("type") == "BPE" and bool(model.get("byte_fallback"))
    )


def read_sentencepiece_json(path: Path, tokenizer: dict[str, Any], n_vocab: int) -> Vocabulary:
    """The vocabulary of a ``tokenizer.json`` that was made from a SentencePiece BPE model.

    SentencePiece merges the pair whose whole has the highest score; the file lists pairs by rank.
    transformers lists them by the whole's score, then by length of the left and the right part,
    longest first. So all pairs that make one token are neighbours, except among tokens of the same
    score, where the lengths tell; and the rank of the token, negated, is a score. Raises
    ``UnsupportedError`` for a list that does not have this order.
    """
    model = tokenizer["model"]
    vocab, merges = model.get("vocab"), model.get("merges")
    if not isinstance(vocab, dict) or not vocab or not isinstance(merges, list):
        raise FormatError(f"{path}: has no vocabulary or no merges")
    ranks = _ranks_of_wholes(path, merges)

    table = TokenTable(n_vocab, str(path))
    unknown = model.get("unk_token")
    n_other = 0
    for text, token_id in vocab.items():
        if text not in ranks:
            n_other += 1
        score = -float(ranks.get(text, len(ranks) + n_other))
        kind = BYTE if is_byte_token(text) else NORMAL
        table.put(token_id, text, kind, score)
    put_added_tokens(table, tokenizer.get("added_tokens") or [])
    vocabulary = Vocabulary("llama", "default", *table.finish(), notes=table.notes())

    ids = {text: token_id for token_id, text in enumerate(vocabulary.tokens)}
    if isinstance(unknown, str) and unknown in ids:
        vocabulary.special_ids["unk"] = ids[unknown]
        vocabulary.types[ids[unknown]] = 2
    first, last = post_processor_ends(tokenizer)
    vocabulary.add_bos, vocabulary.add_eos = first is not None, last is not None
    for role, text in (("bos", first), ("eos", last)):
        if text is not None and text in ids:
            vocabulary.special_ids[role] = ids[text]
    vocabulary.space_prefix = space_prefix_of(path, tokenizer)
    spell_spaces(vocabulary)
    return vocabulary


def _ranks_of_wholes(path: Path, merges: list[Any]) -> dict[str, int]:
    """The rank of every token that merges make; tokens of one score share a rank."""
    pairs = [_pair(path, merge) for merge in merges]
    last_merge = {left + right: index for index, (left, right) in enumerate(pairs)}
    ranks: dict[str, int] = {}
    start = rank = 0
    while start < len(pairs):
        end = start
        wholes = set()
        index = start
        while index <= end:
            whole = "".join(pairs[index])
            wholes.add(whole)
            end = max(end, last_merge[whole])
            index += 1
        lengths = [(len(left), len(right)) for left, right in pairs[start:index]]
        if len(wholes) > 1 and lengths != sorted(lengths, reverse=True):
            raise UnsupportedError(
                f"{path}: its merges are not those of a SentencePiece model: "
                "put the tokenizer.model beside it"
            )
        ranks |= dict.fromkeys(wholes, rank)
        start, rank = index, rank + 1
    return ranks


def _pair(path: Path, merge: Any) -> tuple[str, str]:
    pair = merge.split(" ") if isinstance(merge, str) else merge
    if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(p, str) for p in pair)):
        raise FormatError(f"{path}: the merge {merge!r:.60} is not a pair")
    return pair[0], pair[1]


def space_prefix_of(path: Path, tokenizer: dict[str, Any]) -> SpacePrefix:
    """Where a space goes before text; refuses text handling that is not SentencePiece's."""
    normalizer, pre_tokenizer = tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")
    if isinstance(pre_tokenizer, dict) and pre_tokenizer.get("type") == "Metaspace":
        default = "always" if pre_tokenizer.get("add_prefix_space", True) else "never"
        scheme = pre_tokenizer.get("prepend_scheme", default)
        if normalizer is None and not pre_tokenizer.get("split", True) and scheme in _SCHEMES:
            return SpacePrefix(scheme)
    elif pre_tokenizer in (None, _NOTHING_TO_SPLIT) and isinstance(normalizer, dict):
        steps = normalizer.get("normalizers", [normalizer])
        if steps == [_PREPEND, _REPLACE]:
            return SpacePrefix.EVERY
        if steps == [_REPLACE]:
            return SpacePrefix.NEVER
    raise UnsupportedError(
        f"{path}: its way to handle spaces is not that of Llama 2: "
        "put the tokenizer.model beside it"
    )
