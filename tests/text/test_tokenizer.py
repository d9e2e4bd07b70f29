"""Tokenizers from GGUF vocabularies: llama.cpp's own cases, Hugging Face's library, borders."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Regex
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers.pre_tokenizers import Split

from q4run.errors import Error, FormatError, UnsupportedError
from q4run.gguf_file import open_gguf
from q4run.text import long_text
from q4run.text.pre_tokenizers import PRE_TOKENIZERS
from q4run.text.stream import TextStream
from q4run.text.tokenizer import Tokenizer, load_tokenizer

VOCABULARIES = ["gpt-2", "llama-bpe", "llama-spm", "qwen2"]
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6

ODD_TEXTS = [
    "",
    "\0",
    "a\0b\x01\x7f\x80",
    "  leading, trailing  ",
    " \t\n\r\n \u00a0\u2028\u3000\v\f ",
    "👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301 ﬁ ǅ İ ß ½ ① Ⅷ",
    "Ünïcödé नमस्ते สวัสดี 안녕하세요 你好 שלום مرحبا Привет Γειά",
    "<s></s><unk><0x0A><|eot_id|><|im_end|><|endoftext|>",
    "I'LL don't WE'VE 1234567 x==y // 'tis\n\n\n  def f():\n\treturn",
]


def fuzz_texts(count: int) -> list[str]:
    """Texts of mixed scripts, white space, digits and fragments of special tokens; fixed seed."""
    chance = random.Random(20)
    ranges = [(0, 0x7F), (0x80, 0x24F), (0x370, 0x52F), (0x5D0, 0x6FF), (0x900, 0xE7F)]
    ranges += [(0x2000, 0x206F), (0x3040, 0x30FF), (0x4E00, 0x9FFF), (0xAC00, 0xD7A3)]
    ranges += [(0xE000, 0xFFFF), (0x1F300, 0x1FAFF), (0x10000, 0x10FFFF)]
    parts = ["the ", "I've", "HTTPServer", " ", "  ", "\n", "\r\n", "12345", "...", "<|", "|>"]
    parts += ["<s>", "<|eot|>", "<|header_start|>", "'re", "=" * 9, " " * 17]

    def part() -> str:
        if chance.random() < 0.5:
            return chance.choice(parts)
        low, high = chance.choice(ranges)
        return "".join(chr(chance.randint(low, high)) for _ in range(chance.randint(1, 6)))

    # "▁" is a space to SentencePiece and would not come back.
    texts = ("".join(part() for _ in range(chance.randint(1, 12))) for _ in range(count))
    return [text.replace("▁", "_") for text in texts]


@pytest.fixture(scope="session")
def vocabulary(shared_data: Path) -> Callable[[str], Tokenizer]:
    """The tokenizer of one of the vocabulary files, by name; each is loaded once."""
    loaded: dict[str, Tokenizer] = {}

    def load(name: str) -> Tokenizer:
        if name not in loaded:
            file = open_gguf(shared_data / "vocab" / f"ggml-vocab-{name}.gguf")
            loaded[name] = load_tokenizer(file.metadata)
        return loaded[name]

    return load


@pytest.fixture(scope="session")
def tiny_llama4(shared_data: Path) -> tuple[HuggingFaceTokenizer, Tokenizer]:
    """The same tokenizer twice: as its author's file, and as it stands in a GGUF."""
    path = shared_data / "weights" / "tiny-llama4" / "tokenizer.json"
    given = json.loads(path.read_text(encoding="utf-8"))
    ids = {**given["model"]["vocab"]}
    special = {token["content"]: token["id"] for token in given["added_tokens"]}
    texts = {id: text for text, id in (ids | special).items()}
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama4",
        "tokenizer.ggml.tokens": [texts[id] for id in range(len(texts))],
        "tokenizer.ggml.token_type": [
            CONTROL if texts[id] in special else NORMAL for id in range(len(texts))
        ],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in given["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": special["<|begin_of_text|>"],
        "tokenizer.ggml.eos_token_id": special["<|eot|>"],
        "tokenizer.ggml.add_bos_token": True,
    }
    return HuggingFaceTokenizer.from_file(str(path)), load_tokenizer(metadata)


def byte_level_metadata(**changes: Any) -> dict[str, Any]:
    """A byte-level vocabulary: the 256 bytes, "he", "hel", "lo", "hello", "<end>"."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    characters = [chr(byte) for byte in printable] + [chr(256 + index) for index in range(68)]
    tokens = [*characters, "he", "hel", "lo", "hello", "<end>"]
    metadata = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [NORMAL] * 260 + [CONTROL],
        "tokenizer.ggml.merges": ["h e", "l o", "he l", "hel lo"],
        "tokenizer.ggml.bos_token_id": 260,
        "tokenizer.ggml.eos_token_id": 260,
    }
    metadata.update({f"tokenizer.ggml.{key}": value for key, value in changes.items()})
    return {key: value for key, value in metadata.items() if value is not None}


def sentencepiece_metadata(**changes: Any) -> dict[str, Any]:
    """A SentencePiece vocabulary in which "bc" beats "ab"; ids 3 to 258 are the bytes."""
    words = ["▁", "a", "b", "c", "ab", "bc", "▁a", "▁▁"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *words]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * 263 + [-2.0, -1.0, -3.0, -4.0],
        "tokenizer.ggml.token_type": [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * 8,
    }
    metadata.update({f"tokenizer.ggml.{key}": value for key, value in changes.items()})
    return {key: value for key, value in metadata.items() if value is not None}


def pieces(tokenizer: Tokenizer, text: str, **options: Any) -> list[str]:
    ids = tokenizer.encode(text, add_bos=False, **options)
    return [tokenizer.token_bytes(id).decode("utf-8", "replace") for id in ids]


# Real vocabularies


@pytest.mark.parametrize("name", VOCABULARIES)
def test_llama_cpp_cases(
    name: str, vocabulary: Callable[[str], Tokenizer], shared_data: Path
) -> None:
    tokenizer = vocabulary(name)
    path = shared_data / "vocab" / f"ggml-vocab-{name}.gguf"
    # As llama.cpp's test-tokenizer-0 reads them: the separator has a line feed on both sides.
    texts = Path(f"{path}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    assert texts.pop() == ""
    lines = Path(f"{path}.out").read_text().splitlines()
    wanted = [[int(id) for id in line.split()] for line in lines]
    assert len(texts) == len(wanted) == 46
    for text, ids in zip(texts, wanted, strict=True):
        assert tokenizer.encode(text, add_bos=False) == ids
        assert tokenizer.decode(ids) == text


# What llama.cpp makes of one text with the Llama 3 vocabulary under each pre-tokenizer's name.
MIXED = "I'LL pay $1234567+tax: getHTTPResponse()\n\n  don't //x"
_END = [10, 18081, 25, 636, 9412, 2647, 2892, 220, 1541, 956, 443, 87]
_CALL = [10, 18081, 25, 636, 9412, 2647, 368, 271, 220, 1541]
UNDER_NAME = {
    "qwen2": [40, 6, 4178, 2343, 400, 16, 17, 18, 19, 20, 21, 22, *_END],
    "gpt-2": [40, 6, 4178, 2343, 400, 4513, 1774, 3080, *_CALL, 956, 443, 87],
    None: [40, 6, 4178, 2343, 220, 3, 4513, 10961, 22, *_CALL, 6, 83, 220, 322, 87],
}


@pytest.mark.parametrize("name", UNDER_NAME)
def test_pre_tokenizer_by_name(name: str | None, shared_data: Path) -> None:
    metadata = dict(open_gguf(shared_data / "vocab" / "ggml-vocab-llama-bpe.gguf").metadata)
    del metadata["tokenizer.ggml.pre"]
    if name is not None:
        metadata["tokenizer.ggml.pre"] = name
    assert load_tokenizer(metadata).encode(MIXED, add_bos=False) == UNDER_NAME[name]


@pytest.mark.parametrize("name", ["stories260K.gguf", "stories260K-gguf-v1.gguf"])
def test_stories_in_both_containers(name: str, shared_data: Path) -> None:
    tokenizer = load_tokenizer(open_gguf(shared_data / "weights" / name).metadata)
    # From llama.cpp, with BOS. The last four are the bytes of the rocket, the vocabulary has none.
    ids = [1, 403, 407, 261, 378, 432, 410, 469, 414, 485, 394, 410, 243, 162, 157, 131, 426]
    assert tokenizer.encode("Once upon a time, Zoé saw 🚀.") == ids
    assert tokenizer.decode(ids) == "Once upon a time, Zoé saw 🚀."
    assert tokenizer.encode("<s>Hi</s> there", special=True) == [1, 320, 417, 2, 410, 383]
    assert (tokenizer.n_vocab, tokenizer.bos_id, tokenizer.eos_id) == (512, 1, 2)
    assert tokenizer.stop_ids == {2}


@pytest.mark.parametrize("special", [True, False])
def test_equals_the_library_on_its_own_file(
    special: bool, tiny_llama4: tuple[HuggingFaceTokenizer, Tokenizer], shared_data: Path
) -> None:
    library, tokenizer = tiny_llama4
    library.encode_special_tokens = not special
    held_out = (shared_data / "weights/tiny-llama4/valid.txt").read_text(encoding="utf-8")
    wiki = (shared_data / "text/wiki.test.raw").read_text(encoding="utf-8")
    for text in [held_out, wiki[:100_000], *ODD_TEXTS, *fuzz_texts(1500)]:
        ids = tokenizer.encode(text, add_bos=False, special=special)
        assert ids == library.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids, special=True) == text
    assert tokenizer.encode("x", special=special) == library.encode("x").ids


def test_llama4_stops(tiny_llama4: tuple[HuggingFaceTokenizer, Tokenizer]) -> None:
    library, tokenizer = tiny_llama4
    ends = ("<|end_of_text|>", "<|eom|>", "<|eot|>")
    assert tokenizer.stop_ids == {library.token_to_id(text) for text in ends}


@pytest.mark.parametrize("name", VOCABULARIES)
def test_texts_come_back(name: str, vocabulary: Callable[[str], Tokenizer]) -> None:
    tokenizer = vocabulary(name)
    for text in [*ODD_TEXTS, *fuzz_texts(300)]:
        ids = tokenizer.encode(text, add_bos=False)
        assert tokenizer.decode(ids) == text
        stream = TextStream(tokenizer, at_start=True)
        assert "".join(map(stream.push, ids)) + stream.flush() == text
        # With control tokens read as such, written out they are the same text again.
        ids = tokenizer.encode(text, add_bos=False, special=True)
        assert tokenizer.decode(ids, special=True) == text


@pytest.mark.parametrize("name", VOCABULARIES)
def test_long_texts_in_pieces(
    name: str, vocabulary: Callable[[str], Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = vocabulary(name)
    texts = ["The cat's 3 hats.\nA\n\nB \n C  D\r\nE 'll F;\n 你好\n世界 ½\n½", *fuzz_texts(300)]
    whole = [tokenizer.encode(text) for text in texts]
    monkeypatch.setattr(long_text, "CHUNK_CHARS", 1)
    assert [tokenizer.encode(text) for text in texts] == whole


@pytest.mark.parametrize("name", VOCABULARIES)
@pytest.mark.parametrize("unit", ["a", " ", "\n", "漢", "aA", "🚀", " x", "\0"])
def test_very_long_texts(name: str, unit: str, vocabulary: Callable[[str], Tokenizer]) -> None:
    tokenizer = vocabulary(name)
    text = unit * (40_000 // len(unit))
    assert tokenizer.decode(tokenizer.encode(text, add_bos=False)) == text


def test_plain_text_is_never_control(vocabulary: Callable[[str], Tokenizer]) -> None:
    tokenizer = vocabulary("llama-bpe")
    [end] = tokenizer.encode("<|eot_id|>", add_bos=False, special=True)
    assert end in tokenizer.stop_ids
    spelled = tokenizer.encode("<|eot_id|>", add_bos=False)
    assert end not in spelled
    assert tokenizer.decode(spelled) == "<|eot_id|>"
    assert tokenizer.decode([end]) == ""
    assert tokenizer.decode([end], special=True) == "<|eot_id|>"


def test_user_defined_tokens_are_always_read(vocabulary: Callable[[str], Tokenizer]) -> None:
    tokenizer = vocabulary("qwen2")
    for special in (True, False):
        assert tokenizer.encode("a[PAD151646]b", special=special)[1:-1] == [151646]
    assert tokenizer.stop_ids == {128247, 151643, 151645}


# Beginning of the text


def test_bos() -> None:
    metadata = byte_level_metadata(add_bos_token=True)
    tokenizer = load_tokenizer(metadata)
    hello = [259]
    assert tokenizer.encode("hello") == [260, *hello]
    assert tokenizer.encode("hello", add_bos=False) == hello
    assert tokenizer.encode("") == [260]
    assert tokenizer.encode("", add_bos=False) == []
    # A template that writes BOS itself gets no second one, but whoever insists does.
    assert tokenizer.encode("<end>hello", special=True) == [260, *hello]
    assert tokenizer.encode("<end>hello", special=True, add_bos=True) == [260, 260, *hello]
    assert not load_tokenizer(byte_level_metadata()).add_bos
    assert load_tokenizer(byte_level_metadata(pre="llama-bpe")).add_bos


def test_bos_that_is_not_there() -> None:
    tokenizer = load_tokenizer(byte_level_metadata(pre="llama-bpe", bos_token_id=None))
    assert tokenizer.bos_id is None
    assert not tokenizer.add_bos
    with pytest.raises(Error, match="no BOS"):
        tokenizer.encode("hello", add_bos=True)
    with pytest.raises(FormatError, match="add_bos_token"):
        load_tokenizer(byte_level_metadata(add_bos_token=True, bos_token_id=None))


@pytest.mark.parametrize("id", [261, 2**32 - 1, -1])
def test_ids_outside_the_vocabulary_mean_none(id: int) -> None:
    tokenizer = load_tokenizer(byte_level_metadata(eos_token_id=id, bos_token_id=id))
    assert tokenizer.eos_id is None
    assert tokenizer.stop_ids == frozenset()


# Byte-level BPE


def test_merges_and_whole_words() -> None:
    assert pieces(load_tokenizer(byte_level_metadata()), "hello helo") == ["hello", " ", "he", "lo"]
    # Without the last merge the whole word is only found where merges are ignored.
    merges = ["h e", "l o", "he l"]
    plain = load_tokenizer(byte_level_metadata(merges=merges))
    assert pieces(plain, "hello") == ["hel", "lo"]
    whole = load_tokenizer(byte_level_metadata(merges=merges, pre="llama-bpe"))
    assert pieces(whole, "hello") == ["hello"]


def test_merges_to_a_control_token_do_not_count() -> None:
    types = [NORMAL] * 259 + [CONTROL, CONTROL]
    for pre in ("gpt-2", "llama-bpe"):
        tokenizer = load_tokenizer(byte_level_metadata(token_type=types, pre=pre))
        assert pieces(tokenizer, "hello") == ["hel", "lo"]
        assert tokenizer.encode("hello", add_bos=False, special=True) == [259]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("gpt-2", "I'm 1234  x\n\ny'S", ["I", "'m", " 1234", " ", " x", "\n", "\n", "y", "'", "S"]),
        ("llama-bpe", "I'M 1234  x\n\ny", ["I", "'M", " ", "123", "4", " ", " x", "\n\n", "y"]),
        ("qwen2", "a12 b.\n", ["a", "1", "2", " b", ".\n"]),
        ("llama4", "getHTTPServer's a//\n/b", ["get", "HTTPServer's", " a", "//\n/", "b"]),
        ("default", "a, 1234!", ["a", ",", " ", "123", "4", "!"]),
    ],
)
def test_words(name: str, text: str, words: list[str]) -> None:
    found = [text]
    for pattern in PRE_TOKENIZERS[name].cuts.patterns:
        split = Split(Regex(pattern), "isolated")
        found = [part for piece in found for part, _ in split.pre_tokenize_str(piece)]
    assert found == words


def test_files_without_token_types() -> None:
    tokens = byte_level_metadata()["tokenizer.ggml.tokens"]
    tokens[260] = "<|endoftext|>"
    for changes in ({"eos_token_id": None, "bos_token_id": None}, {}):
        tokenizer = load_tokenizer(byte_level_metadata(tokens=tokens, token_type=None, **changes))
        assert tokenizer.stop_ids == {260}
        assert tokenizer.encode("<|endoftext|>", special=True) == [260]
        assert 260 not in tokenizer.encode("<|endoftext|>")
        assert tokenizer.decode([259, 260]) == "hello"


def test_tokens_that_are_not_utf8() -> None:
    # GGUF strings that are not UTF-8 come with surrogates in place of the bytes at fault.
    tokens = byte_level_metadata()["tokenizer.ggml.tokens"]
    for type in (NORMAL, CONTROL):
        tokenizer = load_tokenizer(
            byte_level_metadata(
                tokens=[*tokens, "x\udcff"], token_type=[NORMAL] * 260 + [CONTROL, type]
            )
        )
        assert tokenizer.token_bytes(261) == b"x\xff"
        assert tokenizer.encode("x\udcff", special=True)[0] == tokens.index("x")


def test_tokens_outside_the_byte_alphabet() -> None:
    tokens = byte_level_metadata()["tokenizer.ggml.tokens"]
    tokenizer = load_tokenizer(
        byte_level_metadata(
            tokens=[*tokens, "漢 字", "", "<0x0A>"],
            token_type=[NORMAL] * 260 + [CONTROL, NORMAL, UNUSED, BYTE],
        )
    )
    assert tokenizer.decode([261]) == "漢 字"
    assert tokenizer.token_bytes(262) == b"[EMPTY_262]"
    assert tokenizer.decode([262]) == ""
    assert tokenizer.decode([263]) == "\n"


# SentencePiece


def test_best_score_first() -> None:
    tokenizer = load_tokenizer(sentencepiece_metadata())
    assert tokenizer.encode("abc", add_bos=False) == [265, 264]
    assert tokenizer.encode("ab", add_bos=False) == [259, 263]
    assert tokenizer.decode([265, 264]) == "abc"
    # Without scores the lowest id, that is, the token trained first.
    by_id = load_tokenizer(sentencepiece_metadata(scores=None))
    assert by_id.encode("abc", add_bos=False) == [259, 263, 262]


def test_leftmost_among_equals() -> None:
    tokenizer = load_tokenizer(sentencepiece_metadata(add_space_prefix=False))
    assert tokenizer.encode("   ", add_bos=False) == [266, 259]


def test_bytes_for_what_is_no_token() -> None:
    tokenizer = load_tokenizer(sentencepiece_metadata())
    ids = tokenizer.encode("é\n", add_bos=False)
    assert ids == [259, 3 + 0xC3, 3 + 0xA9, 3 + 0x0A]
    assert tokenizer.decode(ids) == "é\n"
    spelled = tokenizer.encode("<0x0A>", add_bos=False)
    assert len(spelled) == 7
    assert tokenizer.decode(spelled) == "<0x0A>"


def test_unknown_where_bytes_are_missing() -> None:
    tokens = sentencepiece_metadata()["tokenizer.ggml.tokens"]
    tokenizer = load_tokenizer(
        sentencepiece_metadata(
            tokens=tokens[:3] + tokens[259:],
            scores=[0.0] * 11,
            token_type=[UNKNOWN, CONTROL, CONTROL] + [NORMAL] * 8,
        )
    )
    ids = tokenizer.encode("aéb", add_bos=False)
    assert ids[-2:] == [0, 5]
    assert tokenizer.decode(ids) == "ab"
    assert tokenizer.decode(ids, special=True) == "a<unk>b"


def test_space_prefix() -> None:
    tokenizer = load_tokenizer(sentencepiece_metadata())
    assert tokenizer.add_bos
    assert tokenizer.encode("a") == [1, 265]
    assert tokenizer.encode("") == [1]
    # Every text after a special token is a text of its own.
    ids = tokenizer.encode("a</s>a a", add_bos=False, special=True)
    assert ids == [265, 2, 265, 265]
    assert tokenizer.decode(ids, special=True) == "a</s>a a"
    assert tokenizer.decode(ids) == "aa a"
    assert tokenizer.decode(tokenizer.encode("  a", add_bos=False)) == "  a"
    bare = load_tokenizer(sentencepiece_metadata(add_space_prefix=False))
    assert bare.encode("a a") == [1, 260, 265]
    assert bare.decode([1, 260, 265]) == "a a"
    assert bare.decode([265]) == " a"


def test_sentencepiece_without_token_types() -> None:
    tokenizer = load_tokenizer(sentencepiece_metadata(token_type=None))
    ids = tokenizer.encode("aé", add_bos=False)
    assert ids == [265, 3 + 0xC3, 3 + 0xA9]
    assert tokenizer.decode([1, *ids, 2]) == "aé"
    assert tokenizer.stop_ids == {2}


def test_words_that_span_a_space() -> None:
    tokens = [*sentencepiece_metadata()["tokenizer.ggml.tokens"], "a▁"]
    types = sentencepiece_metadata()["tokenizer.ggml.token_type"]
    tokenizer = load_tokenizer(
        sentencepiece_metadata(
            tokens=tokens,
            token_type=[*types, NORMAL],
            scores=[*sentencepiece_metadata()["tokenizer.ggml.scores"], 5.0],
        )
    )
    assert tokenizer.encode("a a", add_bos=False) == [259, 267, 260]


# Both ways, whatever comes


@pytest.mark.parametrize("metadata", [byte_level_metadata(), sentencepiece_metadata()])
def test_lone_surrogates_and_nul(metadata: dict[str, Any]) -> None:
    tokenizer = load_tokenizer(metadata)
    for text, back in [
        ("a\ud800b\udfff", "a�b�"),
        ("\ud83d\ude80", "🚀"),
        ("\udcff\0", "�\0"),
        ("\0", "\0"),
    ]:
        assert tokenizer.decode(tokenizer.encode(text, add_bos=False)) == back
        assert tokenizer.decode(tokenizer.encode(text, add_bos=False, special=True)) == back


def test_special_texts_that_overlap() -> None:
    tokens = [*byte_level_metadata()["tokenizer.ggml.tokens"], "<end><end>", "d>x"]
    tokenizer = load_tokenizer(
        byte_level_metadata(
            tokens=tokens, token_type=[NORMAL] * 260 + [CONTROL] * 2 + [USER_DEFINED]
        )
    )
    assert tokenizer.encode("<end><end><end>", special=True) == [261, 260]
    assert tokenizer.encode("<end>x", special=True) == [260, tokens.index("x")]
    assert tokenizer.encode("<end>x")[-1] == 262


@pytest.mark.parametrize("id", [-1, 261, 2**40])
def test_ids_that_are_no_tokens(id: int) -> None:
    tokenizer = load_tokenizer(byte_level_metadata())
    with pytest.raises(Error, match=rf"token id {id} .* 261"):
        tokenizer.token_bytes(id)
    with pytest.raises(Error):
        tokenizer.decode([1, id])
    with pytest.raises(Error):
        TextStream(tokenizer).push(id)


def test_broken_utf8_is_replaced() -> None:
    tokenizer = load_tokenizer(byte_level_metadata())
    rocket = tokenizer.encode("🚀")
    assert tokenizer.decode([*rocket[:2], 259]) == "�hello"
    assert tokenizer.decode(rocket[3:]) == "�"


def test_stream_gives_whole_characters() -> None:
    tokenizer = load_tokenizer(byte_level_metadata())
    ids = tokenizer.encode("é🚀!")
    stream = TextStream(tokenizer)
    assert [stream.push(id) for id in ids] == ["", "é", "", "", "", "🚀", "!"]
    assert stream.flush() == ""
    assert [stream.push(id) for id in ids[2:4]] == ["", ""]
    assert stream.flush() == "�"
    assert stream.push(260) == ""
    assert TextStream(tokenizer, special=True).push(260) == "<end>"


def test_stream_continues_a_text() -> None:
    tokenizer = load_tokenizer(sentencepiece_metadata())
    assert TextStream(tokenizer).push(265) == " a"
    stream = TextStream(tokenizer, at_start=True)
    assert [stream.push(265), stream.push(265), stream.push(1), stream.push(265)] == [
        "a",
        " a",
        "",
        "a",
    ]


# Files that cannot be used


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"model": "bert"}, UnsupportedError, "'bert'.*gpt2"),
        ({"model": None}, FormatError, "tokenizer.ggml.model"),
        ({"model": 3}, FormatError, "tokenizer.ggml.model"),
        ({"model": "x\n" * 9999}, UnsupportedError, "known: gpt2"),
        ({"pre": "x\n" * 9999}, UnsupportedError, "the nearest known: "),
        ({"merges": ["\n" * 9999]}, FormatError, "merges"),
        ({"pre": "qwen25"}, UnsupportedError, "'qwen25'.*known: qwen2, qwen35.*--pre NAME"),
        ({"tokens": None}, FormatError, "no vocabulary"),
        ({"tokens": []}, FormatError, "no vocabulary"),
        ({"tokens": [1, 2]}, FormatError, "array of strings"),
        ({"tokens": "abc"}, FormatError, "array of strings"),
        ({"token_type": [1] * 260}, FormatError, "260 entries for 261"),
        ({"token_type": ["x"] * 261}, FormatError, "array of numbers"),
        ({"token_type": [[1]] * 261}, FormatError, "array of numbers"),
        ({"token_type": [[1], 2]}, FormatError, "array of numbers"),
        ({"token_type": [1.5] * 261}, FormatError, "array of numbers"),
        ({"token_type": 1}, FormatError, "array of numbers"),
        ({"scores": [0.0]}, FormatError, "1 entries"),
        ({"merges": None}, FormatError, "merges"),
        ({"merges": ["he"]}, FormatError, "'he'"),
        ({"merges": ["he zz"]}, FormatError, "'he zz'"),
        ({"merges": ["l l"]}, FormatError, "do not fit"),
        ({"merges": [None]}, FormatError, "array of strings"),
        ({"bos_token_id": "1"}, FormatError, "bos_token_id"),
        ({"eot_token_id": True}, FormatError, "eot_token_id"),
        ({"add_bos_token": "yes"}, FormatError, "add_bos_token"),
    ],
)
def test_refused(changes: dict[str, Any], kind: type[Error], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        load_tokenizer(byte_level_metadata(**changes))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_refused_scores() -> None:
    scores = sentencepiece_metadata()["tokenizer.ggml.scores"]
    with pytest.raises(FormatError, match="NaN"):
        load_tokenizer(sentencepiece_metadata(scores=[*scores[:-1], float("nan")]))
    tokens = sentencepiece_metadata()["tokenizer.ggml.tokens"]
    with pytest.raises(FormatError, match="too long"):
        load_tokenizer(sentencepiece_metadata(tokens=[*tokens[:-1], "a" * 100_000]))


def test_unknown_token_types_are_read_as_undefined() -> None:
    tokenizer = load_tokenizer(byte_level_metadata(token_type=[NORMAL] * 259 + [77, -3]))
    assert tokenizer.decode([258, 259, 260]) == "lo"
