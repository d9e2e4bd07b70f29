"""Conversations with a model that reasons: what is shown, what is kept, what is run again."""

from pathlib import Path

import pytest
from helpers.chat_models import make_chat_model
from helpers.scripted import Script

import q4run
from q4run.generation.completion import Completion, Finish
from q4run.generation.conversation import Conversation, Exchange, Turn
from q4run.generation.conversation_file import load_chat, save_chat
from q4run.generation.sampler import SamplingParameters
from q4run.text.chat_template import ChatTemplate
from q4run.text.reasoning import Kind, find_marks

GREEDY = SamplingParameters(temperature=0.0)
# Cuts reasoning out of the history, as most do.
CUTS = (
    "{% for m in messages %}{{ m.role ~ ':' ~ (m.content.split('</think>') | last) ~ '|' }}"
    "{% endfor %}{{ 'assistant:' }}{{ '<think>\n' if open }}"
)
# Shows reasoning again, from a field of its own.
SHOWS = (
    "{% for m in messages %}{{ m.role ~ ':' }}"
    "{% if m.reasoning_content %}{{ '<think>' ~ m.reasoning_content ~ '</think>' }}{% endif %}"
    "{{ m.content ~ '|' }}{% endfor %}{{ 'assistant:' }}"
)
# Knows nothing of it: an answer is shown as it was.
KEEPS = (
    "{# <think> #}{% for m in messages %}{{ m.role ~ ':' ~ m.content ~ '|' }}{% endfor %}"
    "{{ 'assistant:' }}{{ '<think>\n' if open }}"
)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    path = make_chat_model(tmp_path_factory.mktemp("reasoning"))
    with q4run.load(path, context=1024, threads=1) as model:
        yield model


@pytest.fixture
def model(loaded):
    loaded.session.clear()
    return loaded


def say(conversation: Conversation, message: str, text: str) -> Turn:
    """One turn in which the model writes this text, and stops."""
    ids = conversation.model.tokenize(text + "<|eot|>", add_bos=False, special=True)
    conversation._sampler = Script(*ids)
    with conversation.ask(message) as turn:
        parts = list(turn.parts())
    for kind, whole in (
        (Kind.REASONING, turn.completion.reasoning),
        (Kind.ANSWER, turn.completion.text),
    ):
        assert "".join(part.text for part in parts if part.kind is kind) == whole
    return turn


def talk(model, monkeypatch, source: str, said: str, **variables) -> tuple[Conversation, str]:
    """A conversation after one turn, and the prompt of the next."""
    template = ChatTemplate(source, bos_token="", eos_token="")
    monkeypatch.setattr(model, "template", template)
    conversation = Conversation(model, GREEDY, variables=variables)
    turn = say(conversation, "1+1", said)
    assert turn.completion.finish is Finish.STOP
    assert turn.completion.raw == said
    following = say(conversation, "2+2", "4")
    given = model.detokenize(following.completion.prompt, special=True)
    assert given.removeprefix("<|begin_of_text|>") == following.prompt
    return conversation, following.prompt


def test_a_template_that_cuts_reasoning_out_gets_none(model, monkeypatch):
    said = "<think>\nso it is\n</think>\n\n2"
    conversation, prompt = talk(model, monkeypatch, CUTS, said)
    assert conversation.exchanges[0] == Exchange("1+1", "2", "so it is")
    assert prompt == "user:1+1|assistant:2|user:2+2|assistant:"


def test_reasoning_that_begins_inside_the_prompt(model, monkeypatch):
    conversation, prompt = talk(model, monkeypatch, CUTS, "so it is\n</think>\n\n2", open=True)
    assert conversation.exchanges[0] == Exchange("1+1", "2", "so it is")
    assert prompt == "user:1+1|assistant:2|user:2+2|assistant:<think>\n"


def test_a_template_that_shows_reasoning_again_gets_it_apart(model, monkeypatch):
    conversation, prompt = talk(model, monkeypatch, SHOWS, "<think>\nso</think>2")
    assert conversation.messages[1] == {
        "role": "assistant",
        "content": "2",
        "reasoning_content": "so",
    }
    assert prompt == "user:1+1|assistant:<think>so</think>2|user:2+2|assistant:"


@pytest.mark.parametrize("is_open", [False, True])
def test_a_template_that_knows_nothing_of_reasoning_gets_all(model, monkeypatch, is_open):
    said = "so it is\n</think>\n2" if is_open else "<think>\nso it is\n</think>\n2"
    conversation, prompt = talk(model, monkeypatch, KEEPS, said, open=is_open)
    whole = "<think>\nso it is\n</think>\n2"
    assert conversation.exchanges[0] == Exchange("1+1", whole)
    assert prompt.startswith(f"user:1+1|assistant:{whole}|user:2+2|assistant:")


def test_what_is_shown_again_is_not_run_again(model, monkeypatch):
    monkeypatch.setattr(model, "template", ChatTemplate(KEEPS, bos_token="", eos_token=""))
    conversation = Conversation(model, GREEDY, variables={"open": True})
    say(conversation, "1+1", "so it is\n</think>\n2")
    held = len(model.session.tokens)
    turn = say(conversation, "2+2", "4")
    assert turn.completion.stats.prompt_tokens == len(turn.completion.prompt) - held


def test_reasoning_is_saved_and_loaded(model, monkeypatch, tmp_path: Path):
    conversation, _ = talk(model, monkeypatch, SHOWS, "<think>so</think>2")
    save_chat(tmp_path / "talk.json", conversation.messages, "model")
    assert load_chat(tmp_path / "talk.json") == (None, conversation.exchanges)


def test_reasoning_cut_short_leaves_no_answer(model, monkeypatch):
    monkeypatch.setattr(model, "template", ChatTemplate(CUTS, bos_token="", eos_token=""))
    conversation = Conversation(model, GREEDY, variables={"open": True}, max_tokens=3)
    say(conversation, "1+1", "so it is in the end")
    assert conversation.exchanges[0].assistant == ""
    assert conversation.exchanges[0].reasoning


def test_control_tokens_in_marks_are_seen_and_end_nothing(model):
    marks = find_marks("<|channel|>analysis<|message|>")
    eot = "<|eot|>"  # stands for a control token of a mark, which this vocabulary does not have
    marks = {eot: Kind.REASONING, **marks}
    prompt = model.tokenize("so")
    end = model.tokenize("<|end_of_text|>", add_bos=False, special=True)
    said = model.tokenize(f"it{eot}is", add_bos=False, special=True) + end
    completion = Completion(model.session, model.tokenizer, prompt, Script(*said), marks=marks)
    assert "".join(completion) == "it"
    assert completion.reasoning == "is"
    assert completion.raw == f"it{eot}is"
    assert completion.finish is Finish.STOP
