"""The Python interface: a model that is loaded, asked and closed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

import numpy as np

from q4run.budget import MemoryPlan
from q4run.disk.experience import Experience
from q4run.generation.completion import Completion
from q4run.generation.sampler import Sampler, SamplingParameters
from q4run.generation.session import Session
from q4run.generation.stats import Stats
from q4run.layers.decoder import Transformer
from q4run.machine.memory import peak_rss
from q4run.text.chat_template import ChatTemplate
from q4run.text.tokenizer import Tokenizer
from q4run.timeline import Timeline


@dataclass(frozen=True)
class Opening:
    """How a model was opened: what was chosen, and what a person should be told once.

    ``io_reason`` says why ``auto`` took that method, and is empty where it was asked for;
    ``experience`` is told at the end what was read.
    """

    path: Path
    plan: MemoryPlan
    threads: int
    io: str
    io_reason: str
    notes: tuple[str, ...]
    load_s: float
    experience: Experience


class Model:
    """A loaded model; made by ``q4run.load``."""

    def __init__(
        self,
        opening: Opening,
        transformer: Transformer,
        session: Session,
        tokenizer: Tokenizer,
        template: ChatTemplate | None,
    ) -> None:
        """``transformer`` and its store are closed with the model."""
        self.path = opening.path
        self.plan = opening.plan
        self.threads = opening.threads
        self.io = opening.io
        self.io_reason = opening.io_reason
        self.notes = list(opening.notes)
        self.load_s = opening.load_s
        self._experience = opening.experience
        self.config = transformer.config
        self.store = transformer.store
        self.session = session
        self.tokenizer = tokenizer
        self.template = template
        self._transformer = transformer

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stops the reader threads and lets go of the file; notes how fast the disk was."""
        counters = self.store.counters
        self._experience.tell(counters.bytes_read, counters.reading_s)
        self.store.close()
        self._transformer.close()

    def recording(self) -> AbstractContextManager[Timeline]:
        """Records where the time goes, as long as the context lasts."""
        return self.store.events.recording()

    def tell_of_waits(self, listener: Callable[[float], None]) -> None:
        """Calls ``listener`` ten times a second during a wait for a read, with the seconds so far.

        An exception that it raises ends the wait.
        """
        self.store.events.tell_of_waits(listener)

    def tell_of_slots(self, listener: Callable[[int], None]) -> None:
        """Calls ``listener`` with the number of experts that memory has room for: when it falls,
        and when it is back at what was planned."""
        self.store.events.tell_of_slots(listener)

    def tokenize(
        self, text: str, *, add_bos: bool | None = None, special: bool = False
    ) -> list[int]:
        """Token ids of ``text``; add_bos None does as the file says; ``special`` reads control
        tokens written out in the text as such."""
        return self.tokenizer.encode(text, add_bos=add_bos, special=special)

    def detokenize(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of ``ids``; control tokens only with ``special``."""
        return self.tokenizer.decode(ids, special=special)

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """float32 (len(ids), n_vocab), from an empty context.

        The array is the caller's: it is not part of the RAM budget.
        """
        logits = np.empty((len(ids), self.config.n_vocab), np.float32)
        rest = logits

        def keep(some: np.ndarray) -> None:
            nonlocal rest
            rest[: len(some)] = some
            rest = rest[len(some) :]

        self.session.clear()
        self.session.feed(ids, consume=keep)
        return logits

    def generate(
        self,
        prompt: str | Sequence[int],
        max_tokens: int | None = 256,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
    ) -> Iterator[str]:
        """Continues a text (tokenised as it stands, without a chat template) or token ids.

        Yields text as it comes, whole characters only; stops at an end-of-generation token, after
        ``max_tokens`` (0: nothing, None: no limit) or at the end of the context. The common
        beginning of successive prompts is run only once. ``Completion`` also says why it ended.
        """
        ids = self.tokenize(prompt) if isinstance(prompt, str) else prompt
        parameters = SamplingParameters(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
        )
        yield from Completion(self.session, self.tokenizer, ids, Sampler(parameters), max_tokens)

    @property
    def stats(self) -> Stats:
        """The counters as of now."""
        return Stats(**asdict(self.session.work), load_s=self.load_s, peak_rss=peak_rss())
