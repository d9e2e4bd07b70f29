"""SentencePiece vocabularies of the Llama 2 kind: GGUF's tokenizer model ``llama``.

From ``tokenizer.model`` (a protobuf: sentencepiece_model.proto of google/sentencepiece), or from
the BPE with byte fallback that ``tokenizer.json`` holds in its stead.
"""

import math
from pathlib import Path
from typing import Any

from q4run.convert.config import read_file, read_json
from q4run.convert.vocabulary.protobuf import FieldValue, read_fields, to_bytes, to_float, to_int
from q4run.convert.vocabulary.tokens import (
    ADDED_SCORE,
    BYTE,
    CONTROL,
    NORMAL,
    USER_DEFINED,
    TokenTable,
    Vocabulary,
    post_processor_ends,
    put_added_tokens,
)
from q4run.errors import FormatError, UnsupportedError

# Field numbers of ModelProto, SentencePiece, TrainerSpec and NormalizerSpec.
PIECES, TRAINER, NORMALIZER = 1, 2, 3
PIECE_TEXT, PIECE_SCORE, PIECE_TYPE = 1, 2, 3
MODEL_TYPE, SPECIAL_ID_FIELDS = 3, {"unk": 40, "bos": 41, "eos": 42, "pad": 43}
CHARSMAP, ADD_DUMMY_PREFIX, REMOVE_EXTRA_WHITESPACES = 2, 3, 4

MODEL_TYPES = {1: "unigram", 2: "BPE", 3: "word", 4: "char"}
BPE = 2
DEFAULT_IDS = {"unk": 0, "bos": 1, "eos": 2}
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


def read_sentencepiece(path: Path, n_vocab: int) -> Vocabulary:
    """The vocabulary of a ``tokenizer.model``, with what its neighbours add to it.

    Raises ``FormatError`` for a damaged file, ``UnsupportedError`` for a kind other than BPE.
    """
    data = read_file(path)
    try:
        pieces, trainer, normalizer = _parse_model(data)
    except ValueError as error:
        raise FormatError(f"{path}: is not a SentencePiece model: {error}") from None
    if not pieces:
        raise FormatError(f"{path}: holds no pieces")
    model_type = trainer.get(MODEL_TYPE, 1)
    if model_type != BPE:
        name = MODEL_TYPES.get(model_type, "unknown") if isinstance(model_type, int) else "unknown"
        raise UnsupportedError(f"{path}: SentencePiece of the kind {name} is not supported")
    if normalizer.get(CHARSMAP):
        raise UnsupportedError(f"{path}: a SentencePiece normalisation table is not supported")
    if normalizer.get(REMOVE_EXTRA_WHITESPACES, 1):
        raise UnsupportedError(f"{path}: removing extra white space is not supported")

    table = TokenTable(n_vocab, str(path))
    for token_id, (text, score, kind) in enumerate(pieces):
        table.put(token_id, text, kind, score)
    _put_neighbours(table, path.parent)
    vocabulary = Vocabulary("llama", "default", *table.finish())
    for role, number in SPECIAL_ID_FIELDS.items():
        special_id = trainer.get(number, DEFAULT_IDS.get(role, -1))
        if isinstance(special_id, int) and 0 <= special_id < len(pieces):
            vocabulary.special_ids[role] = special_id
    vocabulary.add_bos = True  # as Llama's own tokenizer does unless told otherwise
    vocabulary.add_space_prefix = bool(normalizer.get(ADD_DUMMY_PREFIX, 1))
    return vocabulary


def _parse_model(
    data: bytes,
) -> tuple[list[tuple[str, float, int]], dict[int, FieldValue], dict[int, FieldValue]]:
    """Pieces as (text, score, type), and the plain fields of trainer and normalizer."""
    pieces = []
    trainer: dict[int, FieldValue] = {}
    normalizer: dict[int, FieldValue] = {}
    for number, value in read_fields(data):
        if number == PIECES:
            pieces.append(_parse_piece(to_bytes(value)))
        elif number == TRAINER:
            trainer = dict(read_fields(to_bytes(value)))
        elif number == NORMALIZER:
            normalizer = dict(read_fields(to_bytes(value)))
    return pieces, trainer, normalizer


def _parse_piece(data: bytes) -> tuple[str, float, int]:
    text, score, kind = "", 0.0, NORMAL
    for number, value in read_fields(data):
        if number == PIECE_TEXT:
            text = to_bytes(value).decode("utf-8")
        elif number == PIECE_SCORE:
            score = to_float(value)
        elif number == PIECE_TYPE:
            kind = to_int(value)  # numbered as GGUF numbers token types
    if not math.isfinite(score) or not NORMAL <= kind <= BYTE:
        raise ValueError(f"the piece {text!r:.60} has an impossible score or type")
    return text, score, kind


def _put_neighbours(table: TokenTable, folder: Path) -> None:
    """The tokens that ``added_tokens.json`` and ``tokenizer_config.json`` add."""
    path = folder / "added_tokens.json"
    if path.is_file():
        for text, token_id in read_json(path).items():
            table.put(token_id, text, CONTROL, ADDED_SCORE)
    path = folder / "tokenizer_config.json"
    decoder = read_json(path).get("added_tokens_decoder") if path.is_file() else None
    if decoder is None:
        return
    if not isinstance(decoder, dict):
        raise FormatError(f"{path}: added_tokens_decoder is not an object")
    for key, entry in decoder.items():
        if not (key.isascii() and key.isdigit() and len(key) < 12) or not isinstance(entry, dict):
            raise FormatError(f"{path}: added_tokens_decoder has the bad entry {key!r:.60}")
        token_id = int(key)
        # The model's own control and unknown tokens are listed again: they keep their types.
        if token_id >= table.n_vocab or table.is_free(token_id):
            kind = CONTROL if entry.get("special") is True else USER_DEFINED
            table.put(token_id, entry.get("content"), kind, ADDED_SCORE)


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
        kind = BYTE if _is_byte_token(text) else NORMAL
        table.put(token_id, text, kind, score)
    put_added_tokens(table, tokenizer.get("added_tokens") or [])
    vocabulary = Vocabulary("llama", "default", *table.finish())

    ids = {text: token_id for token_id, text in enumerate(vocabulary.tokens)}
    if isinstance(unknown, str) and unknown in ids:
        vocabulary.special_ids["unk"] = ids[unknown]
        vocabulary.types[ids[unknown]] = 2
    first, last = post_processor_ends(tokenizer)
    vocabulary.add_bos, vocabulary.add_eos = first is not None, last is not None
    for role, text in (("bos", first), ("eos", last)):
        if text is not None and text in ids:
            vocabulary.special_ids[role] = ids[text]
    vocabulary.add_space_prefix = _prepends_space(path, tokenizer)
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


def _is_byte_token(text: str) -> bool:
    return len(text) == 6 and text.startswith("<0x") and text.endswith(">")


def _prepends_space(path: Path, tokenizer: dict[str, Any]) -> bool:
    """Whether a space goes before the text; refuses text handling other than Llama 2's."""
    normalizer, pre_tokenizer = tokenizer.get("normalizer"), tokenizer.get("pre_tokenizer")
    if isinstance(pre_tokenizer, dict) and pre_tokenizer.get("type") == "Metaspace":
        if normalizer is None and not pre_tokenizer.get("split", True):
            return bool(pre_tokenizer.get("prepend_scheme", "always") != "never")
    elif pre_tokenizer is None and isinstance(normalizer, dict):
        steps = normalizer.get("normalizers", [normalizer])
        prepend = {"type": "Prepend", "prepend": SPACE}
        replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
        if steps in ([prepend, replace], [replace]):
            return len(steps) == 2
    raise UnsupportedError(
        f"{path}: its way to handle spaces is not that of Llama 2: "
        "put the tokenizer.model beside it"
    )
