"""One pass of a model with its timeline, in a process of its own: where the time goes, and which
experts were used and stayed in RAM. It counts in no figures, for looking takes a little time."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

import q4run
from q4run.errors import Error
from q4run.experts.use import ExpertUse, expert_use
from q4run.model import Model
from q4run.timeline import Pass, Span

# Tokens that are decoded after the prompt: enough to see what is usual, and a file of some MB.
MOST_TOKENS = 32


@dataclass(frozen=True)
class Recording:
    """A prompt's pass, the first of ``passes``, and a token's each after it.

    use: of experts since the model was loaded, None where it has none. n_dropped: spans that were
    too many to be kept.
    """

    model: str
    threads: int
    io: str
    ram_budget: int
    n_slots: int
    n_experts: int
    start: str
    use: ExpertUse | None
    passes: list[Pass]
    spans: list[Span]
    n_dropped: int

    def to_json(self) -> dict[str, Any]:
        use = self.use and {
            "layers": list(self.use.layers),
            "counts": self.use.counts.tolist(),
            "in_ram": self.use.in_ram.tolist(),
        }
        return vars(self) | {"use": use}

    @classmethod
    def from_json(cls, printed: dict[str, Any]) -> Recording:
        use = printed["use"] and ExpertUse(
            printed["use"]["layers"],
            np.array(printed["use"]["counts"], np.int64),
            np.array(printed["use"]["in_ram"], bool),
        )
        passes = [Pass(*one) for one in printed["passes"]]
        spans = [Span(*one) for one in printed["spans"]]
        return cls(**printed | {"use": use, "passes": passes, "spans": spans})


def record(
    model: Model, prompt: Sequence[int], continuation: Sequence[int], *, warm_up: bool
) -> Recording:
    """Runs ``prompt`` and up to ``MOST_TOKENS`` of ``continuation``; with ``warm_up`` all of it
    once before."""
    if warm_up:
        _run(model, prompt, continuation)
    with model.recording() as timeline:
        _run(model, prompt, continuation[:MOST_TOKENS])
    return Recording(
        model=str(model.path),
        threads=model.threads,
        io=model.io,
        ram_budget=model.plan.budget,
        n_slots=model.plan.n_slots,
        n_experts=model.plan.n_experts,
        start="warm" if warm_up else "cold",
        use=expert_use(model.store),
        passes=timeline.passes,
        spans=timeline.spans,
        n_dropped=timeline.n_dropped,
    )


def _run(model: Model, prompt: Sequence[int], continuation: Sequence[int]) -> None:
    model.session.clear()
    model.session.feed(prompt)
    for token in continuation:
        model.session.step(token)


def main() -> None:
    """A request (``compare.Request``) in, out a recording or an error, as a line of JSON."""
    request = json.load(sys.stdin)
    printed: object
    options = ("ram_budget", "threads", "io", "cache", "prefetch", "context", "kv_type")
    try:
        with q4run.load(request["model"], **{name: request[name] for name in options}) as model:
            printed = record(
                model, request["prompt"], request["continuation"], warm_up=request["warm_up"]
            ).to_json()
    except (Error, OSError) as error:
        printed = {"error": str(error)}
    print(json.dumps(printed))


if __name__ == "__main__":
    main()
