"""Conversations in every form that programs send them in, to templates that read only some."""

import json

import pytest
from helpers.chat_templates import (
    ARGUMENTS,
    CONVERSATIONS,
    PARTS_ONLY,
    RICH,
    TEXT_ONLY,
    called,
    parts,
    turns,
)

from q4run.text.chat_template import ChatTemplate
from q4run.text.template_input import TemplateInput


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, bos_token="<BOS>", eos_token="<EOS>")


def test_what_a_template_reads_is_found_out() -> None:
    assert template(RICH).input == TemplateInput(json_arguments=False)
    assert template(TEXT_ONLY).input == TemplateInput(parts=False)
    assert template(PARTS_ONLY).input == TemplateInput(text=False, json_arguments=False)
    marked = "{# <think> #}" + PARTS_ONLY
    assert template(marked).input == TemplateInput(
        text=False, json_arguments=False, reasoning=False
    )
    for damaged in ("{% for %}", "{{ raise_exception('no') }}", "{{ 1" + "+1" * 20000 + " }}"):
        assert not template(damaged).input.text


@pytest.mark.parametrize("source", [RICH, TEXT_ONLY, PARTS_ONLY])
def test_content_as_text_and_as_parts(source: str) -> None:
    as_text, as_parts = turns("ab", "c", "d"), turns(parts("ab"), parts("c"), "d")
    assert template(source).render(as_parts) == template(source).render(as_text)
    assert "ab" in template(source).render(as_text)
    assert "[{" not in template(source).render(as_parts)


def test_parts_of_a_text_are_lines() -> None:
    assert template(TEXT_ONLY).render(turns(parts("a", "b"))) == "user: a\nb<EOS>"


def test_arguments_as_an_object_and_as_json() -> None:
    text = json.dumps(ARGUMENTS)
    assert "<city>Orléans" in template(RICH).render(called(ARGUMENTS))
    assert template(RICH).render(called(text)) == template(RICH).render(called(ARGUMENTS))
    assert text in template(TEXT_ONLY).render(called(text))
    flat = [{"role": "assistant", "content": "", "tool_calls": [{"arguments": '{"k": 1}'}]}]
    assert "<k>1" in template(RICH).render(flat)
    for odd in ("[1]", "{", "[" * 100_000):
        shown = template("{{ messages[0].tool_calls[0].arguments }}").render(
            [{"role": "assistant", "tool_calls": [{"arguments": odd}, "call", {}]}]
        )
        assert shown == odd


@pytest.mark.parametrize("field", ["reasoning_content", "thinking", "reasoning"])
def test_reasoning_has_three_names(field: str) -> None:
    messages = turns("1+1", "2", **{field: "Easy."})
    for read in ("reasoning_content", "thinking"):
        assert template("{{ messages[1]." + read + " }}").render(messages) == "Easy."


def test_the_messages_given_stay_as_they_are() -> None:
    given = {name: json.dumps(messages) for name, messages in CONVERSATIONS.items()}
    for messages in CONVERSATIONS.values():
        template(RICH).render(messages)
    assert {name: json.dumps(messages) for name, messages in CONVERSATIONS.items()} == given
