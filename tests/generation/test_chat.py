"""Conversations: what is run again and what is not, and what fits."""

from pathlib import Path

import pytest
from helpers.chat_models import make_chat_model
from helpers.scripted import Script

import q4run
from q4run.errors import Error
from q4run.generation.completion import Completion, Finish
from q4run.generation.conversation import Conversation, Exchange, MessageTooLongError, Turn
from q4run.generation.conversation_file import load_chat, save_chat
from q4run.generation.sampler import Sampler, SamplingParameters
from q4run.text.chat_template import ChatTemplate

GREEDY = SamplingParameters(temperature=0.0)


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> Path:
    return make_chat_model(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def loaded(model_path):
    with q4run.load(model_path, context=256, threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def roomy(model_path):
    with q4run.load(model_path, context=4096, threads=1) as model:
        yield model


@pytest.fixture
def model(loaded):
    loaded.session.clear()
    return loaded


def say(conversation: Conversation, message: str, *said) -> Turn:
    """One turn in which the model says the given tokens."""
    conversation._sampler = Script(*said)
    with conversation.ask(message) as turn:
        assert "".join(turn) == turn.completion.text
    return turn


def ids_of(model, text: str) -> list[int]:
    return model.tokenize(text, add_bos=False, special=True)


def run_anew(model, conversation: Conversation) -> list[int]:
    """The conversation's tokens as the template gives them, all encoded at once."""
    text = model.template.render(conversation.messages, add_generation_prompt=False)
    return model.tokenize(text, special=True)


def test_the_second_turn_runs_only_what_is_new(model):
    conversation = Conversation(model, GREEDY)
    end = ids_of(model, "<|eot|>")
    first = say(conversation, "Is it warm?", *ids_of(model, "It is the end."), *end)
    assert first.completion.finish is Finish.STOP
    assert first.completion.stats.prompt_tokens == len(first.completion.prompt)
    held = len(model.session.tokens)

    second = say(conversation, "And in the city?", *ids_of(model, "There too."), *end)
    # All but the stop token, which was chosen and not run, is in the cache.
    assert second.completion.stats.prompt_tokens == len(second.completion.prompt) - held
    assert second.completion.prompt[: held + 1] == [
        *first.completion.prompt,
        *first.completion.tokens,
    ]
    assert [*second.completion.prompt, *second.completion.tokens] == run_anew(model, conversation)
    assert conversation.exchanges == [
        Exchange("Is it warm?", "It is the end."),
        Exchange("And in the city?", "There too."),
    ]


def test_an_answer_is_the_same_as_without_what_was_kept(model):
    conversation = Conversation(model, GREEDY, max_tokens=24)
    for message in ("Hello there", "and then?"):
        with conversation.ask(message) as turn:
            text = "".join(turn)
    assert turn.completion.stats.prompt_tokens < len(turn.completion.prompt)
    model.session.clear()
    again = Completion(model.session, model.tokenizer, turn.completion.prompt, Sampler(GREEDY), 24)
    assert "".join(again) == text
    assert again.tokens == turn.completion.tokens
    assert again.stats.prompt_tokens == len(again.prompt)


def test_generated_tokens_stay_as_they_were_however_their_text_is_encoded(model):
    conversation = Conversation(model, GREEDY)
    letters = [token for letter in "the end" for token in ids_of(model, letter)]
    assert letters != ids_of(model, "the end")
    first = say(conversation, "Hi", *letters, *ids_of(model, "<|eot|>"))
    assert first.completion.text == "the end"
    second = say(conversation, "Hi", *ids_of(model, "<|eot|>"))
    assert second.completion.prompt[: len(first.completion.prompt) + len(letters)] == [
        *first.completion.prompt,
        *letters,
    ]


@pytest.mark.parametrize("answer", [" \n it is\t", "\n", "", "is  "])
def test_answers_that_the_template_trims_are_not_run_again(model, answer):
    conversation = Conversation(model, GREEDY)
    first = say(conversation, "Hi", *ids_of(model, answer), *ids_of(model, "<|eot|>"))
    assert conversation.exchanges[0].assistant == answer
    held = len(model.session.tokens)
    second = say(conversation, "so", *ids_of(model, "<|eot|>"))
    assert second.completion.stats.prompt_tokens == len(second.completion.prompt) - held
    new = (
        "<|header_start|>user<|header_end|>\n\nso<|eot|><|header_start|>assistant<|header_end|>\n\n"
    )
    assert second.completion.prompt == [
        *first.completion.prompt,
        *first.completion.tokens,
        *ids_of(model, new),
    ]


def test_ctrl_c_keeps_what_was_said_and_the_next_turn_ends_it_as_the_template_does(model):
    conversation = Conversation(model, GREEDY)
    said = ids_of(model, "It is the")
    with pytest.raises(KeyboardInterrupt):
        say(conversation, "Is it?", *said, KeyboardInterrupt)
    assert conversation.exchanges == [Exchange("Is it?", "It is the")]
    second = say(conversation, "Go on", *ids_of(model, "<|eot|>"))
    assert second.completion.stats.prompt_tokens < len(second.completion.prompt) - len(said)
    assert [*second.completion.prompt, *second.completion.tokens] == run_anew(model, conversation)


def test_ctrl_c_before_the_first_token_takes_the_message_back(model):
    conversation = Conversation(model, GREEDY)
    with pytest.raises(KeyboardInterrupt):
        say(conversation, "Is it?", KeyboardInterrupt)
    assert conversation.exchanges == []
    say(conversation, "Hello", *ids_of(model, "<|eot|>"))
    assert conversation.exchanges == [Exchange("Hello", "")]


def test_half_a_character_at_the_end_is_not_part_of_the_answer(model):
    conversation = Conversation(model, GREEDY)
    with pytest.raises(KeyboardInterrupt):
        say(conversation, "Hi", *ids_of(model, "é")[:1], KeyboardInterrupt)
    assert conversation.exchanges == []
    turn = say(conversation, "Hi", *ids_of(model, "aé")[:2], *ids_of(model, "<|eot|>"))
    assert turn.completion.text == "a�"
    say(conversation, "Hi", *ids_of(model, "<|eot|>"))
    assert len(conversation.exchanges) == 2


def test_a_stop_token_that_the_template_does_not_write_gives_way_to_the_one_it_does(model):
    conversation = Conversation(model, GREEDY)
    first = say(conversation, "Hi", *ids_of(model, "it<|end_of_text|>"))
    assert first.completion.finish is Finish.STOP
    second = say(conversation, "so", *ids_of(model, "<|eot|>"))
    assert [*second.completion.prompt, *second.completion.tokens] == run_anew(model, conversation)
    held = len(first.completion.prompt) + 1
    assert second.completion.stats.prompt_tokens == len(second.completion.prompt) - held


TEMPLATES = [
    "llama-4",
    "meta-llama-Llama-3.1-8B-Instruct",
    "mistralai-Mistral-Nemo-Instruct-2407",
    "Qwen-Qwen3-0.6B",
    "openai-gpt-oss-120b",
]


@pytest.mark.parametrize("answer", ["It is.", " it is\n", "<think>\nso\n</think>\n\nIt is."])
@pytest.mark.parametrize("name", TEMPLATES)
def test_a_real_template_and_what_the_model_is_given_agree(
    roomy, monkeypatch, shared_data, name, answer
):
    source = (shared_data / "templates" / f"{name}.jinja").read_text()
    template = ChatTemplate(source, bos_token="<|begin_of_text|>", eos_token="<|eot|>")
    monkeypatch.setattr(roomy, "template", template)
    conversation = Conversation(roomy, GREEDY)
    for number in range(3):
        messages = [*conversation.messages, {"role": "user", "content": f"number {number}"}]
        said = ids_of(roomy, f"{answer}<|eot|>")
        turn = say(conversation, f"number {number}", *said)
        # Templates may trim an answer, which has been run as it was; the BOS is as the file says.
        given = roomy.detokenize(turn.completion.prompt[1:], special=True)
        wanted = template.render(messages).removeprefix("<|begin_of_text|>")
        assert "".join(given.split()) == "".join(wanted.split())
        thinks = answer.startswith("<think>") and template.marks.get("<think>")
        wanted = Exchange(f"number {number}", *("It is.", "so") if thinks else (answer,))
        assert conversation.exchanges[number] == wanted


def test_a_changed_system_message_is_run_from_the_beginning(model):
    conversation = Conversation(model, GREEDY, system="in the end")
    say(conversation, "Hi", *ids_of(model, "it<|eot|>"))
    conversation.system = "in the is"
    turn = say(conversation, "so", *ids_of(model, "<|eot|>"))
    assert [*turn.completion.prompt, *turn.completion.tokens] == run_anew(model, conversation)
    assert conversation.messages[0] == {"role": "system", "content": "in the is"}


def test_an_answer_ends_at_max_tokens(model):
    conversation = Conversation(model, GREEDY, max_tokens=5)
    with conversation.ask("Hi") as turn:
        list(turn)
    assert turn.completion.finish is Finish.LENGTH
    assert len(turn.completion.tokens) == 5
    assert conversation.exchanges == [Exchange("Hi", turn.completion.text)]


def test_the_end_of_the_context_ends_an_answer_and_the_next_turn_makes_room(model):
    conversation = Conversation(model, GREEDY, system="is the end")
    with conversation.ask("Hi") as turn:
        list(turn)
    assert turn.completion.finish is Finish.CONTEXT
    assert len(turn.completion.prompt) + len(turn.completion.tokens) == conversation.context + 1
    turn = say(conversation, "so", *ids_of(model, "it<|eot|>"))
    assert turn.n_dropped == 1
    assert conversation.exchanges == [Exchange("so", "it")]
    assert [*turn.completion.prompt, *turn.completion.tokens] == run_anew(model, conversation)


def test_the_oldest_exchanges_are_dropped_and_no_more_than_make_room(model):
    conversation = Conversation(model, GREEDY, system="is the end")
    dropped = []
    for number in range(12):
        turn = say(conversation, f"number {number}", *ids_of(model, f"it is {number}<|eot|>"))
        dropped.append(turn.n_dropped)
        assert len(turn.completion.prompt) <= conversation.context * 7 / 8
        assert conversation.messages[0] == {"role": "system", "content": "is the end"}
        assert [*turn.completion.prompt, *turn.completion.tokens] == run_anew(model, conversation)
    assert sum(dropped) > 0
    assert sum(map(bool, dropped)) <= 2  # more room than one turn needs is made at a time
    kept = len(conversation.exchanges)
    assert [exchange.user for exchange in conversation.exchanges] == [
        f"number {number}" for number in range(12 - kept, 12)
    ]


def test_a_message_that_does_not_fit_even_alone_changes_nothing(model):
    conversation = Conversation(model, GREEDY)
    say(conversation, "Hi", *ids_of(model, "it<|eot|>"))
    before = list(model.session.tokens)
    with pytest.raises(MessageTooLongError, match=r"context of 256.*--context") as caught:
        conversation.ask("x" * 300)
    assert "\n" not in str(caught.value)
    assert conversation.exchanges == [Exchange("Hi", "it")]
    assert model.session.tokens == before
    turn = say(conversation, "so", *ids_of(model, "<|eot|>"))
    assert turn.n_dropped == 0


def test_the_longest_message_that_fits_gets_an_answer(model):
    conversation = Conversation(model, GREEDY)
    overhead = len(conversation.ask("").completion.prompt)
    with conversation.ask("x" * (conversation.context - overhead - 1)) as turn:
        list(turn)
    assert turn.completion.finish is Finish.CONTEXT
    assert len(turn.completion.tokens) == 2
    with pytest.raises(MessageTooLongError):
        conversation.ask("x" * (conversation.context - overhead))


def test_beginning_anew_with_a_seed_says_the_same_again(model):
    parameters = SamplingParameters(temperature=1.5, seed=7)
    conversation = Conversation(model, parameters, max_tokens=16)
    texts = []
    for _ in range(2):
        with conversation.ask("Hi") as turn:
            texts.append("".join(turn))
        conversation.start_anew()
    assert texts[0] == texts[1]
    assert conversation.exchanges == []


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (" It is.\nUser: and so", " It is."),
        (" It is.\nUs", " It is.\nUs"),
        ("\n\nUser", "\n\nUser"),
        ("\n\nUser:", "\n"),
        ("\nUse \nUser:", "\nUse "),
    ],
)
def test_a_model_without_a_template_is_stopped_where_it_speaks_for_the_user(
    model, monkeypatch, said, answer
):
    monkeypatch.setattr(model, "template", None)
    tokens = ids_of(model, said)
    conversation = Conversation(model, GREEDY, max_tokens=len(tokens))
    turn = say(conversation, "Is it?", *tokens)
    assert model.detokenize(turn.completion.prompt) == "User: Is it?\nAssistant:"
    assert conversation.exchanges == [Exchange("Is it?", answer)]
    assert turn.completion.finish is (Finish.STOP if "User:" in said else Finish.LENGTH)
    again = say(conversation, "so", *ids_of(model, "<|eot|>"))
    expected = f"User: Is it?\nAssistant: {answer.strip()}\nUser: so\nAssistant:"
    assert "".join(model.detokenize(again.completion.prompt).split()) == "".join(expected.split())


def test_an_empty_prompt_is_an_error(model):
    with pytest.raises(Error, match="empty"):
        Completion(model.session, model.tokenizer, [], Sampler(GREEDY))


def test_a_completion_knows_its_rates(model):
    completion = Completion(model.session, model.tokenizer, [1, 2, 3], Sampler(GREEDY), 4)
    list(completion)
    assert completion.rate > 0
    assert completion.prompt_rate > 0
    assert completion.stats.prompt_tokens == 3
    assert completion.stats.tokens == 3  # the fourth was chosen, not run
    one = Completion(model.session, model.tokenizer, [1, 2, 3], Sampler(GREEDY), 1)
    list(one)
    assert one.rate is None
    assert one.first_token_s > 0


def test_a_loaded_conversation_goes_on(tmp_path, model):
    conversation = Conversation(model, GREEDY, system="is")
    say(conversation, "Hi", *ids_of(model, "it<|eot|>"))
    save_chat(tmp_path / "talk.json", conversation.messages, "tiny")
    other = Conversation(model, GREEDY)
    other.start_anew(*load_chat(tmp_path / "talk.json"))
    turn = say(other, "so", *ids_of(model, "the<|eot|>"))
    assert [*turn.completion.prompt, *turn.completion.tokens] == run_anew(model, other)
    assert [exchange.user for exchange in other.exchanges] == ["Hi", "so"]
