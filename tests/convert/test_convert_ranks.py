"""Vocabularies without merges: tekken.json and *.tiktoken become byte-level BPE."""

import base64
import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from helpers.made_texts import made_texts, made_vocabulary
from tokenizers import Regex
from tokenizers.pre_tokenizers import ByteLevel, Split

from q4run.convert.config import Config
from q4run.convert.vocabulary.vocabulary import add_vocabulary
from q4run.errors import FormatError, UnsupportedError
from q4run.text.pre_tokenizers import PRE_TOKENIZERS
from q4run.text.tokenizer import load_tokenizer


def keys_of(folder: Path, n_vocab: int, pre: str | None = None) -> dict[str, Any]:
    """The metadata a folder's tokenizer becomes, by key; notes under "notes"."""
    writer = gguf.GGUFWriter(None, "llama")
    notes = add_vocabulary(writer, folder, Config({}, "config.json"), n_vocab, pre)
    return {key: value.value for key, value in writer.kv_data[0].items()} | {"notes": notes}


def ranks() -> dict[bytes, int]:
    """The made vocabulary as byte strings and their ranks, the bytes first."""
    vocab, _ = made_vocabulary()
    alphabet = sorted(ByteLevel.alphabet())
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    bytes_of = {chr(byte): byte for byte in printable}
    bytes_of |= {chr(256 + place): byte for place, byte in enumerate(others)}
    assert set(alphabet) == set(bytes_of)
    texts = sorted(vocab, key=lambda text: (len(text) > 1, vocab[text]))
    tokens = [bytes(bytes_of[character] for character in text) for text in texts]
    return {token: rank for rank, token in enumerate(tokens)}


def joined_by_rank(word: bytes, known: dict[bytes, int]) -> list[int]:
    """The ranks that tiktoken gives a word: join the two neighbours with the lowest rank."""
    if word in known:
        return [known[word]]
    parts = [word[place : place + 1] for place in range(len(word))]
    while True:
        pairs = [parts[place] + parts[place + 1] for place in range(len(parts) - 1)]
        found = [(known[pair], place) for place, pair in enumerate(pairs) if pair in known]
        if not found:
            return [known[part] for part in parts]
        _, place = min(found)
        parts[place : place + 2] = [parts[place] + parts[place + 1]]


def reference(text: str, pre: str, known: dict[bytes, int]) -> list[int]:
    [pattern] = PRE_TOKENIZERS[pre].cuts.patterns
    words = Split(Regex(pattern), "isolated").pre_tokenize_str(text)
    return [rank for word, _ in words for rank in joined_by_rank(word.encode(), known)]


def write_tekken(folder: Path, **config: Any) -> int:
    """Writes a tekken.json with 30 special tokens; returns the size of its vocabulary."""
    known = ranks()
    whole = {
        "config": {
            "pattern": PRE_TOKENIZERS["tekken"].cuts.patterns[0],
            "default_vocab_size": len(known) + 30,
            "default_num_special_tokens": 30,
        }
        | config,
        "vocab": [
            {"rank": rank, "token_bytes": base64.b64encode(token).decode(), "token_str": None}
            for token, rank in known.items()
        ]
        + [{"rank": len(known), "token_bytes": base64.b64encode(b"beyond").decode()}],
        "special_tokens": [{"rank": 21, "token_str": "[THINK]", "is_control": False}],
    }
    (folder / "tekken.json").write_text(json.dumps(whole))
    return len(known) + 30


def test_tekken(tmp_path: Path) -> None:
    n_vocab = write_tekken(tmp_path)
    keys = keys_of(tmp_path, n_vocab)
    assert keys["tokenizer.ggml.pre"] == "tekken"
    assert keys["tokenizer.ggml.tokens"][:4] == ["<unk>", "<s>", "</s>", "[INST]"]
    assert keys["tokenizer.ggml.tokens"][21:23] == ["[THINK]", "<SPECIAL_22>"]
    assert keys["tokenizer.ggml.token_type"][20:23] == [3, 4, 3]
    assert keys["tokenizer.ggml.bos_token_id"] == 1
    assert keys["tokenizer.ggml.eos_token_id"] == 2
    assert keys["tokenizer.ggml.add_bos_token"] is True
    assert keys["notes"] == []
    tokenizer = load_tokenizer(keys)
    known = ranks()
    for text in made_texts(200):
        ids = [30 + rank for rank in reference(text, "tekken", known)]
        assert tokenizer.encode(text, add_bos=False) == ids
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    ("name", "pre", "special"),
    [
        ("qwen.tiktoken", "qwen2", ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|extra_0|>"]),
        ("hy.tiktoken", "hunyuan", ["<|endoftext|>", "<|startoftext|>", "<|bos|>", "<|eos|>"]),
        ("tiktoken.model", "kimi-k2", ["[BOS]", "<|reserved_token_901|>"]),
    ],
)
def test_tiktoken(name: str, pre: str, special: list[str], tmp_path: Path) -> None:
    known = ranks()
    lines = [b"%s %d" % (base64.b64encode(token), rank) for token, rank in known.items()]
    (tmp_path / name).write_bytes(b"\n".join(lines))
    if name == "tiktoken.model":
        added = {str(len(known)): {"content": "[BOS]", "special": True}}
        config = {"added_tokens_decoder": added, "bos_token": "[BOS]"}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    keys = keys_of(tmp_path, len(known) + 300)
    assert keys["tokenizer.ggml.pre"] == pre
    assert keys["tokenizer.ggml.tokens"][len(known) :][: len(special)] == special
    assert keys["tokenizer.ggml.token_type"][len(known)] == 3
    assert keys["tokenizer.ggml.token_type"][-1] == 5
    tokenizer = load_tokenizer(keys)
    for text in made_texts(200):
        assert tokenizer.encode(text, add_bos=False) == reference(text, pre, known)


def test_a_pattern_that_no_name_stands_for(tmp_path: Path) -> None:
    n_vocab = write_tekken(tmp_path, pattern="[a-z]+")
    with pytest.raises(UnsupportedError, match=r"--pre NAME.*\[a-z\]\+"):
        keys_of(tmp_path, n_vocab)
    keys = keys_of(tmp_path, n_vocab, "qwen2")
    assert keys["tokenizer.ggml.pre"] == "qwen2"
    assert "'qwen2'" in keys["notes"][0]


@pytest.mark.parametrize(
    "line", [b"YQ==", b"YQ== x", b"YQ== -1", b"!! 3", b" 3", b"YQ== 99999", b"YQ== 9999999999"]
)
def test_damaged_tiktoken_files(line: bytes, tmp_path: Path) -> None:
    (tmp_path / "qwen.tiktoken").write_bytes(line)
    with pytest.raises(FormatError, match=r"qwen\.tiktoken"):
        keys_of(tmp_path, 300)


@pytest.mark.parametrize(
    "changes",
    [
        {"config": {}},
        {"vocab": {}},
        {"vocab": [3]},
        {"vocab": [{"rank": 0, "token_bytes": "!"}]},
        {"vocab": [{"rank": 7, "token_bytes": "YQ=="}]},
        {"special_tokens": [3]},
    ],
)
def test_damaged_tekken_files(changes: dict[str, Any], tmp_path: Path) -> None:
    n_vocab = write_tekken(tmp_path)
    path = tmp_path / "tekken.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(FormatError, match=r"tekken\.json"):
        keys_of(tmp_path, n_vocab)
