"""Messages in the form that a chat template reads: found out by asking the template.

Programs send the same conversation in several forms: a content as a text or as a list of parts, the
arguments of a tool call as an object or as its JSON, reasoning under three names. A template that
does not read one of them drops it without a word.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from jinja2 import Environment, TemplateSyntaxError, nodes

from q4run.errors import Error

Message = dict[str, Any]
_REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")
_WORD, _THOUGHT = "Wyrd", "Thoht"  # words that no template writes of itself


@dataclass(frozen=True)
class Syntax:
    """What a template's program mentions; nothing, for one that cannot be read.

    variables: those that it reads, whether or not it also sets them. attributes: of anything.
    constants: strings; what the template writes of itself is not among them. asks_for_json: it
    asks whether the arguments of a tool call are a string.
    """

    variables: frozenset[str] = frozenset()
    attributes: frozenset[str] = frozenset()
    constants: frozenset[str] = frozenset()
    asks_for_json: bool = False


def read_syntax(environment: Environment, source: str) -> Syntax:
    """Return what the template with this source mentions."""
    try:
        tree = environment.parse(source)
        names, constants = tree.find_all(nodes.Name), tree.find_all(nodes.Const)
        asked = [test.node for test in tree.find_all(nodes.Test) if test.name == "string"]
        return Syntax(
            frozenset(node.name for node in names if node.ctx == "load"),
            frozenset(node.attr for node in tree.find_all(nodes.Getattr)),
            frozenset(node.value for node in constants if isinstance(node.value, str)),
            any(map(_is_arguments, asked)),
        )
    except (TemplateSyntaxError, RecursionError, ValueError):
        return Syntax()


def _is_arguments(node: nodes.Node) -> bool:
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Const) and node.arg.value == "arguments"
    return isinstance(node, nodes.Getattr) and node.attr == "arguments"


@dataclass(frozen=True)
class TemplateInput:
    """What a template reads of a message.

    text, parts: content as a string, as a list of parts. json_arguments: the arguments of a tool
    call as JSON; without it they are to be an object. reasoning: reasoning apart from the content,
    to keep it or to leave it out.
    """

    text: bool = True
    parts: bool = True
    json_arguments: bool = True
    reasoning: bool = True

    def adapt(self, message: Message) -> Message:
        """Return the message in a form that the template reads; the given one stays as it is."""
        message = _named_alike(message)
        content, calls = message.get("content"), message.get("tool_calls")
        if isinstance(content, str) and self.parts and not self.text:
            message = {**message, "content": [{"type": "text", "text": content}]}
        elif isinstance(content, list) and self.text and not self.parts and _only_text(content):
            texts = (part if isinstance(part, str) else part["text"] for part in content)
            message = {**message, "content": "\n".join(texts)}
        if isinstance(calls, list) and not self.json_arguments:
            message = {**message, "tool_calls": [_with_object(call) for call in calls]}
        return message


def find_input(
    syntax: Syntax, render: Callable[[list[Message]], str], marks: Sequence[str]
) -> TemplateInput:
    """Return what the template of this syntax reads; render renders messages with it.

    marks: what reasoning begins and ends with in this model's answers; empty if it has none.
    """

    def shows(word: str, *messages: Message) -> bool:
        try:
            text = render(list(messages))
        except Error:
            return False
        return word in text and "{'type'" not in text

    found = TemplateInput(
        text=shows(_WORD, {"role": "user", "content": _WORD}),
        parts=shows(_WORD, {"role": "user", "content": [{"type": "text", "text": _WORD}]}),
        json_arguments=syntax.asks_for_json,
    )
    inside = _THOUGHT.join(marks) + _WORD
    turns = [
        found.adapt({"role": role, "content": content})
        for role, content in (("user", _WORD), ("assistant", inside), ("user", _WORD))
    ]
    mentioned = syntax.attributes | syntax.constants
    is_kept = mentioned.isdisjoint(_REASONING_FIELDS) and shows(_THOUGHT, *turns)
    return replace(found, reasoning=not is_kept)


def _named_alike(message: Message) -> Message:
    """Reasoning under each name that templates read, as ``transformers`` passes it."""
    given = [message[name] for name in _REASONING_FIELDS if message.get(name) is not None]
    if not given:
        return message
    return {"thinking": given[0], **message, "reasoning_content": given[0]}


def _only_text(content: list[Any]) -> bool:
    return all(
        isinstance(part, str) or (isinstance(part, dict) and isinstance(part.get("text"), str))
        for part in content
    )


def _with_object(call: Any) -> Any:
    """A tool call whose arguments are an object, if they were one in JSON."""
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        return {**call, "function": _with_object(call["function"])}
    arguments = call.get("arguments")
    if not isinstance(arguments, str):
        return call
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return call
    return {**call, "arguments": value} if isinstance(value, dict) else call
