"""Chat templates: a conversation to the text a model was trained to continue.

The template is the model's own, a jinja2 program from the file, with the names and helpers that
``transformers`` gives it. The file may come from anyone, so it runs in a sandbox and on a budget.
"""

import threading
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from jinja2 import Template, TemplateSyntaxError

from q4run.errors import Error, FormatError
from q4run.text.reasoning import Marks, begin_and_end, find_marks
from q4run.text.template_input import Syntax, TemplateInput, find_input, read_syntax
from q4run.text.template_means import RefusedError
from q4run.text.template_sandbox import ChatEnvironment
from q4run.text.template_work import Work
from q4run.text.tokenizer import Tokenizer

MAX_SOURCE_CHARS = 1 << 18
# Of the work that a rendering may do: for a conversation of a few words.
_SHARE_OF_A_QUESTION = 1 / 20

# For a model without a template: plain turns that any language model can continue. The answer
# comes after "Assistant:" with the space of its first word, as text is tokenised; cut the answer
# at PLAIN_STOP, where the model goes on to speak for the user.
PLAIN_TEMPLATE = """\
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {{- message['content'] | trim ~ '\\n\\n' }}
    {%- else %}
        {{- message['role'] | capitalize ~ ': ' ~ message['content'] | trim ~ '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- 'Assistant:' }}
{%- endif %}
"""
PLAIN_STOP = "\nUser:"


# Names that templates have for tokens, and where a file says which those are.
_TOKENS = {"unk_token": "unknown_token_id", "pad_token": "padding_token_id"}


class ChatTemplate:
    """A chat template, compiled when it is first rendered: a bad one hurts only those who chat.

    ``bos_token`` and ``eos_token`` are the texts of these tokens, empty where there are none;
    ``tokens`` those of others, by the names that templates have for them. ``marks`` are those of
    the reasoning that the template is for.
    """

    def __init__(
        self,
        source: str,
        *,
        bos_token: str,
        eos_token: str,
        tokens: Mapping[str, str] | None = None,
    ) -> None:
        self.source = source
        self.marks: Marks = find_marks(source)
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token, **(tokens or {})}
        self._environment = ChatEnvironment()
        self._compiled: Template | Error | None = None
        self._lock = threading.Lock()

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The text of a conversation, to be encoded with ``special=True``.

        Messages have at least ``role`` and ``content``; they are put into the form that the
        template reads (``template_input``). ``variables`` are further names for the template, such
        as ``tools`` or ``enable_thinking``: text, numbers, lists and mappings only.
        Raises ``Error`` where the template refuses the conversation, and ``FormatError`` where it
        fails, reaches for what is not its business, or does not come to an end.
        """
        given = _plain({"tools": None, "documents": None, **variables, "messages": list(messages)})
        given["messages"] = [
            self.input.adapt(message) if isinstance(message, dict) else message
            for message in given["messages"]
        ]
        return self._render({**given, "add_generation_prompt": add_generation_prompt})

    @cached_property
    def syntax(self) -> Syntax:
        """What the template's program mentions."""
        return read_syntax(self._environment, self.source[:MAX_SOURCE_CHARS])

    @cached_property
    def input(self) -> TemplateInput:
        """What the template reads of a message."""

        def render(messages: list[dict[str, Any]]) -> str:
            given = {"tools": None, "messages": messages, "add_generation_prompt": True}
            return self._render(given, share=_SHARE_OF_A_QUESTION)

        return find_input(self.syntax, render, begin_and_end(self.marks))

    def _render(self, given: Mapping[str, Any], share: float = 1.0) -> str:
        with self._lock:
            self._environment.work = Work(_characters(given), share)
            if isinstance(self._compiled, Error):  # what could not be compiled never will be
                raise self._compiled
            if self._compiled is None:
                self._compiled = self._compile()
            try:
                return self._compiled.render(**self._tokens, **given)
            except RefusedError as error:
                raise Error(
                    f"the chat template refuses this conversation: {_one_line(error)}"
                ) from None
            except Exception as error:  # whatever it is, it is the template's doing
                raise _failure(error) from None

    def _compile(self) -> Template:
        if len(self.source) > MAX_SOURCE_CHARS:
            raise FormatError(f"the chat template is too long ({len(self.source)} characters)")
        try:
            return self._environment.compile_counted(self.source)
        except Exception as error:
            self._compiled = _failure(error)
            raise self._compiled from None


def load_chat_template(metadata: Mapping[str, Any], tokenizer: Tokenizer) -> ChatTemplate | None:
    """The template under ``tokenizer.chat_template``; None when the file has none.

    Templates under further names (``tokenizer.chat_template.NAME``) are not looked at.
    """
    source = metadata.get("tokenizer.chat_template")
    if source is None:
        return None
    if not isinstance(source, str):
        raise FormatError("tokenizer.chat_template is not a string")
    if not source.strip():
        return None
    ids = {name: metadata.get(f"tokenizer.ggml.{key}") for name, key in _TOKENS.items()}
    tokens = {
        name: _text_of(tokenizer, id)
        for name, id in ids.items()
        if isinstance(id, int) and 0 <= id < tokenizer.n_vocab
    }
    bos_token, eos_token = (
        "" if id is None else _text_of(tokenizer, id) for id in (tokenizer.bos_id, tokenizer.eos_id)
    )
    return ChatTemplate(source, bos_token=bos_token, eos_token=eos_token, tokens=tokens)


def _text_of(tokenizer: Tokenizer, id: int) -> str:
    return tokenizer.token_bytes(id).decode("utf-8", "replace")


def _plain(value: Any) -> Any:
    """A copy of ``value`` in plain Python types, so that a template never meets anything else."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, str | int | float):
        return value
    raise Error(
        f"a {type(value).__name__} in a conversation: use text, numbers, lists and mappings"
    )


def _characters(value: Any) -> int:
    """The size of plain data, as ``Work`` counts it, roughly."""
    if isinstance(value, dict):
        return sum(len(key) + _characters(item) for key, item in value.items())
    if isinstance(value, list):
        return sum(map(_characters, value))
    return len(value) if isinstance(value, str) else 1


def _failure(error: Exception) -> FormatError:
    return FormatError(f"the chat template fails: {_one_line(error)}")


def _one_line(error: Exception) -> str:
    """What went wrong, on one line and not too long; templates may write their own messages."""
    if isinstance(error, RecursionError):
        return "it calls itself too deeply"
    text = " ".join(str(error).split()) or type(error).__name__
    text = text if len(text) <= 200 else text[:200] + "..."
    return f"{text} (line {error.lineno})" if isinstance(error, TemplateSyntaxError) else text
