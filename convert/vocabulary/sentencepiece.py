"""SentencePiece vocabularies of the Llama 2 kind: GGUF's tokenizer model ``llama``.

From ``tokenizer.model`` (a protobuf: sentencepiece_model.proto of google/sentencepiece).
"""

import math
from pathlib import Path

from q4run.convert.config import read_file, read_json
from q4run.convert.vocabulary.protobuf import FieldValue, read_fields, to_bytes, to_float, to_int
from q4run.convert.vocabulary.tokens import (
    BYTE,
    CONTROL,
    NORMAL,
    TokenTable,
    Vocabulary,
    read_added_decoder,
    spell_spaces,
)
from q4run.errors import FormatError, UnsupportedError
from q4run.text.vocabulary import SpacePrefix

# Field numbers of ModelProto, SentencePiece, TrainerSpec and NormalizerSpec.
PIECES, TRAINER, NORMALIZER = 1, 2, 3
PIECE_TEXT, PIECE_SCORE, PIECE_TYPE = 1, 2, 3
MODEL_TYPE, SPECIAL_ID_FIELDS = 3, {"unk": 40, "bos": 41, "eos": 42, "pad": 43}
CHARSMAP, ADD_DUMMY_PREFIX, REMOVE_EXTRA_WHITESPACES = 2, 3, 4

MODEL_TYPES = {1: "unigram", 2: "BPE", 3: "word", 4: "char"}
BPE = 2
DEFAULT_IDS = {"unk": 0, "bos": 1, "eos": 2}


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
    vocabulary = Vocabulary("llama", "default", *table.finish(), notes=table.notes())
    for role, number in SPECIAL_ID_FIELDS.items():
        special_id = trainer.get(number, DEFAULT_IDS.get(role, -1))
        if isinstance(special_id, int) and 0 <= special_id < len(pieces):
            vocabulary.special_ids[role] = special_id
    vocabulary.add_bos = True  # as Llama's own tokenizer does unless told otherwise
    prefixed = normalizer.get(ADD_DUMMY_PREFIX, 1)
    vocabulary.space_prefix = SpacePrefix.EVERY if prefixed else SpacePrefix.NEVER
    spell_spaces(vocabulary)
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
            table.put_added(token_id, text, CONTROL)
    for token_id, text, kind in read_added_decoder(folder):
        # The model's own control and unknown tokens are listed again: they keep their types.
        if token_id >= table.n_vocab or table.is_free(token_id):
            table.put_added(token_id, text, kind)
