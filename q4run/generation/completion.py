"""One answer of a model as it comes: the text, why it ended, and how fast it was."""

import time
from collections.abc import Iterator, Sequence
from enum import StrEnum

from q4run.errors import Error
from q4run.generation.sampler import Sampler
from q4run.generation.session import Session
from q4run.generation.stats import Work
from q4run.text.reasoning import Kind, Marks, Part, Splitter
from q4run.text.stream import TextStream
from q4run.text.tokenizer import Tokenizer

# A mark and the line feeds behind it are no more tokens than these, at the end of a prompt.
_MOST_MARK_TOKENS = 32


class Finish(StrEnum):
    """Why an answer ended."""

    STOP = "stop"  # the model said that it is done
    LENGTH = "length"  # as many tokens as were asked for
    CONTEXT = "context"  # no room left
    INTERRUPTED = "interrupted"  # not at its end: Ctrl-C, an error, or still under way


class Completion:
    """Continues ``prompt`` (token ids): iterate once for the text, then read what it was.

    ``tokens`` are those generated, the stop token included, whether or not the text shows them.
    Whatever ends the iteration, ``text`` and ``tokens`` are what has come so far. ``max_tokens`` 0
    generates nothing, None goes on to the end of the context; ``stop_text`` ends an answer too, and
    is not part of it; ``ignore_eos`` goes on behind stop tokens. ``marks`` are those of the
    reasoning: ``text`` is then the answer alone, ``reasoning`` what was thought, and ``raw`` all
    that was written, marks and all. The space that a SentencePiece vocabulary puts before a text is
    left out only where a text begins: after a control token, not after text.
    """

    def __init__(
        self,
        session: Session,
        tokenizer: Tokenizer,
        prompt: Sequence[int],
        sampler: Sampler,
        max_tokens: int | None = None,
        stop_text: str | None = None,
        marks: Marks | None = None,
        *,
        ignore_eos: bool = False,
    ) -> None:
        """Raises Error for an empty prompt and for ``max_tokens`` below 0."""
        if not prompt:
            raise Error("the prompt is empty: write something to continue")
        if max_tokens is not None and max_tokens < 0:
            raise Error(
                f"{max_tokens} tokens cannot be generated: give 0 or more, or None for all that the"
                " context has room for"
            )
        self.prompt = list(prompt)
        self.tokens: list[int] = []
        self.text = ""
        self.reasoning = ""
        self.raw = ""
        self.finish = Finish.INTERRUPTED
        self.first_token_s: float | None = None
        self._last_token_s = 0.0
        self._session = session
        self._tokenizer = tokenizer
        self._sampler = sampler
        self._max_tokens = max_tokens
        self._stop_text = stop_text
        self._marks = marks or {}
        # Control tokens of a mark are to be seen, and none of them ends the answer.
        self._shown = _control_tokens(tokenizer, self._marks)
        self._stop_ids = frozenset() if ignore_eos else tokenizer.stop_ids - self._shown
        self._work_before = session.work

    def __iter__(self) -> Iterator[str]:
        """Yields the answer in whole characters. Raises Error for a prompt longer than the
        context."""
        return (part.text for part in self.parts() if part.kind is Kind.ANSWER)

    def parts(self) -> Iterator[Part]:
        """Yields reasoning and answer as they come, as iterating yields the answer."""
        prompt = self._tokenizer.decode(self.prompt[-_MOST_MARK_TOKENS:], special=True)
        splitter = Splitter(self._marks, prompt)
        for text in self._until_stop():
            self.raw += text
            yield from map(self._kept, splitter.push(text))
        yield from map(self._kept, splitter.flush())

    def _kept(self, part: Part) -> Part:
        if part.kind is Kind.ANSWER:
            self.text += part.text
        else:
            self.reasoning += part.text
        return part

    def _until_stop(self) -> Iterator[str]:
        """What is generated, up to the stop text."""
        pending = ""
        for piece in self._pieces():
            text, pending, stopped = _cut(pending + piece, self._stop_text)
            if text:
                yield text
            if stopped:
                self.finish = Finish.STOP
                return
        if pending:
            yield pending

    def _pieces(self) -> Iterator[str]:
        """The text of the tokens as they are generated; at their end, ``finish`` says why."""
        tokenizer = self._tokenizer
        at_start = tokenizer.starts_text(self.prompt[-1])
        stream = TextStream(tokenizer, shown=self._shown, at_start=at_start)
        started = time.perf_counter()
        for token in self._session.generate(
            self.prompt,
            self._sampler,
            self._stop_ids,
            self._max_tokens,
            tokenizer.never_sampled(self._session.n_vocab),
        ):
            self.tokens.append(token)
            self._last_token_s = time.perf_counter() - started
            if self.first_token_s is None:
                self.first_token_s = self._last_token_s
            if token not in self._stop_ids:
                yield stream.push(token)
        if self.tokens and self.tokens[-1] in self._stop_ids:
            self.finish = Finish.STOP
        elif len(self.tokens) == self._max_tokens:
            self.finish = Finish.LENGTH
        else:
            self.finish = Finish.CONTEXT
        yield stream.flush()

    @property
    def stats(self) -> Work:
        """What was done since this was made."""
        return self._session.work - self._work_before

    @property
    def prompt_rate(self) -> float | None:
        """Prompt tokens run per second; None where none was."""
        stats = self.stats
        return stats.prompt_tokens / stats.prompt_s if stats.prompt_s else None

    @property
    def rate(self) -> float | None:
        """Tokens per second after the first, sampling and all else included; None for one token."""
        if self.first_token_s is None or self._last_token_s == self.first_token_s:
            return None
        return (len(self.tokens) - 1) / (self._last_token_s - self.first_token_s)


def _control_tokens(tokenizer: Tokenizer, marks: Marks) -> frozenset[int]:
    """The control tokens in the marks: those that a text does not show."""
    ids = {id for mark in marks for id in tokenizer.encode(mark, add_bos=False, special=True)}
    return frozenset(id for id in ids if tokenizer.starts_text(id) and not tokenizer.piece(id))


def _cut(text: str, stop: str | None) -> tuple[str, str, bool]:
    """What of ``text`` can be shown, what may yet become ``stop``, and whether it has come."""
    if stop is None:
        return text, "", False
    before, found, _ = text.partition(stop)
    if found:
        return before, "", True
    held = next((n for n in range(len(stop) - 1, 0, -1) if text.endswith(stop[:n])), 0)
    return text[: len(text) - held], text[len(text) - held :], False
