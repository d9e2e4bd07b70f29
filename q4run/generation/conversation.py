"""A conversation with a model: what was said, and how little of it must be run again."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from q4run.errors import Error
from q4run.generation.completion import Completion, Finish
from q4run.generation.sampler import Sampler, SamplingParameters
from q4run.generation.session import Session
from q4run.text.chat_template import PLAIN_STOP, PLAIN_TEMPLATE, ChatTemplate
from q4run.text.reasoning import Part, Splitter
from q4run.text.tokenizer import Tokenizer

# A turn fits if this share of the context is left for the answer.
_ROOM_FOR_ANSWER = 1 / 8
# Dropping makes more room than that: after it, all that is kept has to be run again.
_ROOM_AFTER_DROPPING = 1 / 2


class MessageTooLongError(Error):
    """A message that does not fit into the context even alone."""


class Speaker(Protocol):
    """Who answers: a ``q4run.Model``, or a session of one with its tokenizer and template."""

    @property
    def session(self) -> Session: ...

    @property
    def tokenizer(self) -> Tokenizer: ...

    @property
    def template(self) -> ChatTemplate | None: ...


_Speaker = TypeVar("_Speaker", bound=Speaker)


class Exchange(NamedTuple):
    """One message of the user's and the answer to it.

    ``reasoning`` is apart from the answer where the template reads it so; it is part of the answer
    where the template does not.
    """

    user: str
    assistant: str
    reasoning: str = ""


@dataclass(frozen=True)
class _LastTurn:
    """The conversation at the end of the last answer: as text up to the answer, and as tokens."""

    prompt: str
    answer: str
    ids: list[int]
    stop: str | None  # the text of the stop token that is the last of ``ids``


class Conversation(Generic[_Speaker]):
    """The messages so far; ``ask`` adds to them.

    The model's session is to be used by nobody else meanwhile, or what it holds has to be run
    again. ``max_tokens`` None lets an answer go on to the end of the context. ``variables`` are
    further names for the chat template, such as ``enable_thinking``.
    """

    def __init__(
        self,
        model: _Speaker,
        parameters: SamplingParameters,
        *,
        system: str | None = None,
        max_tokens: int | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.system = system
        self.exchanges: list[Exchange] = []
        self._template = model.template or ChatTemplate(PLAIN_TEMPLATE, bos_token="", eos_token="")
        self._stop_text = None if model.template else PLAIN_STOP
        self._parameters = parameters
        self._sampler = Sampler(parameters)
        self._max_tokens = max_tokens
        self._variables = dict(variables or {})
        self._last: _LastTurn | None = None

    @property
    def context(self) -> int:
        """How many tokens there is room for."""
        return self.model.session.context

    @property
    def messages(self) -> list[dict[str, str]]:
        """All that was said, as chat templates want it: ``role`` and ``content`` of each."""
        return _messages(self.system, self.exchanges)

    def start_anew(self, system: str | None = None, exchanges: Sequence[Exchange] = ()) -> None:
        """Replaces all that was said; a seed begins again."""
        self.system = system
        self.exchanges = list(exchanges)
        self._sampler = Sampler(self._parameters)
        self._last = None

    def ask(self, text: str) -> Turn:
        """The turn that ``text`` begins: enter it as a context and iterate it for the answer.

        The oldest exchanges are left out where the whole does not fit into the context. Raises
        MessageTooLongError where the message does not fit even so, and Error where the template
        does not take the conversation: nothing has changed then.
        """
        n_dropped = 0
        prompt, ids = self._prompt(0, text)
        if len(ids) > self.context * (1 - _ROOM_FOR_ANSWER):
            n_dropped = self._drop(text, _ROOM_AFTER_DROPPING)
            if n_dropped == len(self.exchanges):
                n_dropped = self._drop(text, _ROOM_FOR_ANSWER)
            prompt, ids = self._prompt(n_dropped, text)
        if len(ids) >= self.context:
            raise MessageTooLongError(
                f"this message does not fit: with all that goes with it, it is {len(ids)} tokens in"
                f" a context of {self.context}; shorten it, or start again with a larger --context"
            )
        model = self.model
        completion = Completion(
            model.session,
            model.tokenizer,
            ids,
            self._sampler,
            self._max_tokens,
            self._stop_text,
            self._template.marks,
        )
        return Turn(self, text, prompt, n_dropped, completion)

    def record(self, turn: Turn) -> None:
        """Adds a turn that has ended, unless it was stopped before a word was said."""
        completion = turn.completion
        if completion.finish is Finish.INTERRUPTED and not completion.text:
            return
        self.exchanges = self.exchanges[turn.n_dropped :]
        self.exchanges.append(self._exchange(turn))
        self._last = None
        stop = None
        if completion.finish is Finish.STOP:
            if completion.tokens[-1] not in self.model.tokenizer.stop_ids:
                return  # a text ended it, whose tokens are not to stay
            stop = self.model.tokenizer.decode(completion.tokens[-1:], special=True)
        ids = completion.prompt + completion.tokens
        self._last = _LastTurn(turn.prompt, completion.raw, ids, stop)

    def _exchange(self, turn: Turn) -> Exchange:
        completion = turn.completion
        if self._template.input.reasoning:
            return Exchange(turn.message, completion.text, completion.reasoning.strip("\n"))
        opening = Splitter(self._template.marks, turn.prompt).opening
        return Exchange(turn.message, opening + completion.raw)

    def _drop(self, text: str, room: float) -> int:
        """How many exchanges must go to leave a share of the context free; all, if none would."""
        most = self.context * (1 - room)
        return bisect_left(
            range(len(self.exchanges)), True, key=lambda n: len(self._prompt(n, text)[1]) <= most
        )

    def _prompt(self, n_dropped: int, text: str) -> tuple[str, list[int]]:
        """The conversation and a new message, without the oldest exchanges: text and tokens."""
        exchanges = [*self.exchanges[n_dropped:], Exchange(text, "")]
        messages = _messages(self.system, exchanges)[:-1]
        prompt = self._template.render(messages, **self._variables)
        ids = _continue(self.model.tokenizer, self._last, prompt) if self._last else None
        return prompt, ids or self.model.tokenizer.encode(prompt, special=True)


class Turn:
    """One message and its answer, under way: a context manager to be iterated once, or ``parts``.

    Leaving the context adds to the conversation what was said, also where Ctrl-C cut it short.
    """

    def __init__(
        self,
        conversation: Conversation[Any],
        message: str,
        prompt: str,
        n_dropped: int,
        completion: Completion,
    ) -> None:
        self.message = message
        self.prompt = prompt
        self.n_dropped = n_dropped
        self.completion = completion
        self.context = conversation.context
        self._conversation = conversation

    def __enter__(self) -> Turn:
        return self

    def __iter__(self) -> Iterator[str]:
        return iter(self.completion)

    def parts(self) -> Iterator[Part]:
        """Yields reasoning and answer as they come."""
        return self.completion.parts()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._conversation.record(self)


def _messages(system: str | None, exchanges: Sequence[Exchange]) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": system}] if system else []
    for exchange in exchanges:
        messages.append({"role": "user", "content": exchange.user})
        answer = {"role": "assistant", "content": exchange.assistant}
        if exchange.reasoning:
            answer["reasoning_content"] = exchange.reasoning
        messages.append(answer)
    return messages


def _continue(tokenizer: Tokenizer, last: _LastTurn, prompt: str) -> list[int] | None:
    """The tokens of ``prompt``, the first of them those that the model has already run or made.

    What it generated is kept token for token: the same text may be cut differently. None where the
    prompt does not begin as the last turn did, or its template shows another answer than was given.
    """
    if not prompt.startswith(last.prompt):
        return None
    rest = _after(prompt[len(last.prompt) :], last.answer)
    if rest is None:
        return None
    ids = last.ids
    if last.stop is not None:
        if rest.lstrip().startswith(last.stop):
            rest = rest.lstrip()[len(last.stop) :]
        else:
            ids = ids[:-1]  # the template ends an answer otherwise than the model did
    at_start = tokenizer.starts_text(ids[-1])
    return ids + tokenizer.encode(rest, add_bos=False, special=True, at_start=at_start)


def _after(text: str, answer: str) -> str | None:
    """What follows ``answer`` at the beginning of ``text``; templates may trim an answer."""
    if text.startswith(answer):
        return text[len(answer) :]
    text, answer = text.lstrip(), answer.strip()
    return text[len(answer) :] if text.startswith(answer) else None
