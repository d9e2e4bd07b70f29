"""Completions: how many tokens, where a text begins, and that ``Model.generate`` is one of them."""

import dataclasses
from collections.abc import Iterator

import pytest
from helpers.chat_models import make_chat_model

import q4run
from q4run.errors import Error
from q4run.generation.completion import Completion, Finish
from q4run.generation.sampler import Sampler, SamplingParameters
from q4run.generation.stats import Work
from q4run.gguf_file import open_gguf
from q4run.text.tokenizer import Tokenizer, load_tokenizer
from q4run.text.vocabulary import TokenType

GREEDY = Sampler(SamplingParameters(temperature=0.0))
CONTEXT = 32
PROMPT = [1, 2, 3]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Iterator[q4run.Model]:
    """Its greedy answers have no end."""
    path = make_chat_model(tmp_path_factory.mktemp("chat"))
    with q4run.load(path, context=CONTEXT, threads=1) as model:
        yield model


def complete(model: q4run.Model, max_tokens: int | None) -> Completion:
    completion = Completion(model.session, model.tokenizer, PROMPT, GREEDY, max_tokens)
    assert "".join(completion) == completion.text
    return completion


# How many tokens


@pytest.mark.parametrize(
    ("max_tokens", "n_tokens", "finish"),
    [
        (0, 0, Finish.LENGTH),
        (1, 1, Finish.LENGTH),
        (5, 5, Finish.LENGTH),
        # The last token is chosen after the context is full.
        (None, CONTEXT - len(PROMPT) + 1, Finish.CONTEXT),
        (10 * CONTEXT, CONTEXT - len(PROMPT) + 1, Finish.CONTEXT),
    ],
)
def test_it_ends_with_max_tokens_or_the_context(model, max_tokens, n_tokens, finish):
    completion = complete(model, max_tokens)
    assert len(completion.tokens) == n_tokens
    assert completion.finish is finish
    assert completion.text == model.detokenize(completion.tokens)
    assert "".join(model.generate(PROMPT, max_tokens=max_tokens)) == completion.text
    session = list(model.session.generate(PROMPT, GREEDY, model.tokenizer.stop_ids, max_tokens))
    assert session == completion.tokens


def test_what_has_no_token_is_never_chosen(model):
    likeliest = complete(model, 1).tokens
    metadata = open_gguf(model.path).metadata
    without = load_tokenizer({**metadata, "tokenizer.ggml.suppress_tokens": likeliest})
    completion = Completion(model.session, without, PROMPT, GREEDY, 20)
    assert "".join(completion)
    assert not set(completion.tokens) & set(likeliest)


def test_no_tokens_run_nothing(model):
    model.session.clear()
    assert complete(model, 0).stats.prompt_tokens == 0
    assert model.session.tokens == []


def test_fewer_than_no_tokens_are_an_error(model):
    with pytest.raises(Error, match=r"-1 tokens cannot be generated: give 0 or more, or None"):
        list(model.generate(PROMPT, max_tokens=-1))


def test_an_empty_prompt_is_an_error(model):
    with pytest.raises(Error, match="the prompt is empty"):
        list(model.generate([]))


# Where a text begins

UNKNOWN, BOS, EOS, SPACE, A, SPACE_A, MARK = range(7)


@pytest.fixture(scope="module")
def sentencepiece() -> Tokenizer:
    metadata = {
        "model": "llama",
        "tokens": ["<unk>", "<s>", "</s>", "▁", "a", "▁a", "<mark>"],
        "scores": [0.0] * 5 + [-1.0, 0.0],
        "token_type": [
            TokenType.UNKNOWN,
            TokenType.CONTROL,
            TokenType.CONTROL,
            *[TokenType.NORMAL] * 3,
            TokenType.USER_DEFINED,
        ],
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }
    return load_tokenizer({f"tokenizer.ggml.{key}": value for key, value in metadata.items()})


class Says:
    """A session that says what it is told to."""

    context = CONTEXT
    n_vocab = 7
    work = Work(**{field.name: 0 for field in dataclasses.fields(Work)})

    def __init__(self, *tokens: int) -> None:
        self._tokens = tokens

    def generate(self, *arguments) -> Iterator[int]:
        return iter(self._tokens)


@pytest.mark.parametrize("prompt", [[BOS], [BOS, SPACE_A], [BOS, SPACE_A, EOS], [BOS, MARK]])
def test_a_completion_joins_to_its_prompt_as_one_text(sentencepiece, prompt):
    """The first space goes where the prompt ends with a special token, and only there."""
    said = [SPACE_A, A, SPACE_A]
    completion = Completion(Says(*said), sentencepiece, prompt, GREEDY)
    assert "".join(completion) == ("aa a" if prompt[-1] != SPACE_A else " aa a")
    decode = sentencepiece.decode
    assert decode(prompt) + completion.text == decode(prompt + said)


def test_only_where_asked_does_a_stop_token_end_nothing(model, monkeypatch):
    stop = min(model.tokenizer.stop_ids)
    words = model.tokenize(" in the", add_bos=False)
    monkeypatch.setattr(Sampler, "sample", lambda self, logits, history: said.pop(0))
    for ignore_eos, n_tokens, text in ((False, len(words) + 1, " in the"), (True, 8, " in the in")):
        said = [*words, stop, *words, *words, *words]
        completion = Completion(
            model.session, model.tokenizer, model.tokenize("so"), GREEDY, 8, ignore_eos=ignore_eos
        )
        assert "".join(completion).startswith(text)
        assert len(completion.tokens) == n_tokens


# One loop


def test_a_model_generates_what_a_completion_does(model, monkeypatch):
    """Also the first space, and the end at a stop token."""
    stop = min(model.tokenizer.stop_ids)
    tokens = [*model.tokenize(" in the", add_bos=False), stop]
    monkeypatch.setattr(Sampler, "sample", lambda self, logits, history: said.pop(0))
    texts = []
    for pieces in (
        model.generate("so", max_tokens=9),
        Completion(model.session, model.tokenizer, model.tokenize("so"), GREEDY, 9),
    ):
        said = list(tokens)
        texts.append("".join(pieces))
        assert not said
    assert texts == [" in the"] * 2
