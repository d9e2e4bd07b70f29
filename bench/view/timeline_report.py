"""Where the time of one token goes, drawn for a terminal: a bar for each layer, and the totals."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from q4run.bench.figures.tables import number, percent
from q4run.bench.measure.recording import Recording
from q4run.bench.view.token_times import Times, added_up, in_groups, times_of, typical_token
from q4run.sizes import format_size
from q4run.timeline import NO_LAYER, READ, WAIT

# What the computing thread does: a figure of ``Times``, its name, character and colour.
_PARTS = (
    ("attention", "attention", "▒", "blue"),
    ("feed_forward", "experts, feed-forward", "█", "cyan"),
    ("rest", "embedding, head", "▓", "green"),
    ("wait", "waiting for reads", "·", "yellow"),
)
_READING = "a read under way"
_LEAST_BAR = 8
_LEAST_ROWS = 2
_MOST_ROWS = 64


def draw_timeline(
    recording: Recording, width: int, height: int | None = None, *, colour: bool
) -> Text:
    """A typical token's time in lines of at most ``width`` columns (40 at least) and, where there
    are more layers, at most ``height`` lines; the prompt's in one. Where nothing was read at all,
    of computing alone. Empty where nothing ran."""
    chosen = typical_token(recording)
    if chosen is None:
        return Text()
    rows = times_of(recording, recording.passes[chosen])
    if not rows:
        return Text()
    total = added_up(rows)
    streams = any(span.kind in (READ, WAIT) for span in recording.spans)
    shares = _shares(total, colour, streams)
    n_tokens = len(recording.passes) - 1
    title = f"token {chosen} of {n_tokens}, a typical one: {_ms(total.total)} ms"
    lines = [Text(title, style="bold" if colour else ""), *shares, _prompt(recording, streams)]
    room = _MOST_ROWS if height is None else height - len(lines) - 1
    groups = in_groups(rows, max(_LEAST_ROWS, room))
    return Text("\n").join([*lines, *_bars(groups, max(width, 40), colour, streams)])


def _shares(total: Times, colour: bool, streams: bool) -> list[Text]:
    lines = []
    for field, name, character, style in _PARTS if streams else _PARTS[:-1]:
        seconds = getattr(total, field)
        line = Text(character, style=style if colour else "")
        share = percent(seconds / total.total if total.total else 0.0)
        lines.append(line.append(f" {name:<21}{_ms(seconds):>6} ms{share:>6}", style="default"))
    if not streams:
        return lines
    share = percent(total.reading / total.total if total.total else 0.0)
    lines.append(Text(f"  {_READING:<21}{_ms(total.reading):>6} ms{share:>6}"))
    return lines


def _prompt(recording: Recording, streams: bool) -> Text:
    first = recording.passes[0]
    total = added_up(times_of(recording, first) or [Times(NO_LAYER, NO_LAYER)])
    waited = percent(total.wait / total.total if total.total else 0.0)
    waiting = f", {waited} waiting" * streams
    return Text(f"prompt of {first.n_tokens}: {_ms(total.total)} ms{waiting}")


def _bars(rows: Sequence[Times], width: int, colour: bool, streams: bool) -> list[Text]:
    names = [_name(row) for row in rows]
    name_width = max(len("layer"), *map(len, names))
    bar_width = max(_LEAST_BAR, width - name_width - 25)
    longest = max(row.total for row in rows)
    scale = bar_width / longest if longest else 0.0
    heading = f"{'layer':>{name_width}} {'ms':>6}"
    lines = [Text(heading + f" {'':<{bar_width}} {'reading':>7} {'bytes':>8}" * streams)]
    for name, row in zip(names, rows, strict=True):
        line = Text(f"{name:>{name_width}} {_ms(row.total):>6} ")
        done, drawn = 0.0, 0
        for field, _, character, style in _PARTS:
            done += getattr(row, field)
            # Borders are rounded, not lengths: a bar is as long as its row's time says.
            upto = max(drawn, min(bar_width, round(done * scale)))
            line.append(character * (upto - drawn), style=style if colour else "")
            drawn = upto
        if streams:
            share = percent(row.reading / row.total if row.total else 0.0)
            size = format_size(row.n_bytes) if row.n_bytes else "-"
            line.append(f"{'':<{bar_width - drawn}} {share:>7} {size:>8}")
        lines.append(line)
    return lines


def _name(row: Times) -> str:
    if row.last == NO_LAYER:
        return "ends"
    return str(row.first) if row.first == row.last else f"{row.first}-{row.last}"


def _ms(seconds: float) -> str:
    return number(1000 * max(0.0, seconds))
