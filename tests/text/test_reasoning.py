"""Reasoning told from the answer, however the text is cut, and the variables that turn it off."""

import pytest

from q4run.text.chat_template import ChatTemplate
from q4run.text.reasoning import Kind, Splitter, find_marks, no_thinking, reasoning_effort

THINK = find_marks("<think>")
CHANNELS = find_marks("<|channel|>analysis<|message|>")


def split(marks, prompt: str, text: str, size: int) -> tuple[str, str]:
    """Reasoning and answer, from pieces of so many characters."""
    splitter = Splitter(marks, prompt)
    parts = []
    for start in range(0, len(text), size):
        parts += splitter.push(text[start : start + size])
    parts += splitter.flush()
    reasoning, answer = (
        "".join(part.text for part in parts if part.kind is kind)
        for kind in (Kind.REASONING, Kind.ANSWER)
    )
    return reasoning, answer


CASES = [
    (THINK, "A:", "<think>\nEasy.\n</think>\n\n2", ("Easy.\n", "2")),
    (THINK, "A:<think>\n", "Easy.\n</think>\n\n2\n", ("Easy.\n", "2\n")),
    (THINK, "A:<think>", "Easy.", ("Easy.", "")),
    (THINK, "A:<think>\n\n</think>\n\n", "\n2", ("", "2")),
    (THINK, "A:", "\n2 < 3 <thin", ("", "\n2 < 3 <thin")),
    (THINK, "A:", "a</think>", ("", "a")),
    (THINK, "A:", "a <think>b</think> c <think>d", ("bd", "a  c ")),
    ({}, "A:<think>", "a</think>b", ("", "a</think>b")),
    (
        CHANNELS,
        "<|start|>assistant",
        "<|channel|>analysis<|message|>Easy.<|end|>"
        "<|start|>assistant<|channel|>final<|message|>2 <|channel",
        ("Easy.", "2 <|channel"),
    ),
    (
        CHANNELS,
        "<|start|>assistant",
        "<|channel|>commentary to=functions.f <|constrain|>json<|message|>{}",
        ("", "{}"),
    ),
    (CHANNELS, "<|start|>assistant", "It is.", ("", "It is.")),
    (CHANNELS, "<|start|>assistant", "a<|end|>", ("", "a")),
    (find_marks("[THINK]"), "", "[THINK]a[/THINK]b", ("a", "b")),
]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(("marks", "prompt", "text", "wanted"), CASES)
def test_reasoning_and_answer(marks, prompt, text, wanted, size):
    assert split(marks, prompt, text, size) == wanted


def test_text_is_not_held_back_without_need():
    splitter = Splitter(THINK, "")
    assert [part.text for part in splitter.push("a < b")] == ["a < b"]
    assert [part.text for part in splitter.push(" <")] == [" "]
    assert [part.text for part in splitter.push("x")] == ["<x"]


def test_what_the_prompt_has_of_the_reasoning():
    assert Splitter(THINK, "A:<think>\n").opening == "<think>\n"
    assert Splitter(THINK, "A:<think></think>\n").opening == ""
    assert Splitter(THINK, "A:").opening == ""


@pytest.mark.parametrize(
    ("source", "off", "high"),
    [
        ("{% if not enable_thinking %}x{% endif %}", {"enable_thinking": False}, {}),
        ("{% set thinking = thinking or false %}", {"thinking": False}, {}),
        ("{{ reasoning_effort }}", {}, {"reasoning_effort": "high"}),
        (
            "{% if reasoning_effort == 'no_think' %}x{% endif %}",
            {"reasoning_effort": "no_think"},
            {"reasoning_effort": "high"},
        ),
        ("{% macro f() %}{{ thinking_budget }}{% endmacro %}", {"thinking_budget": 0}, {}),
        ("{% set enable_thinking = 1 %}{{ message.thinking }}", {}, {}),
        ("{% for %}", {}, {}),
    ],
)
def test_the_variables_that_a_template_reads(source, off, high):
    syntax = ChatTemplate(source, bos_token="", eos_token="").syntax
    assert no_thinking(syntax.variables, syntax.constants) == off
    assert reasoning_effort("high", syntax.variables) == high


def test_official_templates(shared_data):
    found = {}
    for path in sorted((shared_data / "templates").glob("*.jinja")):
        template = ChatTemplate(path.read_text("utf-8"), bos_token="", eos_token="")
        off = no_thinking(template.syntax.variables, template.syntax.constants)
        messages = [{"role": "user", "content": "Hi"}]
        if off:
            assert template.render(messages) != template.render(messages, **off) or (
                "DeepSeek" in path.name  # does not think unless it is told to
            )
        found[path.stem] = (sorted(off), bool(template.marks))
    assert found["Qwen-Qwen3-0.6B"] == (["enable_thinking"], True)
    assert found["deepseek-ai-DeepSeek-V3.1"] == (["enable_thinking", "thinking"], True)
    assert found["openai-gpt-oss-120b"] == ([], True)
    assert found["HuggingFaceTB-SmolLM3-3B"] == (["enable_thinking"], True)
    assert found["MiniMax-M2"] == ([], True)
    assert found["llama-4"] == ([], False)
