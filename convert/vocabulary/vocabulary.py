"""The tokenizer files of a checkpoint -> ``tokenizer.*`` keys: tokens, special ids, template."""

from pathlib import Path
from typing import Any

import gguf

from q4run.convert.config import Config, read_json
from q4run.convert.vocabulary.byte_level_bpe import is_byte_level, read_byte_level_bpe
from q4run.convert.vocabulary.chat_template import add_chat_template
from q4run.convert.vocabulary.sentencepiece import (
    is_sentencepiece_json,
    read_sentencepiece,
    read_sentencepiece_json,
)
from q4run.convert.vocabulary.tokens import CONTROL, Vocabulary
from q4run.errors import FormatError, UnsupportedError

# Tokens that end a turn or a message, by the text that chat models give them.
END_OF_TURN = ("<|eot|>", "<|eot_id|>", "<|im_end|>", "<end_of_turn>", "<|end|>")
END_OF_MESSAGE = ("<|eom|>", "<|eom_id|>")


def add_vocabulary(
    metadata: gguf.GGUFWriter, folder: Path, config: Config, n_vocab: int
) -> list[str]:
    """Adds all that GGUF says of the tokenizer; returns notes for the person who converts.

    ``config`` is the language model's. Raises ``FormatError`` for damaged tokenizer files,
    ``UnsupportedError`` for a kind of tokenizer GGUF readers do not know.
    """
    vocabulary = _read_vocabulary(folder, n_vocab)
    neighbours = [
        read_json(folder / name)
        for name in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json")
        if (folder / name).is_file()
    ]
    special_ids = _special_ids(vocabulary, [*neighbours, config.values], n_vocab)

    metadata.add_tokenizer_model(vocabulary.model)
    metadata.add_tokenizer_pre(vocabulary.pre)
    metadata.add_token_list(vocabulary.tokens)
    metadata.add_token_types(vocabulary.types)
    metadata.add_token_scores(vocabulary.scores)
    metadata.add_token_merges(vocabulary.merges)
    for role, token_id in special_ids.items():
        getattr(metadata, f"add_{role}_token_id")(token_id)
    add_bos, add_eos = _added_around(vocabulary, neighbours)
    metadata.add_add_bos_token(add_bos and "bos" in special_ids)
    metadata.add_add_eos_token(add_eos and "eos" in special_ids)
    if vocabulary.add_space_prefix is not None:
        metadata.add_add_space_prefix(vocabulary.add_space_prefix)
    add_chat_template(metadata, folder)
    return vocabulary.notes


def _read_vocabulary(folder: Path, n_vocab: int) -> Vocabulary:
    """The vocabulary; a byte-level tokenizer.json counts before a tokenizer.model."""
    json_path, model_path = folder / "tokenizer.json", folder / "tokenizer.model"
    tokenizer = read_json(json_path) if json_path.is_file() else None
    if tokenizer is not None and is_byte_level(tokenizer):
        return read_byte_level_bpe(json_path, tokenizer, n_vocab)
    if model_path.is_file():
        return read_sentencepiece(model_path, n_vocab)
    if tokenizer is None:
        raise FormatError(f"{folder}: holds neither tokenizer.json nor tokenizer.model")
    if is_sentencepiece_json(tokenizer):
        return read_sentencepiece_json(json_path, tokenizer, n_vocab)
    model = tokenizer.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    raise UnsupportedError(
        f"{json_path}: a tokenizer of the kind {str(kind)[:40]} is not supported "
        "(known: byte-level BPE, SentencePiece BPE)"
    )


def _special_ids(
    vocabulary: Vocabulary, sources: list[dict[str, Any]], n_vocab: int
) -> dict[str, int]:
    """Token ids by role (bos, eos, unk, pad, eot, eom).

    The text under ``eos_token`` counts before the number under ``eos_token_id``, as in llama.cpp's
    converter, because chat models put the token that ends a turn there. GGUF has room for one
    eos; of a list of numbers the first is taken, and tokens known to end turns or messages have
    roles of their own, so that generation stops at them too.
    """
    by_text = {text: token_id for token_id, text in enumerate(vocabulary.tokens)}
    result = {}
    for role in ("bos", "eos", "unk", "pad"):
        texts = [_text_of(source.get(f"{role}_token")) for source in sources]
        numbers = [_number_of(source.get(f"{role}_token_id")) for source in sources]
        known = [by_text[text] for text in texts if text in by_text]
        known += [number for number in numbers if number is not None and 0 <= number < n_vocab]
        if not known and role in vocabulary.special_ids:
            known = [vocabulary.special_ids[role]]
        if known:
            result[role] = known[0]
    for role, candidates in (("eot", END_OF_TURN), ("eom", END_OF_MESSAGE)):
        for text in candidates:
            token_id = by_text.get(text)
            if token_id is not None and vocabulary.types[token_id] == CONTROL:
                result[role] = token_id
                break
    return result


def _text_of(value: Any) -> str | None:
    """A special token's text: a string, or an object that has it under ``content``."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _number_of(value: Any) -> int | None:
    if isinstance(value, list) and value:
        value = value[0]
    return value if type(value) is int else None


def _added_around(vocabulary: Vocabulary, sources: list[dict[str, Any]]) -> tuple[bool, bool]:
    """Whether bos and eos go around a text: by tokenizer_config.json, else by the tokenizer."""
    result = []
    for key, own in (("add_bos_token", vocabulary.add_bos), ("add_eos_token", vocabulary.add_eos)):
        stated = [source[key] for source in sources if isinstance(source.get(key), bool)]
        result.append(stated[0] if stated else bool(own))
    return result[0], result[1]
