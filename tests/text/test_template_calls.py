"""Everything that a template can call, from everywhere that it can call it from."""

import re

import pytest
from helpers.chat_templates import LISTS, turns

from q4run.errors import FormatError
from q4run.text import template_work
from q4run.text.chat_template import ChatTemplate


def render(source: str) -> str:
    return ChatTemplate(source, bos_token="", eos_token="").render(turns("x", "y", "z"))


CALLS = {
    "'aXbX'.replace('X', '-')": "a-b-",
    "'aXbX'.replace('X', '-', 1)": "a-bX",
    "', '.join(['a', 'b'])": "a, b",
    "('a' | safe).replace('a', 'b')": "b",
    "('-' | e).join(['a', 'b'])": "a-b",
    "'a b'.split()[1]": "b",
    "' a '.strip()": "a",
    "'{}-{x}'.format(1, x=2)": "1-2",
    "'{a}'.format_map({'a': 1})": "1",
    "'ab'.startswith('a')": "True",
    "{'a': 1}.get('a')": "1",
    "({'a': 1}.items() | list)[0][1]": "1",
    "[1, 2].index(2)": "1",
    "dict(a=1)": "{'a': 1}",
    "dict.fromkeys(['a'])": "{'a': None}",
    "namespace(a=1).a": "1",
    "range(3) | list": "[0, 1, 2]",
    "strftime_now('%Y') | length": "4",
    "strftime_now(format='%Y') | length": "4",
    "cycler('a', 'b').next()": "a",
    "joiner(',')()": "",
    "['b', 'a'] | sort | join('+')": "a+b",
    "'ab' | replace('a', 'c')": "cb",
    "{'é': 1} | tojson": '{"é": 1}',
    "{'é': 1} | tojson(ensure_ascii=true)": r'{"\u00e9": 1}',
    "[1] | tojson(separators=(',', ':'), indent=none, sort_keys=true)": "[1]",
    "'{\"a\": [1]}' | from_json": "{'a': [1]}",
    "'a' is in(['a'])": "True",
    "messages | map(attribute='content') | map('replace', 'y', 'q') | join": "xqz",
    "messages | selectattr('role', 'equalto', 'user') | list | length": "2",
    "double('a')": "aa",
}
PLACES = {
    "top": "{{ CALL }}",
    "loop": "{% for i in [1] %}{{ CALL }}{% endfor %}",
    "loop over it": "{% for i in [CALL] %}{{ i }}{% endfor %}",
    "loop in a loop": "{% for i in [1] %}{% for j in [1] %}{{ CALL }}{% endfor %}{% endfor %}",
    "recursive loop": "{% for i in [1] recursive %}{{ CALL }}{% endfor %}",
    "block": "{% block b %}{{ CALL }}{% endblock %}",
    "block in a loop": "{% for i in [1] %}{% block b scoped %}{{ CALL }}{% endblock %}{% endfor %}",
    "macro": "{% macro m() %}{{ CALL }}{% endmacro %}{{ m() }}",
    "macro in a loop": "{% for i in [1] %}{% macro m() %}{{ CALL }}{% endmacro %}{{ m() }}"
    "{% endfor %}",
    "default of a macro": "{% macro m(x=CALL) %}{{ x }}{% endmacro %}{{ m() }}",
    "call block": "{% macro m() %}{{ caller() }}{% endmacro %}"
    "{% call m() %}{{ CALL }}{% endcall %}",
    "argument": "{% macro m(x) %}{{ x }}{% endmacro %}{% for i in [1] %}{{ m(CALL) }}{% endfor %}",
    "variable": "{% for i in [1] %}{% set x = CALL %}{{ x }}{% endfor %}",
    "namespace": "{% set n = namespace(x=0) %}{% for i in [1] %}{% set n.x = CALL %}{% endfor %}"
    "{{ n.x }}",
    "set block": "{% for i in [1] %}{% set x %}{{ CALL }}{% endset %}{{ x }}{% endfor %}",
    "filter block": "{% for i in [1] %}{% filter trim %}{{ CALL }}{% endfilter %}{% endfor %}",
    "generation": "{% for i in [1] %}{% generation %}{{ CALL }}{% endgeneration %}{% endfor %}",
    "with": "{% for i in [1] %}{% with x = CALL %}{{ x }}{% endwith %}{% endfor %}",
    "do": "{% for i in [1] %}{% do CALL %}{{ CALL }}{% endfor %}",
}
DOUBLE = "{% macro double(x) %}{{ x ~ x }}{% endmacro %}"


@pytest.mark.parametrize("place", PLACES)
def test_all_can_be_called_from_everywhere(place: str) -> None:
    for call, text in CALLS.items():
        assert render(DOUBLE + PLACES[place].replace("CALL", call)) == text, call


def test_lists_can_be_changed() -> None:
    assert render(LISTS) == "['user', 'assistant', 'user']ab3-2-1"


HOSTILE = {
    "endless list": "{% set x = [1] %}{% for i in x %}{% do x.append(i) %}{% endfor %}",
    "doubled list": "{% set x = [1] %}{% for i in range(99) %}{% do x.extend(x) %}{% endfor %}",
    "list in itself": "{% set x = [1] %}{% do x.append(x) %}{{ x }}",
    "lists from outside in": "{% set a = [] %}{% set b = [a, a] %}{% do a.append(1) %}",
    "kept method": "{% set a = [] %}{% set f = a.append %}{% set b = [a] %}{{ f(1) }}",
    "the conversation": "{% do messages.append(1) %}",
    "safe replace": "{{ ('a' * 999999 | safe).replace('a', 'b' * 999999) }}",
    "safe join": "{{ (('b' * 99999) | e).join(['a'] * 99999) }}",
    "escaped join": "{{ ('' | e).join(['\"' * 999999] * 9) }}",
    "arguments": "{% macro f(n) %}{{ f(n - 1, varargs, varargs) if n }}{% endmacro %}{{ f(99) }}",
    "hidden name": "{% set n = namespace(__html__=1) %}",
    "hidden name later": "{% set n = namespace() %}{% set n.__html__ = 1 %}",
    "changed mapping": "{% do dict.update(messages[0], {}) %}",
    "deep json": "{{ ('[' * 99999) | from_json }}",
    "long number": "{{ ('9' * 99999) | from_json }}",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_calls_end_in_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(template_work, "MAX_SECONDS", 1.0)
    monkeypatch.setattr(template_work, "MAX_STEPS", 20_000)
    with pytest.raises(FormatError) as caught:
        render(HOSTILE[name])
    assert re.fullmatch(r"the chat template fails: .{1,250}", str(caught.value))
