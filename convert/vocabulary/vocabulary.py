"""The tokenizer files of a checkpoint -> ``tokenizer.*`` keys: tokens, special ids, template."""

from pathlib import Path
from typing import Any

import gguf

from q4run.convert.config import Config, read_json
from q4run.convert.vocabulary.byte_level_bpe import read_byte_level_bpe, read_utf8_bpe
from q4run.convert.vocabulary.chat_template import add_chat_template
from q4run.convert.vocabulary.ends import special_ids, stop_ids
from q4run.convert.vocabulary.pre_tokenizer import is_byte_level
from q4run.convert.vocabulary.ranks import TIKTOKEN_FILES, read_tekken, read_tiktoken
from q4run.convert.vocabulary.sentencepiece import read_sentencepiece
from q4run.convert.vocabulary.sentencepiece_json import (
    is_sentencepiece_json,
    read_sentencepiece_json,
    space_prefix_of,
)
from q4run.convert.vocabulary.tokens import Vocabulary
from q4run.errors import FormatError, UnsupportedError
from q4run.text.keys import SPACE_PREFIX_KEY, STOP_IDS_KEY
from q4run.text.vocabulary import GEMMA4, SpacePrefix

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tekken.json", *TIKTOKEN_FILES)


def add_vocabulary(
    metadata: gguf.GGUFWriter,
    folder: Path,
    config: Config,
    n_vocab: int,
    pre: str | None = None,
) -> list[str]:
    """Adds all that GGUF says of the tokenizer; returns notes for the person who converts.

    ``config`` is the language model's; ``pre`` names the pre-tokenizer to write, whatever the files
    say. Raises ``FormatError`` for damaged tokenizer files, ``UnsupportedError`` for a kind of
    tokenizer GGUF readers do not know.
    """
    vocabulary = _read_vocabulary(folder, config, n_vocab, pre)
    tokenizer_config, *others = (
        read_json(folder / name) if (folder / name).is_file() else {}
        for name in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
    )
    neighbours = [tokenizer_config, *others]
    sources = [*neighbours, config.values]
    ids = special_ids(vocabulary, sources)
    stops, stop_notes = stop_ids(vocabulary, ids, sources)

    metadata.add_tokenizer_model(vocabulary.model)
    metadata.add_tokenizer_pre(vocabulary.pre)
    metadata.add_token_list(vocabulary.tokens)
    metadata.add_token_types(vocabulary.types)
    metadata.add_token_scores(vocabulary.scores)
    metadata.add_token_merges(vocabulary.merges)
    for role, token_id in ids.items():
        getattr(metadata, f"add_{role}_token_id")(token_id)
    if stops:
        metadata.add_array(STOP_IDS_KEY, stops)
    add_bos, add_eos = _added_around(vocabulary, neighbours)
    metadata.add_add_bos_token(add_bos and "bos" in ids)
    metadata.add_add_eos_token(add_eos and "eos" in ids)
    space_notes = _add_space_prefix(metadata, vocabulary.space_prefix)
    add_chat_template(metadata, folder)
    return [*vocabulary.notes, *stop_notes, *space_notes]


def _read_vocabulary(folder: Path, config: Config, n_vocab: int, pre: str | None) -> Vocabulary:
    """The vocabulary; a byte-level tokenizer.json counts before a tokenizer.model, and both before
    files that have no merges."""
    json_path, model_path = folder / "tokenizer.json", folder / "tokenizer.model"
    tokenizer = read_json(json_path) if json_path.is_file() else None
    if tokenizer is not None and is_byte_level(tokenizer):
        return read_byte_level_bpe(json_path, tokenizer, n_vocab, pre)
    if model_path.is_file():
        vocabulary = read_sentencepiece(model_path, n_vocab)
        _follow_fast_tokenizer(vocabulary, json_path, tokenizer)
        return vocabulary
    if tokenizer is None:
        return _read_ranks(folder, n_vocab, pre)
    if is_sentencepiece_json(tokenizer):
        if str(config.values.get("model_type")).startswith(GEMMA4):
            return read_utf8_bpe(json_path, tokenizer, n_vocab)
        return read_sentencepiece_json(json_path, tokenizer, n_vocab)
    model = tokenizer.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    raise UnsupportedError(
        f"{json_path}: a tokenizer of the kind {str(kind)[:40]} is not supported "
        "(known: byte-level BPE, SentencePiece BPE)"
    )


def _read_ranks(folder: Path, n_vocab: int, pre: str | None) -> Vocabulary:
    """The vocabulary of a folder that has neither tokenizer.json nor tokenizer.model."""
    tekken = folder / "tekken.json"
    if tekken.is_file():
        return read_tekken(tekken, n_vocab, pre)
    for name in TIKTOKEN_FILES:
        if (folder / name).is_file():
            return read_tiktoken(folder / name, n_vocab, pre)
    raise FormatError(
        f"{folder}: holds neither tokenizer.json nor tokenizer.model, nor tekken.json, nor one of"
        f" {', '.join(TIKTOKEN_FILES)}"
    )


def _follow_fast_tokenizer(
    vocabulary: Vocabulary, path: Path, tokenizer: dict[str, Any] | None
) -> None:
    """Puts spaces where the tokenizer.json beside a tokenizer.model does, which is what runs."""
    if tokenizer is None or not is_sentencepiece_json(tokenizer):
        return
    try:
        vocabulary.space_prefix = space_prefix_of(path, tokenizer)
    except UnsupportedError:
        vocabulary.notes.append(
            f"{path.name} handles spaces in a way of its own: those of tokenizer.model are kept"
        )


def _add_space_prefix(metadata: gguf.GGUFWriter, prefix: SpacePrefix | None) -> list[str]:
    """GGUF says whether there is a space before text; where, if not everywhere, a key of q4run's
    own says."""
    if prefix is None:
        return []
    metadata.add_add_space_prefix(prefix != SpacePrefix.NEVER)
    if prefix in (SpacePrefix.NEVER, SpacePrefix.EVERY):
        return []
    metadata.add_string(SPACE_PREFIX_KEY, prefix)
    where = "the first text" if prefix == SpacePrefix.FIRST else "text that begins without one"
    return [
        f"this tokenizer puts a space only before {where}; GGUF has no word for it: q4run does so"
        " too, other readers put one after every special token"
    ]


def _added_around(vocabulary: Vocabulary, sources: list[dict[str, Any]]) -> tuple[bool, bool]:
    """Whether bos and eos go around a text: by tokenizer_config.json, else by the tokenizer."""
    result = []
    for key, own in (("add_bos_token", vocabulary.add_bos), ("add_eos_token", vocabulary.add_eos)):
        stated = [source[key] for source in sources if isinstance(source.get(key), bool)]
        result.append(stated[0] if stated else bool(own))
    return result[0], result[1]
