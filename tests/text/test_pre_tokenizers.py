"""Every pre-tokenizer cuts as the models' published files do, and long runs end."""

import json
from typing import Any

import pytest
from helpers.made_texts import made_metadata, made_texts, made_vocabulary
from tokenizers import Regex
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Split

from q4run.errors import Error, UnsupportedError
from q4run.settings import Settings
from q4run.text.pre_tokenizers import PRE_TOKENIZERS, ROWS, PreTokenizer, recognise
from q4run.text.tokenizer import load_tokenizer

# The patterns of the models' own files, as they stand there.
_TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_I = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+SUFFIX"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*SUFFIX"
    r"|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n/]*" + _TAIL
)
_GPT4O = _O200K.replace("SUFFIX", f"{_I}?").replace("DIGITS", r"\p{N}{1,3}")
_LETTERS = r"|[^\r\n\p{L}\p{N}]?\p{L}+"
_SYMBOLS = r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
_QWEN2 = _I + _LETTERS + r"|\p{N}" + _SYMBOLS + _TAIL
_KIMI = (
    r"[\p{Han}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*" + _TAIL
)
_DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*" + _TAIL
)
PUBLISHED: dict[str, list[Any]] = {
    "gpt-2": ["ByteLevel"],
    "smollm": ["Digits", "ByteLevel"],
    "llama-bpe": [_I + _LETTERS + r"|\p{N}{1,3}" + _SYMBOLS + _TAIL],
    "qwen2": [_QWEN2],
    "qwen35": [
        _I + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*" + _TAIL
    ],
    "gpt-4o": [_GPT4O],
    "tekken": [_O200K.replace("SUFFIX", "").replace("DIGITS", r"\p{N}")],
    "deepseek-v3": [r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", _DEEPSEEK],
    "kimi-k2": [_KIMI],
    "bailingmoe2": [
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*"
        r"|\s*[\r\n]|\s+(?!\S)|\s+"
    ],
    "laguna": [r"[^\n]+|[\n]+", _QWEN2],
    "tiny_aya": [r"\d{1,3}(?=(?:\d{3})*\b)", _GPT4O],
    "superbpe": [r"\p{N}+", r"(?=(\d{3})+(?!\d))"],
    "seed-coder": [_I + _LETTERS + r"|\p{N}{1}| ?[^\s\p{L}\p{N}\r\n]+" + _TAIL],
    "minicpm5": [r"\p{N}{1,3}", _I + _LETTERS + r"|\p{N}+" + _SYMBOLS + _TAIL],
    "exaone-moe": [
        _I + r"|[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+|\p{N}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n/]?|\s*[\r\n]|\s+(?!\S)|\s+"
    ],
    "jais-2": [
        _I + _LETTERS + r"|\p{N}{1,3}" + _SYMBOLS + r"|\s*[\r\n]+|\s{512}(?!\S)|\s{256}(?!\S)"
        r"|\s{128}(?!\S)|\s{64}(?!\S)|\s{32}(?!\S)|\s{16}(?!\S)|\s{8}(?!\S)|\s{4}(?!\S)"
        r"|\s{1,2}(?!\S)|\s{1}"
    ],
    "bloom": [" ?[^(\\s|[.,!?…。，、।۔،])]+"],
}


def as_published(name: str) -> HuggingFaceTokenizer:
    """The library's tokenizer with the made vocabulary, cutting as the model's own file does."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    steps: list[dict[str, Any]] = []
    for step in PUBLISHED[name]:
        if step == "Digits":
            steps.append({"type": "Digits", "individual_digits": True})
        elif step != "ByteLevel":
            split = {"type": "Split", "behavior": "Isolated", "invert": False}
            steps.append(split | {"pattern": {"Regex": step}})
    steps.append(byte_level | {"use_regex": PUBLISHED[name][-1] == "ByteLevel"})
    vocab, merges = made_vocabulary()
    library = HuggingFaceTokenizer(BPE(vocab, merges))
    whole = json.loads(library.to_str())
    whole["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": steps}
    whole["model"]["ignore_merges"] = PRE_TOKENIZERS[name].ignore_merges
    return HuggingFaceTokenizer.from_str(json.dumps(whole))


def check_ids(name: str, count: int) -> None:
    library, tokenizer = as_published(name), load_tokenizer(made_metadata(name))
    for text in made_texts(count):
        ids = tokenizer.encode(text, add_bos=False)
        assert ids == library.encode(text).ids, text
        assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("name", PUBLISHED)
def test_ids_are_those_of_the_published_file(name: str) -> None:
    check_ids(name, 200)


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", PUBLISHED)
def test_ids_are_those_of_the_published_file_on_many_texts(name: str) -> None:
    check_ids(name, 2000)


def words(patterns: tuple[str, ...], text: str) -> list[str]:
    found = [text]
    for pattern in patterns:
        split = Split(Regex(pattern), "isolated")
        found = [part for piece in found for part, _ in split.pre_tokenize_str(piece)]
    return found


REWRITTEN = [row for row in ROWS if row.cuts.published]


@pytest.mark.parametrize("row", REWRITTEN, ids=lambda row: row.names[0])
def test_patterns_cut_as_those_they_stand_for(row: PreTokenizer) -> None:
    for published in row.cuts.published:
        if published[-1] == r"\p{N}+":
            continue  # DeepSeek's vocabularies have no token of two digits: both cut those alike
        for text in made_texts(100):
            assert words(row.cuts.patterns, text) == words(published, text)


def test_digits_in_threes_from_the_right() -> None:
    for name in ("tiny_aya", "superbpe", "afmoe"):
        patterns = PRE_TOKENIZERS[name].cuts.patterns
        assert words(patterns, "1234567") == ["1", "234", "567"]
        assert words(patterns, "123456") == ["123", "456"]
        assert words(patterns, "12") == ["12"]


def check_long_runs(row: PreTokenizer, units: list[str]) -> None:
    for unit in units:
        text = unit * (100_000 // len(unit)) + "x"
        assert "".join(words(row.cuts.patterns, text)) == text


# A matcher that takes the squared length would need minutes: the test's time limit tells.
@pytest.mark.timeout(100)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.names[0])
def test_long_runs_end(row: PreTokenizer) -> None:
    check_long_runs(row, ["1", " "])


@pytest.mark.exhaustive
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.names[0])
def test_all_long_runs_end(row: PreTokenizer) -> None:
    check_long_runs(
        row, ["a", "A", "\n", "漢", "🚀", " x", "e\u0301", "\u0301", "1½", "a ", "-a", "\0"]
    )


@pytest.mark.parametrize("name", ["llama-bpe", "deepseek-v3", "gemma4", "superbpe"])
@pytest.mark.parametrize("unit", ["a", "1", " ", "🚀"])
def test_long_runs_become_tokens_and_come_back(name: str, unit: str) -> None:
    tokenizer = load_tokenizer(made_metadata(name))
    text = unit * 100_000
    ids = tokenizer.encode(text, add_bos=False)
    if PRE_TOKENIZERS[name].byte_level:
        assert tokenizer.decode(ids) == text


def test_names_stand_for_one_row_each() -> None:
    names = [name for row in ROWS for name in row.names]
    assert len(names) == len(set(names)) == len(PRE_TOKENIZERS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.names[0])
def test_rows_are_recognised_by_their_patterns(row: PreTokenizer) -> None:
    for patterns in (row.cuts.patterns, *row.cuts.published):
        found = recognise(patterns, ignore_merges=row.ignore_merges, byte_level=row.byte_level)
        assert found is not None
        assert found.same_merging
        assert found.pre_tokenizer.cuts is row.cuts


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(UnsupportedError, match=r"'deepseek-v4'.*deepseek-v3.*--pre NAME") as caught:
        load_tokenizer(made_metadata("deepseek-v4"))
    assert "\n" not in str(caught.value)
    with pytest.raises(Error, match=r"no pre-tokenizer 'qwen-2'; the nearest known: qwen2"):
        Settings(pre="qwen-2")


def test_a_name_can_be_forced() -> None:
    text = "12345 don't"
    forced = load_tokenizer(made_metadata("klingon"), pre="qwen2")
    assert forced.encode(text) == load_tokenizer(made_metadata("qwen2")).encode(text)
    assert "'qwen2'" in forced.notes[0]
    assert "'klingon'" in forced.notes[0]


def test_a_file_that_names_none_is_told_of() -> None:
    metadata = made_metadata("default")
    assert load_tokenizer(metadata).notes == ()
    del metadata["tokenizer.ggml.pre"]
    [note] = load_tokenizer(metadata).notes
    assert "tokenizer.ggml.pre is missing" in note
    assert "--pre" in note
