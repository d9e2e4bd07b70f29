"""A recording as a trace that https://ui.perfetto.dev and chrome://tracing open.

The format is Chrome's Trace Event Format, JSON object form, with complete events ("ph": "X", times
in microseconds) and metadata events ("ph": "M") that name the threads:
https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from q4run.bench.measure.recording import Recording
from q4run.timeline import COMPUTING, NO_EXPERT, NO_LAYER

# What a file of ours begins with.
BEGINS = b'{"traceEvents"'
_PROCESS = 1


def trace_of(recording: Recording) -> bytes:
    """The file's content; at most ``timeline.MOST_SPANS`` spans, a hundred-odd bytes each."""
    begins = [one.begin for one in recording.passes] + [span.begin for span in recording.spans]
    zero = min(begins, default=0)
    events = [_named("process_name", COMPUTING, Path(recording.model).name)]
    for lane in sorted({span.lane for span in recording.spans} | {COMPUTING}):
        name = "computing" if lane == COMPUTING else f"reader {lane}"
        events.append(_named("thread_name", lane, name))
    for i, one in enumerate(recording.passes):
        name = f"token {i}" if i else f"prompt of {one.n_tokens}"
        events.append(_complete(name, "pass", COMPUTING, one.begin - zero, one.end - zero, {}))
    for span in recording.spans:
        facts = {
            name: value
            for name, value, none in (
                ("layer", span.layer, NO_LAYER),
                ("expert", span.expert, NO_EXPERT),
                ("bytes", span.n_bytes, 0),
            )
            if value != none
        }
        name = span.kind if span.layer == NO_LAYER else f"{span.kind} {span.layer}"
        begin, end = span.begin - zero, span.end - zero
        events.append(_complete(name, span.kind, span.lane, begin, end, facts))
    about = {
        "model": Path(recording.model).name,
        "threads": recording.threads,
        "io": recording.io,
        "ram_budget": recording.ram_budget,
        "start": recording.start,
        "dropped_spans": recording.n_dropped,
    }
    content = {"traceEvents": events, "displayTimeUnit": "ms", "otherData": about}
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"


def _named(what: str, lane: int, name: str) -> dict[str, Any]:
    return {"ph": "M", "pid": _PROCESS, "tid": lane, "name": what, "args": {"name": name}}


def _complete(
    name: str, category: str, lane: int, begin: int, end: int, facts: dict[str, int]
) -> dict[str, Any]:
    return {
        "ph": "X",
        "pid": _PROCESS,
        "tid": lane,
        "name": name,
        "cat": category,
        "ts": begin / 1000,
        "dur": (end - begin) / 1000,
        "args": facts,
    }
