"""Reasoning in an answer: the marks around it, by the model's template, and how to turn it off."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import Enum, auto
from typing import Any, NamedTuple

Variables = dict[str, Any]


class Kind(Enum):
    """What a piece of a model's text is."""

    ANSWER = auto()
    REASONING = auto()
    HEADER = auto()  # names a channel or a role: for nobody to read


class Part(NamedTuple):
    """A piece of a model's text."""

    kind: Kind
    text: str


Marks = Mapping[str, Kind]


def _pair(begin: str, end: str) -> Marks:
    return {begin: Kind.REASONING, end: Kind.ANSWER}


# The marks of each way to write reasoning, and what the text after each of them is.
_STYLES: tuple[Marks, ...] = (
    {
        "<|channel|>analysis<|message|>": Kind.REASONING,
        "<|message|>": Kind.ANSWER,
        "<|channel|>": Kind.HEADER,
        "<|start|>": Kind.HEADER,
        "<|end|>": Kind.HEADER,
    },
    _pair("<|channel>thought", "<channel|>"),
    _pair("<|START_THINKING|>", "<|END_THINKING|>"),
    _pair("<seed:think>", "</seed:think>"),
    _pair("[THINK]", "[/THINK]"),
    _pair("<think>", "</think>"),
)

# What turns thinking off, in the templates that read these variables.
_NO_THINKING: Variables = {"enable_thinking": False, "thinking": False, "thinking_budget": 0}
_EFFORT = "reasoning_effort"
# The levels of effort that mean none, in the templates that know them.
_NO_EFFORT = ("no_think", "none")


def find_marks(source: str) -> Marks:
    """Return the marks of the reasoning that the template with this source is for, or none."""
    return next((style for style in _STYLES if any(mark in source for mark in style)), {})


def begin_and_end(marks: Marks) -> tuple[str, ...]:
    """Return the mark that reasoning begins with and the one that ends it; nothing for no marks."""
    return tuple(marks)[:2]


def no_thinking(variables: frozenset[str], constants: frozenset[str]) -> Variables:
    """Return the variables that turn thinking off in a template; none where nothing does.

    variables: those that the template reads. constants: the strings in its program.
    """
    found = {name: value for name, value in _NO_THINKING.items() if name in variables}
    levels = [level for level in _NO_EFFORT if level in constants]
    if _EFFORT in variables and levels:
        found[_EFFORT] = levels[0]
    return found


def reasoning_effort(level: str, variables: frozenset[str]) -> Variables:
    """Return the variable that sets the effort; none where the template does not read it."""
    return {_EFFORT: level} if _EFFORT in variables else {}


class Splitter:
    """Parts reasoning from answer in a text that comes in pieces.

    ``prompt`` is what the text continues: where it ends with a mark, the text begins behind it.
    Line feeds right behind a mark belong to neither part.
    """

    def __init__(self, marks: Marks, prompt: str) -> None:
        self._marks = marks
        by_length = sorted(marks, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, by_length))) if marks else None
        self._pending = ""
        end = prompt.rstrip()
        opened = next((mark for mark in by_length if end.endswith(mark)), None)
        self._kind = marks[opened] if opened else Kind.ANSWER
        self._is_at_start = opened is not None
        # What the prompt has of the reasoning: a text that stands alone begins with it.
        is_open = opened is not None and self._kind is Kind.REASONING
        self.opening = prompt[len(end) - len(opened or "") :] if is_open else ""

    def push(self, text: str) -> Iterator[Part]:
        """Yield what is certain once ``text`` has come."""
        text = self._pending + text
        held = len(text) - self._n_open(text)
        while self._pattern and (mark := self._pattern.search(text)) and mark.start() < held:
            yield from self._part(text[: mark.start()])
            self._kind, self._is_at_start = self._marks[mark.group()], True
            text, held = text[mark.end() :], held - mark.end()
        held = max(held, 0)
        self._pending = text[held:]
        yield from self._part(text[:held])

    def flush(self) -> Iterator[Part]:
        """Yield what was held back because it could have become a mark."""
        text, self._pending = self._pending, ""
        if self._pattern and (mark := self._pattern.match(text)):
            self._kind, text = self._marks[mark.group()], text[mark.end() :]
        yield from self._part(text)

    def _part(self, text: str) -> Iterator[Part]:
        if self._is_at_start:
            text = text.lstrip("\n")
        if text:
            self._is_at_start = False
            if self._kind is not Kind.HEADER:
                yield Part(self._kind, text)

    def _n_open(self, text: str) -> int:
        """Characters at the end of ``text`` that are the beginning of a longer mark."""
        longest = max(map(len, self._marks), default=1) - 1
        return next(
            (
                n
                for n in range(min(longest, len(text)), 0, -1)
                if any(mark.startswith(text[-n:]) and len(mark) > n for mark in self._marks)
            ),
            0,
        )
