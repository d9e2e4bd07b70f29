"""Chat templates: the official ones by hand-written texts, and hostile ones by their end."""

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from q4run.errors import Error, FormatError
from q4run.text import template_work
from q4run.text.chat_template import (
    PLAIN_STOP,
    PLAIN_TEMPLATE,
    ChatTemplate,
    load_chat_template,
)
from q4run.text.tokenizer import Tokenizer, load_tokenizer

CONVERSATION = [
    {"role": "system", "content": " Be brief. "},
    {"role": "user", "content": "Hi <b>&\n"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": "Bye 漢"},
]
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the <weather>",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}


def render(source: str, messages: Any = CONVERSATION, **options: Any) -> str:
    return ChatTemplate(source, bos_token="<BOS>", eos_token="<EOS>").render(messages, **options)


def official(shared_data: Path, name: str) -> str:
    return (shared_data / "templates" / f"{name}.jinja").read_text(encoding="utf-8")


# The official templates


def test_llama_4(shared_data: Path) -> None:
    source = official(shared_data, "llama-4")
    # Unlike the others it trims nothing but the system message.
    assert render(source) == (
        "<BOS><|header_start|>system<|header_end|>\n\nBe brief.<|eot|>"
        "<|header_start|>user<|header_end|>\n\nHi <b>&\n<|eot|>"
        "<|header_start|>assistant<|header_end|>\n\nHello!<|eot|>"
        "<|header_start|>user<|header_end|>\n\nBye 漢<|eot|>"
        "<|header_start|>assistant<|header_end|>\n\n"
    )
    images = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}]
    assert render(source, images, add_generation_prompt=False) == (
        "<BOS><|header_start|>user<|header_end|>\n\n<|image|>What?<|eot|>"
    )
    call = {"function": {"name": "weather", "arguments": {"city": "Zürich", "day": None}}}
    called = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": {"degrees": 21.5}},
    ]
    text = render(source, called, tools=[TOOL])
    assert text.startswith("<BOS><|header_start|>user<|header_end|>\n\nGiven the following")
    assert json.dumps(TOOL, indent=4) + "\n\nWeather?<|eot|>" in text
    assert text.endswith(
        "<|header_start|>assistant<|header_end|>\n\n<|python_start|><|python_end|>"
        '{"name": "weather", "parameters": {"city": "Zürich", "day": null}}<|eot|>'
        '<|header_start|>ipython<|header_end|>\n\n{"degrees": 21.5}<|eot|>'
        "<|header_start|>assistant<|header_end|>\n\n"
    )


def test_llama_3_1(shared_data: Path) -> None:
    source = official(shared_data, "meta-llama-Llama-3.1-8B-Instruct")
    assert render(source, CONVERSATION[:2], date_string="1 May 2025") == (
        "<BOS><|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 1 May 2025\n\nBe brief.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nHi <b>&<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_qwen_3(shared_data: Path) -> None:
    source = official(shared_data, "Qwen-Qwen3-0.6B")
    messages = [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "<think>\nEasy.\n</think>\n\n2"},
        {"role": "user", "content": "And 2+2?"},
    ]
    start = (
        "<|im_start|>user\n1+1?<|im_end|>\n<|im_start|>assistant\n2<|im_end|>\n"
        "<|im_start|>user\nAnd 2+2?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert render(source, messages) == start
    assert render(source, messages, enable_thinking=False) == start + "<think>\n\n</think>\n\n"


def test_mistral_nemo(shared_data: Path) -> None:
    source = official(shared_data, "mistralai-Mistral-Nemo-Instruct-2407")
    assert render(source) == (
        "<BOS>[INST]Hi <b>&\n[/INST]Hello!<EOS>[INST] Be brief. \n\nBye 漢[/INST]"
    )
    with pytest.raises(Error, match="must alternate") as caught:
        render(source, [CONVERSATION[1], CONVERSATION[1]])
    assert not isinstance(caught.value, FormatError)


def test_gpt_oss(shared_data: Path) -> None:
    text = render(official(shared_data, "openai-gpt-oss-120b"), tools=[TOOL])
    today = datetime.now().strftime("%Y-%m-%d")
    assert text.startswith("<|start|>system<|message|>You are ChatGPT")
    # Midnight may pass between the two readings of the clock; the form must hold in any case.
    assert f"Current date: {today}\n" in text or re.search(r"Current date: \d{4}-\d\d-\d\d\n", text)
    assert "// Tells the <weather>\ntype weather = (_: {\n" in text
    assert text.endswith(
        "<|start|>assistant<|channel|>final<|message|>Hello!<|end|>"
        "<|start|>user<|message|>Bye 漢<|end|><|start|>assistant"
    )


def test_tiny_llama_4(shared_data: Path) -> None:
    path = shared_data / "weights" / "tiny-llama4" / "tokenizer_config.json"
    source = json.loads(path.read_text(encoding="utf-8"))["chat_template"]
    assert render(source, CONVERSATION[1:2]) == (
        "<BOS><|header_start|>user<|header_end|>\n\nHi <b>&<|eot|>"
        "<|header_start|>assistant<|header_end|>\n\n"
    )


# The means that templates are given


def test_plain_template() -> None:
    start = "Be brief.\n\nUser: Hi <b>&\nAssistant: Hello!\nUser: Bye 漢\n"
    assert render(PLAIN_TEMPLATE) == start + "Assistant:"
    assert render(PLAIN_TEMPLATE, add_generation_prompt=False) == start
    assert PLAIN_STOP in start


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("plain", "plain"),
        ("", ""),
        ("  {% if true %}\nx\n  {% endif %}\ny\n", "x\ny"),
        ("{{ bos_token ~ 1 ~ none ~ eos_token }}", "<BOS>1None<EOS>"),
        ("{{ tools is none }} {{ nothing is defined }} {{ messages[9] }}", "True False "),
        ("{{ {'b': '<é>', 'a': [1, none]} | tojson }}", '{"b": "<é>", "a": [1, null]}'),
        ("{{ {'b': 1, 'a': 2} | tojson(indent=1) }}", '{\n "b": 1,\n "a": 2\n}'),
        (
            "{% for i in range(5) %}{% if i == 1 %}{% continue %}{% endif %}"
            "{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
            "02",
        ),
        (
            "{% for i in [7, 8] %}{{ loop.index }}/{{ loop.length }}{{ loop.last }}{% endfor %}",
            "1/2False2/2True",
        ),
        ("{% for i in [] %}x{% else %}none{% endfor %}", "none"),
        ("{% for k, v in {'a': (1, 2)}.items() if k %}{{ k }}{{ v[1] }}{% endfor %}", "a2"),
        (
            "{% for a in [1, [2, 3]] recursive %}{{ loop(a) if a is iterable else a }}{% endfor %}",
            "123",
        ),
        (
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
            "{% endfor %}{{ ns.n }}",
            "4",
        ),
        ("{% macro f(x, y=2) %}{{ x * y }}{% endmacro %}{{ f(3) }}{{ f('ab', 3) }}", "6ababab"),
        ("{% generation %}answer{% endgeneration %}", "answer"),
        ("{% set x %}a{{ 1 }}{% endset %}{{ x | upper }}", "A1"),
        ("{{ '%s-%03d' % ('a', 7) }} {{ '{:>4}|{x}'.format(1, x='y') }}", "a-007    1|y"),
        ("{{ '%s!' | format('a') }} {{ '{a}'.format_map({'a': 1}) }}", "a! 1"),
        ("{{ messages | map(attribute='role') | unique | join(', ') }}", "system, user, assistant"),
        ("{{ messages | selectattr('role', 'equalto', 'user') | list | length }}", "2"),
        ("{{ messages | join('+', attribute='role') }}", "system+user+assistant+user"),
        (
            "{{ 'a-b-c'.split('-')[-1] }}{{ ' x '.strip() }}{{ 'aab'.replace('a', 'c', 1) }}",
            "cxcab",
        ),
        ("{{ 'aab' | replace('a', 'c') }} {{ '-'.join(['a', 'b']) }}", "ccb a-b"),
        (
            "{{ 'a\nb' | indent(2) }} {{ [1] + [2] }} {{ 'x' * 3 }} {{ 7 % 4 }}",
            "a\n  b [1, 2] xxx 3",
        ),
        ("{{ (messages[::-1] | first).content }} {{ messages[1:] | length }}", "Bye 漢 3"),
        ("{{ strftime_now('%Y') | int > 2000 }}", "True"),
        ("{{ {'format': 1}.format }}{{ {'a': 1}.get('b', 2) }}", "12"),
    ],
)
def test_means(source: str, text: str) -> None:
    assert render(source) == text


def test_variables_and_messages_are_copies() -> None:
    messages = ({"role": "user", "content": ("a", 1, 2.5, True, None)},)
    source = "{{ messages[0].content }} {{ extra.x }}"
    assert render(source, messages, extra={"x": [1]}) == "['a', 1, 2.5, True, None] [1]"
    for thing in (object(), b"bytes", {1, 2}):
        with pytest.raises(Error, match=type(thing).__name__):
            render(source, [{"role": "user", "content": thing}])


def test_a_template_renders_again_after_it_failed() -> None:
    template = ChatTemplate("{{ messages[0].content + '!' }}", bos_token="", eos_token="")
    assert template.render([{"content": "a"}]) == "a!"
    with pytest.raises(FormatError):
        template.render([{"content": 1}])
    assert template.render([{"content": "b"}]) == "b!"


def test_long_conversations_are_within_bounds(shared_data: Path) -> None:
    turns = [
        {"role": ("user", "assistant")[index % 2], "content": "many words " * 1000}
        for index in range(999)
    ]
    for path in sorted((shared_data / "templates").glob("*.jinja")):
        assert len(render(path.read_text(encoding="utf-8"), turns)) > 999 * 11_000


# Hostile templates

TWICE = "{% set x = START %}" + "{% set x = NEXT %}" * 60


def doubled(start: str, following: str, end: str) -> str:
    return TWICE.replace("START", start).replace("NEXT", following) + end


HOSTILE = {
    "syntax": "{% for %}",
    "unclosed": "{{ 'a",
    "unknown tag": "{% system 'ls' %}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}{{ os.system('id') }}",
    "undefined": "{{ a.b }}",
    "arithmetic": "{{ 1 / 0 }}",
    "types": "{{ 'a' + 1 }}",
    "internals": "{{ ''.__class__ }}",
    "internals by subscript": "{{ ''['__class__'] }}",
    "internals by format": "{{ '{0.__class__}'.format('') }}",
    "internals by filter": "{{ messages | map(attribute='__class__') | list }}",
    "globals": "{{ raise_exception.__globals__ }}",
    "bound method": "{{ messages[0].get.__self__ }}",
    "own environment": "{{ self._TemplateReference__context }}",
    "change": "{{ messages.append(1) }}",
    "huge range": "{% for i in range(1000000000) %}{% endfor %}",
    "nested loops": "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
    "loop filter": "{% for a in range(99999) if range(9999) | list | length == 1 %}{% endfor %}",
    "many statements": "{% set x = [1] * 600000 %}" + "{% set y = x[1:] %}" * 2999,
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "tree recursion": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}"
    "{{ f(99) }}",
    "loop recursion": "{% for a in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}",
    "times": "{{ 'x' * 10000000000 }}",
    "times twice": "{% set n = 100000 %}{{ ('x' * n) * n }}",
    "list times": "{{ 100000 * ([1] * 100000) }}",
    "power": "{{ 10 ** 10 ** 10 }}",
    "squares": "{% set ns = namespace(x=9) %}{% for i in range(99) %}"
    "{% set ns.x = ns.x * ns.x %}{% endfor %}",
    "tilde": doubled("'ab'", "x ~ x", "{{ x }}"),
    "plus": doubled("'ab'", "x + x", "{{ x }}"),
    "blocks": "{% set x %}ab{% endset %}" + "{% set x %}{{ x }}{{ x }}{% endset %}" * 60,
    "nested lists": doubled("[1]", "[x, x]", "{{ x }}"),
    "nested tuples": doubled("(1,)", "(x, x)", "{{ {x: 1} }}"),
    "nested mappings": doubled("{}", "{'a': x, 'b': x}", "{{ x | tojson }}"),
    "nested calls": doubled("{}", "dict(a=x, b=x)", "{{ x | string }}"),
    "nested namespaces": doubled("1", "namespace(a=x, b=x)", "{{ x }}"),
    "wide percent": "{{ '%1000000000d' % 1 }}",
    "wide percent after a name": "{{ '%(a(b))1000000000d' % {'a(b)': 1} }}",
    "wide percent filter": "{{ '%1000000000d' | format(1) }}",
    "given width": "{{ '%*d' % (1000000000, 1) }}",
    "wide format": "{{ '{:1000000000}'.format(1) }}",
    "given format width": "{{ '{:{w}}'.format(1, w=1000000000) }}",
    "many fields": "{{ ('{0}' * 90000).format('x' * 90000) }}",
    "ljust": "{{ 'x'.ljust(1000000000) }}",
    "center": "{{ 'x' | center(1000000000) }}",
    "indent": "{{ 'a\nb' | indent(1000000000) }}",
    "json indent": "{{ [1] | tojson(indent=1000000000) }}",
    "to_bytes": "{{ (1).to_bytes(1000000000, 'big') }}",
    "replace": "{{ ('a' * 999999).replace('a', 'b' * 999999) }}",
    "replace filter": "{{ ('a' * 999999) | replace('', 'b' * 999999) }}",
    "join": "{{ ('b' * 999999).join(['a'] * 999999) }}",
    "join filter": "{{ (['a'] * 999999) | join('b' * 999999) }}",
    "joined parts": "{{ ([['a' * 1000] * 1000] * 1000) | map('join') | join }}",
    "batch": "{{ [1] | batch(1000000000, 'x') | list }}",
    "output": "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "sorting": "{% set x = range(99999) | list %}"
    "{% for i in range(99999) %}{% set y = x | sort %}{% endfor %}",
    "parentheses": "{{ " + "(" * 50000 + "1" + ")" * 50000 + " }}",
    "sum": "{{ 1" + "+1" * 50000 + " }}",
    "attributes": "{{ a" + ".a" * 50000 + " }}",
    "branches": "{% if a %}" + "{% elif a %}" * 9999 + "{% endif %}",
    "deep": "{% for a in [1] %}" * 30 + "{% endfor %}" * 30,
    "length": "x" * 300000,
    "surrogate": "{{ '\udcff' ~ 1 | nothing }}",
    "insides": "{{ range }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_templates_end_in_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_work, "MAX_SECONDS", 1.0)
    monkeypatch.setattr(template_work, "MAX_STEPS", 100_000)
    with pytest.raises(FormatError) as caught:
        render(HOSTILE[name])
    assert str(caught.value).startswith("the chat template ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_refusals_of_the_template_are_one_line() -> None:
    with pytest.raises(Error) as caught:
        render("{{ raise_exception('no\nway ' * 500) }}")
    assert str(caught.value).startswith(
        "the chat template refuses this conversation: no way no way"
    )
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


# From a file


def tokenizer_with(**changes: Any) -> Tokenizer:
    tokens = ["<unk>", "<s>", "</s>", "▁", "a"]
    metadata = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [2, 3, 3, 1, 1],
    }
    return load_tokenizer(
        metadata | {f"tokenizer.ggml.{key}": value for key, value in changes.items()}
    )


def test_from_a_file() -> None:
    metadata = {
        "tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}"
    }
    template = load_chat_template(metadata, tokenizer_with())
    assert template is not None
    assert template.render([{"role": "user", "content": "a"}]) == "<s>a</s>"


def test_a_file_without() -> None:
    for metadata in ({}, {"tokenizer.chat_template": " \n"}, {"tokenizer.chat_template.rag": "x"}):
        assert load_chat_template(metadata, tokenizer_with()) is None
    with pytest.raises(FormatError, match=r"tokenizer\.chat_template"):
        load_chat_template({"tokenizer.chat_template": ["x"]}, tokenizer_with())


def test_a_damaged_template_harms_only_those_who_chat() -> None:
    template = load_chat_template({"tokenizer.chat_template": "{% for %}"}, tokenizer_with())
    assert template is not None
    with pytest.raises(FormatError):
        template.render([])


def test_rendered_text_is_encoded_with_one_bos() -> None:
    tokenizer = tokenizer_with()
    metadata = {"tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}"}
    template = load_chat_template(metadata, tokenizer)
    assert template is not None
    assert tokenizer.encode(template.render([{"content": "a"}]), special=True) == [1, 3, 4]
