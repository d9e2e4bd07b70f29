"""``q4run bench --plot``: use and residency of experts, where a token's time goes, and all tokens.

Colours are those of Okabe and Ito, and cividis: told apart with any kind of colour vision.
"""

from __future__ import annotations

import io
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from q4run.bench.figures.figures import Figures
from q4run.bench.figures.outputs import write_whole
from q4run.bench.figures.tables import number
from q4run.bench.measure.recording import Recording
from q4run.bench.view.token_times import spans_of, token_seconds, typical_token
from q4run.errors import Error
from q4run.sizes import format_size
from q4run.timeline import ATTENTION, EMBEDDING, EXPERTS, FEED_FORWARD, HEAD, READ, WAIT

_COLOURS = {
    ATTENTION: "#0072B2",
    EXPERTS: "#56B4E9",
    FEED_FORWARD: "#56B4E9",
    EMBEDDING: "#009E73",
    HEAD: "#009E73",
    WAIT: "#D55E00",
    READ: "#F0E442",
}
_NAMES = {
    ATTENTION: "attention",
    EXPERTS: "experts, feed-forward",
    HEAD: "embedding, head",
    WAIT: "waiting for a read",
    READ: "reads of the layer's experts",
}
_SIZE = (14.0, 8.5)  # inches
_DPI = 120


def check_can_plot(path: Path) -> None:
    """Raises Error where matplotlib is missing or does not know the kind of file."""
    if find_spec("matplotlib") is None:
        raise Error(
            "--plot needs matplotlib: pip install matplotlib, or q4run with its [plot] extra"
        )
    canvas = import_module("matplotlib.backends.backend_agg").FigureCanvasAgg
    kinds = sorted(canvas.get_supported_filetypes())
    if path.suffix.lower().removeprefix(".") not in kinds:
        raise Error(f"{path}: no plot can be written as that; end the name in .png, .svg or .pdf")


def write_plot(path: Path, recording: Recording, runs: dict[str, Figures]) -> None:
    """Draws a recording; runs: the medians that the title tells, by what they are called. Raises
    Error where the file cannot be written."""
    figure = figure_of(recording, runs)
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix.lower().removeprefix("."), dpi=_DPI)
    write_whole(path, drawn.getvalue())


def figure_of(recording: Recording, runs: dict[str, Figures]) -> Any:
    """The ``matplotlib.figure.Figure``."""
    figure = import_module("matplotlib.figure").Figure(figsize=_SIZE, layout="constrained")
    figure.suptitle(_title(recording, runs), fontsize=11)
    left, right = figure.subfigures(1, 2, width_ratios=[0.4, 0.6])
    _draw_experts(left.subplots(), recording)
    upper, lower = right.subplots(2, 1, height_ratios=[0.72, 0.28])
    _draw_token(upper, recording)
    _draw_tokens(lower, recording)
    return figure


def _title(recording: Recording, runs: dict[str, Figures]) -> str:
    facts = [
        Path(recording.model).name,
        f"{recording.threads} thread" + "s" * (recording.threads > 1),
        f"RAM budget {format_size(recording.ram_budget)}",
    ]
    if recording.n_experts:
        facts.append(f"room for {recording.n_slots} of {recording.n_experts} experts")
        facts.append(f"reads by {recording.io}")
    speeds = [
        f"{name}: prompt of {figures['prefill']['tokens']} at"
        f" {number(figures['prefill']['tok_s'])}, decoding at"
        f" {number(figures['decode']['tok_s'])} tokens/s"
        for name, figures in runs.items()
    ]
    return "\n".join([", ".join(facts), "; ".join(speeds)])


def _draw_experts(axes: Any, recording: Recording) -> None:
    use = recording.use
    if use is None:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "This model has no experts.", ha="center", va="center")
        return
    n_layers = len(use.layers)
    counts = np.where(use.counts < 0, np.nan, use.counts)
    image = axes.imshow(counts, aspect="auto", cmap="cividis", vmin=0, interpolation="nearest")
    axes.figure.colorbar(image, ax=axes, label="times used since loading", location="bottom")
    held = [(e, row) for row, e in np.argwhere(use.in_ram)]
    bars = [_box(e - 0.35, e + 0.35, row + 0.2, row + 0.38) for e, row in held]
    axes.add_collection(_polygons()(bars, facecolors="white", edgecolors="black", linewidths=0.4))
    axes.set_title(f"Use of experts; white bar: in RAM at the end ({len(held)})", fontsize=10)
    axes.set_xlabel("expert")
    axes.set_ylabel("layer")
    axes.xaxis.set_major_locator(_whole_numbers())
    every = -(-n_layers // 24)
    axes.set_yticks(range(0, n_layers, every), list(use.layers)[::every])


def _draw_token(axes: Any, recording: Recording) -> None:
    """A row for each layer: above what was computed and waited for, below the reads for it."""
    chosen = typical_token(recording)
    if chosen is None:
        axes.set_axis_off()
        return
    one = recording.passes[chosen]
    spans = spans_of(recording, one)
    n_layers = 1 + max((span.layer for span in spans), default=0)
    lanes: dict[str, list[tuple[float, float, float]]] = {kind: [] for kind in _COLOURS}
    for span in spans:
        row = {EMBEDDING: -1, HEAD: n_layers}.get(span.kind, span.layer)
        begin, end = ((t - one.begin) / 1e6 for t in (span.begin, span.end))
        lanes[span.kind].append((begin, end, row))
    for kind, bars in lanes.items():
        top, bottom = (0.05, 0.45) if kind == READ else (-0.45, 0.05)
        boxes = [_box(begin, end, row + top, row + bottom) for begin, end, row in bars]
        edge = {"edgecolors": "#806000", "linewidths": 0.2} if kind == READ else {}
        axes.add_collection(_polygons()(boxes, facecolors=_COLOURS[kind], **edge))
    axes.set_xlim(0, (one.end - one.begin) / 1e6)
    axes.set_ylim(n_layers + 0.6, -1.6)
    every = -(-n_layers // 16)
    labelled = range(0, n_layers, every)
    if every > 1:  # then the first and the last would lie too near to what is around them
        labelled = range(every, n_layers - every + 1, every)
    axes.set_yticks([-1, *labelled, n_layers], ["embedding", *map(str, labelled), "head"])
    axes.set_xlabel("ms since the token began")
    axes.set_ylabel("layer")
    n_tokens = len(recording.passes) - 1
    axes.set_title(
        f"A typical token ({chosen} of {n_tokens}, {recording.start})", fontsize=10, pad=24
    )
    patch = import_module("matplotlib.patches").Patch
    drawn = {_COLOURS[kind] for kind, bars in lanes.items() if bars}
    names = {name: _COLOURS[kind] for kind, name in _NAMES.items() if _COLOURS[kind] in drawn}
    axes.legend(
        [patch(color=colour) for colour in names.values()],
        names,
        loc="lower center",
        bbox_to_anchor=(0.5, 1.0),
        ncols=max(1, len(names)),
        fontsize=8,
        frameon=False,
        handlelength=1.2,
        columnspacing=1.0,
    )


def _draw_tokens(axes: Any, recording: Recording) -> None:
    """The time of every recorded token, computing below and waiting on top."""
    seconds = np.array(token_seconds(recording)).reshape(-1, 2) * 1e3
    numbers = np.arange(1, len(seconds) + 1)
    axes.bar(numbers, seconds[:, 0], color=_COLOURS[ATTENTION], label="computing")
    axes.bar(numbers, seconds[:, 1], bottom=seconds[:, 0], color=_COLOURS[WAIT], label="waiting")
    axes.set_title("All tokens that were recorded", fontsize=10)
    axes.set_xlabel("token")
    axes.set_ylabel("ms")
    axes.xaxis.set_major_locator(_whole_numbers())
    axes.margins(x=0.01, y=0.02)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8, frameon=False)


def _box(left: float, right: float, top: float, bottom: float) -> list[tuple[float, float]]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _polygons() -> Any:
    return import_module("matplotlib.collections").PolyCollection


def _whole_numbers() -> Any:
    return import_module("matplotlib.ticker").MaxNLocator(integer=True)
