"""The figures of a model while it works on an answer, looked up a few times a second."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import replace
from typing import NamedTuple

import psutil

from q4run.budget import INTERPRETER_ALLOWANCE
from q4run.cli.panel import Figures
from q4run.experts.use import ExpertUse, expert_use
from q4run.generation.completion import Completion
from q4run.model import Model

# What "now" is: so long, and longer where fewer than two tokens came in it.
_NOW_S = 2.0
_LONGEST_NOW_S = 12.0


class _Sample(NamedTuple):
    seconds: float
    tokens: int
    bytes_read: int
    wait_s: float


class Meter:
    """Watches one completion from when it is made, from any thread: it reads counters only."""

    def __init__(self, model: Model, completion: Completion) -> None:
        self._model = model
        self._completion = completion
        self._process = psutil.Process()
        self._is_first_look = True
        self._first_done: float | None = None
        self._counters = replace(model.store.counters)
        self._use = expert_use(model.store)
        self._samples = deque([self._sample()])
        self._began_s = self._samples[0].seconds

    def figures(self) -> Figures:
        """As of now."""
        model, completion = self._model, self._completion
        now = self._sample()
        self._samples.append(now)
        before = self._look_back(now)
        seconds = max(now.seconds - before.seconds, 1e-9)
        counters = model.store.counters
        hits = counters.hits - self._counters.hits
        wanted = hits + counters.misses - self._counters.misses
        done = self._prompt_done()
        return Figures(
            prompt_done=int(done),
            prompt_tokens=len(completion.prompt),
            tokens=now.tokens,
            rate_now=(now.tokens - before.tokens) / seconds if now.tokens > before.tokens else None,
            rate=completion.rate if now.tokens else self._prompt_rate(done, now.seconds),
            hit_rate=hits / wanted if wanted else None,
            read_rate=(now.bytes_read - before.bytes_read) / seconds,
            wait_share=(now.wait_s - before.wait_s) / seconds,
            resident=self._process.memory_info().rss,
            budget=model.plan.budget,
            allowance=INTERPRETER_ALLOWANCE,
        )

    def use(self) -> ExpertUse | None:
        """What experts were used for since this answer was begun; None without experts."""
        use = expert_use(self._model.store)
        return use.since(self._use) if use and self._use else None

    def _sample(self) -> _Sample:
        counters = self._model.store.counters
        return _Sample(
            time.perf_counter(), len(self._completion.tokens), counters.bytes_read, counters.wait_s
        )

    def _look_back(self, now: _Sample) -> _Sample:
        """The sample that "now" begins with; drops those that are too old for any later one."""
        while len(self._samples) > 2 and now.seconds - self._samples[1].seconds >= _LONGEST_NOW_S:
            self._samples.popleft()
        recent = [s for s in self._samples if now.seconds - s.seconds <= _NOW_S]
        if now.tokens - recent[0].tokens >= 2 or not now.tokens:
            return recent[0]
        return next(
            (s for s in reversed(self._samples) if now.tokens - s.tokens >= 2), self._samples[0]
        )

    def _prompt_done(self) -> float:
        """Tokens of the prompt that the cache holds; at the first look it holds the last answer."""
        if self._is_first_look:
            self._is_first_look = False
            return 0
        return min(self._model.session.progress, len(self._completion.prompt))

    def _prompt_rate(self, done: float, seconds: float) -> float | None:
        """Per second, not counting what of the prompt was in the cache at first."""
        if not done or self._first_done is None or done < self._first_done:
            self._first_done, self._began_s = done or None, seconds
            return None
        passed = seconds - self._began_s
        return (done - self._first_done) / passed if done > self._first_done else None
