"""Small chat templates, each with the forms that some published templates have, and conversations
for them."""

from typing import Any

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the <weather> of Orléans",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
ARGUMENTS = {"city": "Orléans <b>", "days": [1, None, {"a": True}]}


def called(arguments: Any) -> list[dict[str, Any]]:
    """A conversation with a tool call whose arguments are these."""
    function = {"name": "weather", "arguments": arguments}
    call = {"id": "call12345", "type": "function", "function": function}
    return [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "", "reasoning_content": "hm\n", "tool_calls": [call]},
        {"role": "tool", "content": "21.5", "tool_call_id": "call12345"},
    ]


def parts(*texts: str) -> list[dict[str, str]]:
    """A content as a list of texts."""
    return [{"type": "text", "text": text} for text in texts]


def turns(*contents: Any, **of_the_answers: Any) -> list[dict[str, Any]]:
    """A user and an assistant who speak by turns; further fields for what the assistant says."""
    return [
        {"role": "assistant", "content": content, **of_the_answers}
        if index % 2
        else {"role": "user", "content": content}
        for index, content in enumerate(contents)
    ]


CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "plain": turns("Hi <b>&\n", "Hello!", "Bye 漢"),
    "system": [{"role": "system", "content": " Be brief. "}, *turns("Hi", " Hello! \n", "Bye")],
    "tools": [*called(ARGUMENTS), {"role": "assistant", "content": "fine"}, *turns("ok")],
    "tool loop": called(ARGUMENTS),
    "reasoning": turns("1+1", "2", "2+2", reasoning_content="Easy."),
    "reasoning by another name": turns("1+1", "2", "2+2", thinking="Easy."),
    "reasoning in the text": turns("1+1", "<think>\nEasy.\n</think>\n\n2", "2+2"),
    "parts": [{"role": "system", "content": parts("S")}, *turns(parts("a", "b"), parts("c"), "d")],
    "no text": called({}) + turns("so", None),
}
VARIABLES: list[dict[str, Any]] = [
    {},
    {"tools": [TOOL]},
    {"enable_thinking": False},
    {"enable_thinking": True, "thinking": True},
    {"reasoning_effort": "high", "builtin_tools": ["python", "browser"]},
    {"documents": [{"title": "t", "text": "é"}]},
    {"clear_thinking": False, "model_identity": "Me.", "date_string": "1 May"},
]

# Reads all that there is, calls methods in loops, blocks, macros and call blocks.
RICH = """\
{%- macro visible(content) -%}
    {%- if content is string -%}{{ content.strip().replace('<', '(') }}
    {%- elif content is iterable and content is not mapping -%}
        {%- for part in content -%}
            {{- part.text if part is mapping and part.type == 'text' else part }}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- macro framed(mark) -%}{{ mark.join(['', caller(), '']) }}{%- endmacro -%}
{%- set ns = namespace(last_user=-1, names='') -%}
{%- for message in messages[::-1] -%}
    {%- if ns.last_user < 0 and message.role == 'user' -%}
        {%- set ns.last_user = messages | length - 1 - loop.index0 -%}
    {%- endif -%}
{%- endfor -%}
{{ bos_token }}{% for tool in tools or [] %}
{{ tool | tojson(ensure_ascii=False) }}{{ tool.function | tojson(indent=2) }}
{{ tool.get('function', {}).get('name', 'x').upper() }}
{% endfor %}
{%- for message in messages %}
    {%- set content = visible(message.content) %}
    {%- set reasoning = '' %}
    {%- if message.reasoning_content is string %}
        {%- set reasoning = message.reasoning_content %}
    {%- elif '</think>' in content %}
        {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('(think>')[-1] %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {%- call framed('|') %}{{ message.role.replace('a', 'A') }}{% endcall %}
    {%- if reasoning and loop.index0 > ns.last_user %}{{ '<think>' ~ reasoning ~ '</think>' }}
    {%- endif %}
    {%- filter replace('(', '[') %}{{ content }}{% endfilter %}
    {%- for call in message.tool_calls or [] %}
        {%- set call = call.function if call.function else call %}
        {%- for key, value in call.arguments.items() %}
            {{- '<%s>' | format(key) }}{{ value | tojson if value is not string else value }}
        {%- endfor %}
        {%- set ns.names = ns.names + ', '.join(call.arguments | map('upper')) %}
    {%- endfor %}
    {%- if message.role == 'tool' and loop.previtem.role != 'tool' %}<tool>{% endif %}
    {%- if loop.last or loop.nextitem.role != 'tool' %}<end>{% endif %}
{% endfor -%}
{% block names %}
    {{- ns.names.replace('CITY', 'Town') }}{{ '{}!'.format(ns.last_user) }}
{%- endblock %}
{%- if add_generation_prompt %}|assistant|
    {%- if enable_thinking is defined and enable_thinking is false %}<think></think>
    {%- else %}<think>{% endif %}
{%- endif %}"""

# Takes a content as text alone, arguments in either form, and drops reasoning by cutting it out.
TEXT_ONLY = """\
{%- for message in messages %}
    {%- if message['role'] == 'assistant' and '</think>' in message['content'] %}
        {{- 'A: ' + message['content'].split('</think>', 1)[1] }}
    {%- else %}
        {{- message['role'] + ': ' + message['content'] }}
    {%- endif %}
    {%- for call in message['tool_calls'] %}
        {%- set given = call['function']['arguments'] %}
        {%- if call['function']['arguments'] is string %}{{ given }}{% else %}{{ given | tojson }}
        {%- endif %}
    {%- endfor %}
    {{- eos_token }}
{%- endfor %}"""

# Takes a content as parts alone, and shows an answer as it was, reasoning and all.
PARTS_ONLY = """\
{%- for message in messages %}
    {{- message.role ~ ':' }}
    {%- for part in message.content if part.type == 'text' %}{{ part.text }};{% endfor %}
{%- endfor %}"""

# Changes lists, as templates do that are not for transformers.
LISTS = """\
{%- set seen = [] -%}{%- set ns = namespace(ids=['a', 'b']) -%}
{%- for message in messages -%}
    {%- set _ = seen.append(message.role) -%}
    {%- do ns.ids.insert(1, loop.index) -%}
{%- endfor -%}
{{ seen }}{{ ns.ids.pop(0) }}{{ ns.ids.pop() }}{{ ns.ids | join('-') }}"""
