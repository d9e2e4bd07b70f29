"""Tokenizer files -> tokenizer.* keys: tokens, types, merges, scores, special ids, templates."""

import json
import random
import struct
from pathlib import Path
from typing import Any

import gguf
import pytest
from helpers.converting import edit_json
from helpers.tiny_tokenizer import SPLIT_PATTERN, VOCAB_SIZE, special_id, write_tokenizer

from q4run.convert.config import Config
from q4run.convert.vocabulary.vocabulary import add_vocabulary
from q4run.errors import FormatError, UnsupportedError
from q4run.gguf_file import open_gguf
from q4run.text.pre_tokenizers import PRE_TOKENIZERS, ROWS, PreTokenizer
from q4run.text.tokenizer import load_tokenizer

SPACE = "▁"


def keys_of(folder: Path, n_vocab: int, config: dict[str, Any] | None = None) -> dict[str, Any]:
    """The metadata a folder's tokenizer becomes, by key; notes under "notes"."""
    writer = gguf.GGUFWriter(None, "llama")
    notes = add_vocabulary(writer, folder, Config(config or {}, "config.json"), n_vocab)
    keys = {key: value.value for key, value in writer.kv_data[0].items()}
    return {key: value for key, value in keys.items() if key.startswith("tokenizer")} | {
        "notes": notes
    }


@pytest.fixture
def llama4(tmp_path):
    write_tokenizer("llama4", tmp_path)
    return tmp_path


def edit_tokenizer(folder: Path, part: str, **changes: Any) -> None:
    """Changes keys of one object in tokenizer.json."""
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    edit_json(folder / "tokenizer.json", **{part: tokenizer[part] | changes})


def test_keys_of_a_llama4_tokenizer(llama4):
    ids = [special_id("llama4", text) for text in ("<|end_of_text|>", "<|eom|>", "<|eot|>")]
    keys = keys_of(llama4, VOCAB_SIZE, {"eos_token_id": ids, "bos_token_id": 3})
    assert keys["tokenizer.ggml.model"] == "gpt2"
    assert keys["tokenizer.ggml.pre"] == "llama4"
    assert len(keys["tokenizer.ggml.tokens"]) == VOCAB_SIZE
    assert keys["tokenizer.ggml.merges"][:2] == ["Ġ t", "h e"]
    assert keys["tokenizer.ggml.bos_token_id"] == special_id("llama4", "<|begin_of_text|>")
    assert keys["tokenizer.ggml.eos_token_id"] == special_id("llama4", "<|eot|>")
    assert keys["tokenizer.ggml.eot_token_id"] == special_id("llama4", "<|eot|>")
    assert keys["tokenizer.ggml.eom_token_id"] == special_id("llama4", "<|eom|>")
    assert keys["tokenizer.ggml.padding_token_id"] == special_id("llama4", "<|finetune_right_pad|>")
    assert keys["tokenizer.ggml.add_bos_token"] is True
    assert keys["tokenizer.ggml.add_eos_token"] is False
    assert "<|header_start|>" in keys["tokenizer.chat_template"]
    types = keys["tokenizer.ggml.token_type"]
    bos = special_id("llama4", "<|begin_of_text|>")
    assert (types[bos - 1], types[bos]) == (1, 3)
    assert keys["notes"] == []


def test_ids_from_config_where_no_text_names_them(llama4):
    (llama4 / "tokenizer_config.json").unlink()
    edit_json(llama4 / "tokenizer.json", post_processor=None)
    keys = keys_of(llama4, VOCAB_SIZE, {"eos_token_id": [290, 5], "bos_token_id": 7})
    assert keys["tokenizer.ggml.eos_token_id"] == 290
    assert keys["tokenizer.ggml.bos_token_id"] == 7
    assert keys["tokenizer.ggml.add_bos_token"] is False
    assert "tokenizer.chat_template" not in keys
    (llama4 / "generation_config.json").write_text('{"eos_token_id": 9, "pad_token_id": -1}')
    keys = keys_of(llama4, VOCAB_SIZE, {"eos_token_id": [290, 5]})
    assert keys["tokenizer.ggml.eos_token_id"] == 9
    assert "tokenizer.ggml.padding_token_id" not in keys


def test_tokenizer_config_decides_about_bos(llama4):
    edit_json(llama4 / "tokenizer_config.json", add_bos_token=False)
    assert keys_of(llama4, VOCAB_SIZE)["tokenizer.ggml.add_bos_token"] is False


def test_holes_and_added_tokens(llama4):
    tokenizer = json.loads((llama4 / "tokenizer.json").read_text())
    added = [entry for entry in tokenizer["added_tokens"] if entry["id"] != 300]
    added.append({"id": VOCAB_SIZE, "content": "<tool>", "special": False})
    edit_json(llama4 / "tokenizer.json", added_tokens=added)
    keys = keys_of(llama4, VOCAB_SIZE + 3)
    tokens, types = keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.token_type"]
    assert (tokens[300], types[300]) == ("[PAD300]", 5)
    assert (tokens[VOCAB_SIZE], types[VOCAB_SIZE]) == ("<tool>", 4)
    assert (tokens[-1], types[-1]) == (f"[PAD{VOCAB_SIZE + 2}]", 5)
    assert len(tokens) == len(types) == VOCAB_SIZE + 3


def test_merges_as_strings(llama4):
    before = keys_of(llama4, VOCAB_SIZE)["tokenizer.ggml.merges"]
    edit_tokenizer(llama4, "model", merges=before)
    assert keys_of(llama4, VOCAB_SIZE)["tokenizer.ggml.merges"] == before


def published(row: PreTokenizer) -> list[tuple[str, ...]]:
    """All ways in which model files write a row's patterns, one after the other."""
    return [row.cuts.patterns, *row.cuts.published]


def pre_tokenizer(*patterns: str, **split: Any) -> dict[str, Any]:
    """A tokenizer.json's pre-tokenizer that cuts by the patterns in turn."""
    split = {"type": "Split", "behavior": "Isolated", "invert": False} | split
    steps: list[dict[str, Any]] = [split | {"pattern": {"Regex": pattern}} for pattern in patterns]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [*steps, byte_level]}


BYTE_LEVEL = [row for row in ROWS if row.byte_level]


@pytest.mark.parametrize("row", BYTE_LEVEL, ids=lambda row: row.names[0])
def test_every_known_pre_tokenizer(row, llama4):
    edit_tokenizer(llama4, "model", ignore_merges=row.ignore_merges)
    for patterns in published(row):
        edit_tokenizer(llama4, "pre_tokenizer", **pre_tokenizer(*patterns))
        keys = keys_of(llama4, VOCAB_SIZE)
        assert keys["tokenizer.ggml.pre"] == row.names[0]
        assert keys["notes"] == []


def test_matches_may_be_all_that_is_kept(llama4):
    patterns = PRE_TOKENIZERS["qwen2"].cuts.patterns
    steps = pre_tokenizer(*patterns, behavior="Removed", invert=True)
    edit_tokenizer(llama4, "pre_tokenizer", **steps)
    assert keys_of(llama4, VOCAB_SIZE)["tokenizer.ggml.pre"] == "qwen2"


def test_digits_then_byte_level(llama4):
    steps = [{"type": "Digits", "individual_digits": True}, {"type": "ByteLevel"}]
    edit_tokenizer(llama4, "pre_tokenizer", type="Sequence", pretokenizers=steps)
    assert keys_of(llama4, VOCAB_SIZE)["tokenizer.ggml.pre"] == "smollm"


def test_pre_tokenizer_spellings(llama4):
    pattern = SPLIT_PATTERN["llama"].replace(r"\r\n", "\r\n")
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated"}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
    steps = [split | {"invert": False}, byte_level]
    edit_tokenizer(llama4, "pre_tokenizer", type="Sequence", pretokenizers=steps)
    keys = keys_of(llama4, VOCAB_SIZE)
    assert keys["tokenizer.ggml.pre"] == "dbrx"
    edit_tokenizer(llama4, "model", ignore_merges=True)
    assert keys_of(llama4, VOCAB_SIZE)["tokenizer.ggml.pre"] == "llama-bpe"
    plain = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}
    edit_json(llama4 / "tokenizer.json", pre_tokenizer=plain)
    keys = keys_of(llama4, VOCAB_SIZE)
    assert keys["tokenizer.ggml.pre"] == "gpt-2"
    assert "ignore_merges" in keys["notes"][0]


@pytest.mark.parametrize(
    ("part", "changes", "named"),
    [
        ("pre_tokenizer", {"pretokenizers": [{"type": "ByteLevel", "use_regex": False}]}, "never"),
        (
            "pre_tokenizer",
            {"pretokenizers": [{"type": "Metaspace"}, {"type": "ByteLevel"}]},
            "Metaspace",
        ),
        ("model", {"byte_fallback": True}, "byte_fallback"),
        ("model", {"end_of_word_suffix": "</w>"}, "end_of_word_suffix"),
    ],
)
def test_tokenizer_features_gguf_cannot_tell(part, changes, named, llama4):
    edit_tokenizer(llama4, part, **changes)
    with pytest.raises(UnsupportedError, match=named):
        keys_of(llama4, VOCAB_SIZE)


def test_an_unknown_pattern_is_named(llama4):
    text = (llama4 / "tokenizer.json").read_text()
    (llama4 / "tokenizer.json").write_text(text.replace("{1,3}", "{1,7}"))
    with pytest.raises(UnsupportedError, match=r"\{1,7\}"):
        keys_of(llama4, VOCAB_SIZE)


@pytest.mark.parametrize("kind", ["WordPiece", "Unigram", None])
def test_other_kinds_of_tokenizer_are_named(kind, llama4):
    edit_tokenizer(llama4, "model", type=kind)
    edit_json(llama4 / "tokenizer.json", pre_tokenizer=None)
    with pytest.raises(UnsupportedError, match=str(kind)):
        keys_of(llama4, VOCAB_SIZE)


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab": {}},
        {"vocab": {"a": 1, "b": 1}, "merges": []},
        {"vocab": {"a": -1}, "merges": []},
        {"vocab": {"a": 10**6}, "merges": []},
        {"vocab": {"a": "0"}, "merges": []},
        {"merges": None},
        {"merges": ["a"]},
        {"merges": [["a", "b", "c"]]},
        {"merges": [["a", 3]]},
        {"merges": [["no", "token"]]},
        {"merges": [{}]},
    ],
)
def test_damaged_vocabularies(changes, llama4):
    edit_tokenizer(llama4, "model", **changes)
    with pytest.raises(FormatError, match=r"tokenizer\.json"):
        keys_of(llama4, VOCAB_SIZE)


@pytest.mark.parametrize(
    "added",
    [
        {},
        [3],
        [{"id": -4, "content": "x"}],
        [{"id": 400, "content": 3}],
        [{"id": True, "content": "x"}],
        [{"id": 3}],
    ],
)
def test_damaged_added_tokens(added, llama4):
    edit_json(llama4 / "tokenizer.json", post_processor=None)
    tokenizer = json.loads((llama4 / "tokenizer.json").read_text()) | {"added_tokens": added}
    (llama4 / "tokenizer.json").write_text(json.dumps(tokenizer))
    if added == {}:
        assert keys_of(llama4, VOCAB_SIZE)["tokenizer.ggml.tokens"][300] == "[PAD300]"
        return
    with pytest.raises(FormatError, match=r"tokenizer\.json"):
        keys_of(llama4, VOCAB_SIZE)


def test_no_tokenizer(tmp_path):
    with pytest.raises(FormatError, match=r"neither tokenizer\.json nor tokenizer\.model"):
        keys_of(tmp_path, VOCAB_SIZE)


def test_chat_templates_by_precedence(llama4):
    (llama4 / "chat_template.json").write_text('{"chat_template": "from json"}')
    assert keys_of(llama4, VOCAB_SIZE)["tokenizer.chat_template"] == "from json"
    (llama4 / "chat_template.jinja").write_text("from jinja")
    assert keys_of(llama4, VOCAB_SIZE)["tokenizer.chat_template"] == "from jinja"


def test_several_chat_templates(llama4):
    templates = [{"name": "default", "template": "A"}, {"name": "tool use", "template": "B"}]
    edit_json(llama4 / "tokenizer_config.json", chat_template=templates)
    keys = keys_of(llama4, VOCAB_SIZE)
    assert keys["tokenizer.chat_template"] == "A"
    assert keys["tokenizer.chat_template.tool_use"] == "B"
    assert keys["tokenizer.chat_templates"] == ["tool_use"]


@pytest.mark.parametrize("template", [3, [{"name": "default"}], ["text"]])
def test_a_chat_template_of_another_kind(template, llama4):
    edit_json(llama4 / "tokenizer_config.json", chat_template=template)
    with pytest.raises(FormatError, match="chat_template"):
        keys_of(llama4, VOCAB_SIZE)


@pytest.mark.parametrize("name", ["llama-bpe", "qwen2", "gpt-2"])
def test_real_byte_level_vocabularies_come_through_unchanged(name, shared_data, tmp_path):
    metadata = open_gguf(shared_data / "vocab" / f"ggml-vocab-{name}.gguf").metadata
    tokens = list(metadata["tokenizer.ggml.tokens"])
    types = [int(kind) for kind in metadata["tokenizer.ggml.token_type"]]
    merges = list(metadata["tokenizer.ggml.merges"])
    tokenizer = {
        "added_tokens": [
            {"id": token_id, "content": text, "special": kind == 3}
            for token_id, (text, kind) in enumerate(zip(tokens, types, strict=True))
            if kind in (3, 4)
        ],
        "pre_tokenizer": pre_tokenizer(*PRE_TOKENIZERS[name].cuts.patterns),
        "model": {
            "type": "BPE",
            "ignore_merges": name == "llama-bpe",
            "vocab": {text: i for i, text in enumerate(tokens) if types[i] == 1},
            "merges": [merge.split(" ") for merge in merges],
        },
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    keys = keys_of(tmp_path, len(tokens))
    assert keys["tokenizer.ggml.pre"] == name
    assert keys["tokenizer.ggml.tokens"] == tokens
    assert keys["tokenizer.ggml.token_type"] == types
    assert keys["tokenizer.ggml.merges"] == merges
    assert keys["notes"] == []


def varint(number: int) -> bytes:
    result = bytearray()
    while number > 127:
        result.append(number & 127 | 128)
        number >>= 7
    return bytes([*result, number])


def field(number: int, value: bytes | int | float) -> bytes:
    """One protobuf field: bytes and messages, varints, floats."""
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


def sentencepiece_model(
    pieces: list[tuple[str, float, int]], model_type: int = 2, normalizer: bytes | None = None
) -> bytes:
    """A tokenizer.model; scores as floats, types as SentencePiece numbers them."""
    data = b"".join(
        field(1, field(1, text.encode()) + field(2, score) + (field(3, kind) if kind != 1 else b""))
        for text, score, kind in pieces
    )
    trainer = (
        field(3, model_type) + field(40, 0) + field(41, 1) + field(42, 2) + field(43, 2**64 - 1)
    )
    if normalizer is None:
        normalizer = field(1, b"identity") + field(3, 1) + field(4, 0)
    return data + field(2, trainer) + field(3, normalizer)


PIECES = [
    ("<unk>", 0.0, 2),
    ("<s>", 0.0, 3),
    ("</s>", 0.0, 3),
    *((f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)),
    ("he", -1.0, 1),
    (f"{SPACE}he", -2.0, 1),
    (SPACE, -3.0, 1),
    ("h", -4.0, 1),
    ("e", -5.0, 1),
]


@pytest.fixture
def sentencepiece(tmp_path):
    (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(PIECES))
    return tmp_path


def test_keys_of_a_sentencepiece_model(sentencepiece):
    config = {"bos_token": {"content": "<s>"}, "eos_token": "</s>", "unk_token": "<unk>"}
    added = {
        str(len(PIECES)): {"content": "<|im_end|>", "special": True},
        str(len(PIECES) + 1): {"content": "<tool>", "special": False},
        "0": {"content": "<unk>", "special": True},
    }
    config_path = sentencepiece / "tokenizer_config.json"
    config_path.write_text(json.dumps(config | {"added_tokens_decoder": added}))
    keys = keys_of(sentencepiece, len(PIECES) + 3)
    assert keys["tokenizer.ggml.model"] == "llama"
    assert keys["tokenizer.ggml.pre"] == "default"
    texts, scores, types = zip(*PIECES, strict=True)
    n = len(PIECES)
    assert tuple(keys["tokenizer.ggml.tokens"][:n]) == texts
    assert tuple(keys["tokenizer.ggml.scores"][:n]) == scores
    assert tuple(keys["tokenizer.ggml.token_type"][:n]) == types
    assert keys["tokenizer.ggml.tokens"][n:] == ["<|im_end|>", "<tool>", f"[PAD{n + 2}]"]
    assert keys["tokenizer.ggml.token_type"][n:] == [3, 4, 5]
    assert keys["tokenizer.ggml.scores"][n:] == [-1000.0, -1000.0, -10000.0]
    ids = {role: keys[f"tokenizer.ggml.{role}_token_id"] for role in ("bos", "eos", "unknown")}
    assert ids == {"bos": 1, "eos": 2, "unknown": 0}
    assert keys["tokenizer.ggml.eot_token_id"] == n
    assert keys["tokenizer.ggml.add_bos_token"] is True
    assert keys["tokenizer.ggml.add_space_prefix"] is True
    assert "tokenizer.ggml.padding_token_id" not in keys
    assert "tokenizer.ggml.merges" not in keys


def test_added_tokens_json(sentencepiece):
    (sentencepiece / "added_tokens.json").write_text(json.dumps({"<|x|>": len(PIECES)}))
    keys = keys_of(sentencepiece, len(PIECES) + 1)
    assert keys["tokenizer.ggml.tokens"][-1] == "<|x|>"
    assert keys["tokenizer.ggml.token_type"][-1] == 3
    left_out = keys_of(sentencepiece, len(PIECES))
    assert len(left_out["tokenizer.ggml.tokens"]) == len(PIECES)
    assert left_out["notes"] == [
        f"left out, for the model has only {len(PIECES)} embeddings: '<|x|>'"
    ]


@pytest.mark.parametrize(
    ("model_type", "named"), [(1, "unigram"), (3, "word"), (4, "char"), (9, "unknown")]
)
def test_other_kinds_of_sentencepiece_are_named(model_type, named, sentencepiece):
    path = sentencepiece / "tokenizer.model"
    path.write_bytes(sentencepiece_model(PIECES, model_type))
    with pytest.raises(UnsupportedError, match=named):
        keys_of(sentencepiece, len(PIECES))


@pytest.mark.parametrize(
    ("normalizer", "named"),
    [(field(2, b"table") + field(4, 0), "normalisation"), (field(4, 1), "white space")],
)
def test_sentencepiece_normalisation(normalizer, named, sentencepiece):
    path = sentencepiece / "tokenizer.model"
    path.write_bytes(sentencepiece_model(PIECES, normalizer=normalizer))
    with pytest.raises(UnsupportedError, match=named):
        keys_of(sentencepiece, len(PIECES))


def test_no_space_prefix(sentencepiece):
    normalizer = field(3, 0) + field(4, 0)
    path = sentencepiece / "tokenizer.model"
    path.write_bytes(sentencepiece_model(PIECES, normalizer=normalizer))
    assert keys_of(sentencepiece, len(PIECES))["tokenizer.ggml.add_space_prefix"] is False


def test_damaged_sentencepiece_models_never_crash(sentencepiece):
    path = sentencepiece / "tokenizer.model"
    data = path.read_bytes()
    numbers = random.Random(0)
    messages = []
    for case in range(600):
        damaged = bytearray(data[: numbers.randrange(len(data))] if case % 3 == 0 else data)
        for _ in range(numbers.randint(1, 3)):
            if damaged:
                damaged[numbers.randrange(len(damaged))] = numbers.randrange(256)
        path.write_bytes(damaged)
        try:
            keys_of(sentencepiece, len(PIECES))
        except (FormatError, UnsupportedError) as error:
            messages.append(str(error))
    assert len(messages) > 200
    assert all("tokenizer.model" in message for message in messages)


def sentencepiece_json(pieces: list[tuple[str, float, int]]) -> dict[str, Any]:
    """The tokenizer.json that transformers makes of a SentencePiece BPE model."""
    vocab = {text: token_id for token_id, (text, _, _) in enumerate(pieces)}
    merges = []
    for text, score, kind in pieces:
        splits = ((text[:i], text[i:]) for i in range(1, len(text)))
        parts = [pair for pair in splits if pair[0] in vocab and pair[1] in vocab]
        if kind == 1:
            parts.sort(key=lambda pair: (vocab[pair[0]], vocab[pair[1]]))
            merges += [(score, left, right) for left, right in parts]
    merges.sort(key=lambda merge: (merge[0], len(merge[1]), len(merge[2])), reverse=True)
    start = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    return {
        "added_tokens": [{"id": i, "content": pieces[i][0], "special": True} for i in range(3)],
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [start, {"Sequence": {"id": "A", "type_id": 0}}],
        },
        "model": {
            "type": "BPE",
            "byte_fallback": True,
            "unk_token": "<unk>",
            "vocab": vocab,
            "merges": [[left, right] for _, left, right in merges],
        },
    }


@pytest.fixture
def as_json(tmp_path):
    (tmp_path / "tokenizer.json").write_text(json.dumps(sentencepiece_json(PIECES)))
    return tmp_path


def test_sentencepiece_from_tokenizer_json(as_json):
    keys = keys_of(as_json, len(PIECES), {"eos_token_id": 2})
    assert keys["tokenizer.ggml.model"] == "llama"
    assert keys["tokenizer.ggml.tokens"] == [text for text, _, _ in PIECES]
    assert keys["tokenizer.ggml.token_type"] == [kind for _, _, kind in PIECES]
    scores = dict(zip(keys["tokenizer.ggml.tokens"], keys["tokenizer.ggml.scores"], strict=True))
    assert scores["he"] > scores[f"{SPACE}he"] > scores["h"]
    assert keys["tokenizer.ggml.bos_token_id"] == 1
    assert keys["tokenizer.ggml.unknown_token_id"] == 0
    assert keys["tokenizer.ggml.add_bos_token"] is True
    assert keys["tokenizer.ggml.add_space_prefix"] is True


@pytest.mark.parametrize(
    ("scheme", "prepends"), [("first", True), ("always", True), ("never", False)]
)
def test_spaces_by_a_metaspace_pre_tokenizer(scheme, prepends, as_json):
    metaspace = {"type": "Metaspace", "replacement": SPACE, "split": False}
    edit_json(
        as_json / "tokenizer.json",
        normalizer=None,
        pre_tokenizer=metaspace | {"prepend_scheme": scheme},
    )
    assert keys_of(as_json, len(PIECES))["tokenizer.ggml.add_space_prefix"] is prepends


def test_spaces_in_another_way_are_refused(as_json):
    edit_json(as_json / "tokenizer.json", normalizer={"type": "NFKC"})
    with pytest.raises(UnsupportedError, match="spaces"):
        keys_of(as_json, len(PIECES))


def test_merges_that_no_scores_explain_are_refused(as_json):
    pieces = [(text, 0.0, 1) for text in ("a", "b", "c", "ab", "bc", "abc")]
    tokenizer = sentencepiece_json(PIECES)
    texts = [text for text, _, _ in PIECES] + [text for text, _, _ in pieces]
    tokenizer["model"]["vocab"] = {text: token_id for token_id, text in enumerate(texts)}
    tokenizer["model"]["merges"] = [["a", "bc"], ["a", "b"], ["b", "c"], ["ab", "c"]]
    (as_json / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UnsupportedError, match="SentencePiece"):
        keys_of(as_json, len(texts))


@pytest.mark.parametrize("form", ["model", "json"])
def test_the_real_llama_2_vocabulary(form, shared_data, tmp_path):
    path = shared_data / "vocab" / "ggml-vocab-llama-spm.gguf"
    metadata = open_gguf(path).metadata
    pieces = [
        (text, float(score), int(kind))
        for text, score, kind in zip(
            metadata["tokenizer.ggml.tokens"],
            metadata["tokenizer.ggml.scores"],
            metadata["tokenizer.ggml.token_type"],
            strict=True,
        )
    ]
    if form == "model":
        (tmp_path / "tokenizer.model").write_bytes(sentencepiece_model(pieces))
    else:
        (tmp_path / "tokenizer.json").write_text(json.dumps(sentencepiece_json(pieces)))
    keys = keys_of(tmp_path, len(pieces), {"eos_token_id": 2})
    assert keys["tokenizer.ggml.tokens"] == [text for text, _, _ in pieces]
    assert keys["tokenizer.ggml.token_type"] == [kind for _, _, kind in pieces]
    tokenizer = load_tokenizer(keys)
    texts = path.with_name(path.name + ".inp").read_text(encoding="utf-8")
    expected = path.with_name(path.name + ".out").read_text().splitlines()
    cases = texts.split("\n__ggml_vocab_test__\n")[: len(expected)]
    assert len(expected) > 40
    for text, ids in zip(cases, expected, strict=True):
        assert tokenizer.encode(text, add_bos=False) == [int(number) for number in ids.split()]
