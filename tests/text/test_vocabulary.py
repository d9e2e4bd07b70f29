"""What a vocabulary says beside its tokens: spaces, ends, duplicates, ids that are no tokens."""

from typing import Any

import pytest
from helpers.made_texts import made_metadata, made_texts
from tokenizers import AddedToken
from tokenizers import Tokenizer as HuggingFaceTokenizer
from tokenizers.models import BPE
from tokenizers.normalizers import Replace
from tokenizers.pre_tokenizers import Metaspace

from q4run.errors import FormatError, UnsupportedError
from q4run.text.tokenizer import Tokenizer, load_tokenizer

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
WORDS = ["▁", "a", "b", "▁a", "ab", "▁ab", "\n", "\n\n", "▁▁"]
MERGES = [("▁", "a"), ("a", "b"), ("▁a", "b"), ("\n", "\n"), ("▁", "▁")]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
TOKENS = ["<unk>", "<s>", "</s>", *BYTES, *WORDS]
TYPES = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256, *[NORMAL] * len(WORDS)]


def utf8_metadata(model: str, **changes: Any) -> dict[str, Any]:
    """A vocabulary of words with "▁" and of bytes; scores and merges order alike."""
    wholes = [left + right for left, right in MERGES]
    scores = [-wholes.index(text) if text in wholes else -99 for text in TOKENS]
    metadata = {
        "tokenizer.ggml.model": model,
        "tokenizer.ggml.tokens": TOKENS,
        "tokenizer.ggml.token_type": TYPES,
        "tokenizer.ggml.scores": [float(score) for score in scores],
        "tokenizer.ggml.merges": [f"{left} {right}" for left, right in MERGES],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    return metadata | {f"tokenizer.{key}": value for key, value in changes.items()}


def library(scheme: str | None) -> HuggingFaceTokenizer:
    """The same vocabulary in the ``tokenizers`` library; ``scheme`` None is Gemma's: no prefix."""
    ids = {text: id for id, text in enumerate(TOKENS)}
    model = BPE(ids, MERGES, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    made = HuggingFaceTokenizer(model)
    if scheme is None:
        made.normalizer = Replace(" ", "▁")
    else:
        made.pre_tokenizer = Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    made.add_special_tokens([AddedToken(text, normalized=False) for text in ("<s>", "</s>")])
    return made


TEXTS = ["", "a", " a", "  a", "ab a", "a</s>a", "</s>a", "</s> a", "a </s>  ab", "<s>a</s>a a"]
TEXTS += ["\n", "a\n\n\nab", "é", "a é</s>é", "▁a", "</s></s>a"]


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_spaces_go_where_the_scheme_says(scheme: str) -> None:
    prefix: dict[str, Any] = {"q4run.space_prefix": scheme}
    tokenizer = load_tokenizer(utf8_metadata("llama", **prefix))
    reference = library(scheme)
    for text in [*TEXTS, *made_texts(100)]:
        ids = reference.encode(text, add_special_tokens=False).ids
        assert tokenizer.encode(text, add_bos=False, special=True) == ids, text


def test_without_a_scheme_every_text_gets_its_space() -> None:
    tokenizer = load_tokenizer(utf8_metadata("llama"))
    ids = [TOKENS.index(text) for text in ("▁a", "</s>", "▁", "▁a")]
    assert tokenizer.encode("a</s> a", add_bos=False, special=True) == ids
    with pytest.raises(UnsupportedError, match="'middle'; known: never"):
        load_tokenizer(utf8_metadata("llama", **{"q4run.space_prefix": "middle"}))


def test_decoding_takes_the_first_space_off_where_one_was_put() -> None:
    tokenizer = load_tokenizer(utf8_metadata("llama", **{"q4run.space_prefix": "first"}))
    for text in ("a", "ab a", "a</s>a", "a</s> a"):
        ids = tokenizer.encode(text, special=True)
        assert ids[0] == 1
        assert tokenizer.decode(ids, special=True) == f"<s>{text}"
    last = tokenizer.encode("a</s>", special=True)
    assert not tokenizer.starts_text(last[-1])
    assert tokenizer.encode("a", add_bos=False, at_start=False) == [TOKENS.index("a")]


def test_gemma4_merges_characters_and_falls_back_to_bytes() -> None:
    tokenizer = load_tokenizer(utf8_metadata("gemma4", **{"ggml.add_bos_token": False}))
    reference = library(None)
    assert tokenizer.add_bos
    assert tokenizer.notes == ()
    for text in [*TEXTS, *made_texts(200)]:
        ids = tokenizer.encode(text, add_bos=False, special=True)
        assert ids == reference.encode(text, add_special_tokens=False).ids, text
        assert tokenizer.decode(ids, special=True) == text.replace("▁", " ")
    long = "ab " * 40_000 + "é" * 100_000
    assert tokenizer.decode(tokenizer.encode(long)) == long


def changed(**changes: Any) -> Tokenizer:
    return load_tokenizer(made_metadata("gpt-2") | changes)


def test_of_tokens_with_one_text_the_last_counts() -> None:
    metadata = made_metadata("gpt-2")
    tokens = [*metadata["tokenizer.ggml.tokens"], "a", "b"]
    twice = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": [NORMAL] * len(tokens)}
    tokenizer = load_tokenizer(metadata | twice)
    [last] = tokenizer.encode("a")
    assert last == len(tokens) - 2
    assert tokenizer.decode([tokens.index("a"), last]) == "aa"
    [note] = tokenizer.notes
    assert "2 tokens have the text of a later one ('a')" in note


def test_ends_that_only_our_key_names() -> None:
    tokenizer = changed(**{"tokenizer.q4run.stop_token_ids": [3, 700, 10**6, -1]})
    assert tokenizer.stop_ids == {3, 700}
    with pytest.raises(FormatError, match="stop_token_ids is not an array of integers"):
        changed(**{"tokenizer.q4run.stop_token_ids": ["3"]})


def test_glm_stops_at_the_next_role() -> None:
    metadata = made_metadata("glm4")
    names = ["<|endoftext|>", "[gMASK]", "<|user|>", "<|observation|>", "<|assistant|>"]
    tokens = [*metadata["tokenizer.ggml.tokens"], *names]
    kinds = [NORMAL] * (len(tokens) - 5) + [CONTROL] * 5
    keys = {"tokenizer.ggml.tokens": tokens, "tokenizer.ggml.token_type": kinds}
    ends = {tokens.index(text) for text in ("<|endoftext|>", "<|user|>", "<|observation|>")}
    assert load_tokenizer(metadata | keys).stop_ids == ends


def test_ids_that_have_no_token_are_never_sampled() -> None:
    metadata = made_metadata("gpt-2")
    kinds = metadata["tokenizer.ggml.token_type"]
    n_tokens = len(kinds)
    kinds[5] = UNUSED
    tokenizer = changed(
        **{"tokenizer.ggml.token_type": kinds, "tokenizer.ggml.suppress_tokens": [9, 10**6]}
    )
    never = tokenizer.never_sampled(n_tokens + 3)
    assert never.tolist() == [5, 9, n_tokens, n_tokens + 1, n_tokens + 2]
