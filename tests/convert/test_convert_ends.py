"""What a checkpoint says of its tokens survives: ends of answers, spaces, tokens left out."""

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from helpers.converting import edit_json
from helpers.gguf_builder import rich_file
from helpers.tiny_tokenizer import VOCAB_SIZE, special_id, write_tokenizer

from q4run.convert.config import Config
from q4run.convert.options import ConversionOptions
from q4run.convert.source.gguf_source import GGUFSource
from q4run.convert.vocabulary.vocabulary import add_vocabulary
from q4run.errors import Error
from q4run.text.tokenizer import load_tokenizer

SPACE = "▁"


def keys_of(folder: Path, n_vocab: int = VOCAB_SIZE, **config: Any) -> dict[str, Any]:
    """The metadata a folder's tokenizer becomes, by key; notes under "notes"."""
    writer = gguf.GGUFWriter(None, "llama")
    notes = add_vocabulary(writer, folder, Config(config, "config.json"), n_vocab)
    return {key: value.value for key, value in writer.kv_data[0].items()} | {"notes": notes}


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    write_tokenizer("llama", tmp_path)
    return tmp_path


def test_all_ends_of_generation_config_survive(llama: Path) -> None:
    texts = ["<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"]
    ends = [special_id("llama", text) for text in texts]
    odd = [special_id("llama", "<|start_header_id|>"), VOCAB_SIZE - 1]
    (llama / "generation_config.json").write_text(json.dumps({"eos_token_id": [*ends, *odd]}))
    keys = keys_of(llama, eos_token_id=7)
    assert keys["tokenizer.ggml.eos_token_id"] == ends[2]
    assert keys["tokenizer.q4run.stop_token_ids"] == sorted([7, *ends, *odd])
    [note] = keys["notes"]
    assert "'<|start_header_id|>'" in note
    assert load_tokenizer(keys).stop_ids == {7, *ends, *odd}


def test_ends_that_gguf_has_room_for_need_no_key_of_ours(llama: Path) -> None:
    ends = [special_id("llama", text) for text in ("<|eot_id|>", "<|eom_id|>")]
    keys = keys_of(llama, eos_token_id=ends)
    assert "tokenizer.q4run.stop_token_ids" not in keys
    assert keys["notes"] == []


def test_an_end_without_a_role_becomes_the_end_of_a_turn(llama: Path) -> None:
    path = llama / "tokenizer.json"
    path.write_text(path.read_text().replace("<|eot_id|>", "<|over|>"))
    edit_json(llama / "tokenizer_config.json", eos_token="<|end_of_text|>")
    over = special_id("llama", "<|eot_id|>")
    keys = keys_of(llama, eos_token_id=[special_id("llama", "<|end_of_text|>"), over])
    assert keys["tokenizer.ggml.eot_token_id"] == over
    assert over in load_tokenizer(keys).stop_ids


def test_tokens_without_embeddings_or_with_anothers_text_are_left_out(llama: Path) -> None:
    added = json.loads((llama / "tokenizer.json").read_text())["added_tokens"]
    added.append({"id": VOCAB_SIZE, "content": "<pad>", "special": True})
    added[-2]["content"] = "the"
    added[-3]["content"] = "[PAD319]"
    edit_json(llama / "tokenizer.json", added_tokens=added)
    edit_json(llama / "tokenizer_config.json", pad_token="<pad>")
    keys = keys_of(llama)
    tokens = keys["tokenizer.ggml.tokens"]
    assert len(tokens) == len(set(tokens)) == VOCAB_SIZE
    assert "tokenizer.ggml.padding_token_id" not in keys
    assert keys["tokenizer.ggml.token_type"][-1] == (5 if tokens[-1].startswith("[PAD319]_") else 3)
    assert any("only 320 embeddings: '<pad>'" in note for note in keys["notes"])


def sentencepiece_json(**parts: Any) -> dict[str, Any]:
    """A tokenizer.json of SentencePiece BPE with three words and a user-defined run of spaces."""
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    texts += [SPACE, "a", f"{SPACE}a", SPACE * 2]
    added = [
        {"id": place, "content": text, "special": True} for place, text in enumerate(texts[:3])
    ]
    added.append({"id": len(texts) - 1, "content": SPACE * 2, "special": False})
    model = {
        "type": "BPE",
        "unk_token": "<unk>",
        "byte_fallback": True,
        "vocab": {text: place for place, text in enumerate(texts)},
        "merges": [[SPACE, "a"], [SPACE, SPACE]],
    }
    return {"added_tokens": added, "model": model, "normalizer": None} | parts


REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
PREPEND = {"type": "Prepend", "prepend": SPACE}
GEMMAS = {
    "type": "Split",
    "pattern": {"String": " "},
    "behavior": "MergedWithPrevious",
    "invert": False,
}


def metaspace(scheme: str) -> dict[str, Any]:
    return {
        "type": "Metaspace",
        "replacement": SPACE,
        "prepend_scheme": scheme,
        "split": False,
    }


@pytest.mark.parametrize(
    ("parts", "prefix", "own"),
    [
        ({"pre_tokenizer": metaspace("first")}, True, "first"),
        ({"pre_tokenizer": metaspace("always")}, True, "always"),
        ({"pre_tokenizer": metaspace("never")}, False, None),
        ({"normalizer": {"type": "Sequence", "normalizers": [PREPEND, REPLACE]}}, True, None),
        ({"normalizer": REPLACE}, False, None),
        ({"normalizer": REPLACE, "pre_tokenizer": GEMMAS}, False, None),
    ],
)
def test_where_spaces_go(
    parts: dict[str, Any], prefix: bool, own: str | None, tmp_path: Path
) -> None:
    tokenizer = sentencepiece_json(**parts)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    keys = keys_of(tmp_path, len(tokenizer["model"]["vocab"]))
    assert keys["tokenizer.ggml.add_space_prefix"] is prefix
    assert keys.get("tokenizer.q4run.space_prefix") == own
    assert ["GGUF has no word for it" in note for note in keys["notes"]] == [True] * bool(own)
    # Readers of GGUF look for user-defined tokens in the text as it is.
    assert keys["tokenizer.ggml.tokens"][-1] == "  "
    assert keys["tokenizer.ggml.token_type"][-1] == 4


def test_gemma4_keeps_its_merges(tmp_path: Path) -> None:
    tokenizer = sentencepiece_json(normalizer=REPLACE, pre_tokenizer=GEMMAS)
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
    keys = keys_of(tmp_path, len(tokenizer["model"]["vocab"]), model_type="gemma4_text")
    assert keys["tokenizer.ggml.model"] == keys["tokenizer.ggml.pre"] == "gemma4"
    assert keys["tokenizer.ggml.merges"] == [f"{SPACE} a", f"{SPACE} {SPACE}"]
    assert keys["tokenizer.ggml.token_type"][3] == 6
    loaded = load_tokenizer(keys)
    assert loaded.decode(loaded.encode("a a é")) == "a a é"


def test_a_gguf_gets_the_name_of_its_pre_tokenizer(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(rich_file())
    metadata, _ = GGUFSource(path).write_metadata("qwen2")
    assert metadata.kv_data[0]["tokenizer.ggml.pre"].value == "qwen2"
    with pytest.raises(Error, match="no pre-tokenizer 'quen2'; the nearest known: qwen2"):
        ConversionOptions(type="q8_0", pre="quen2")
