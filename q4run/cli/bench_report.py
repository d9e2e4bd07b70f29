"""What ``q4run bench`` found: tables for a person, and the JSON that scripts rely on."""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

from rich import box
from rich.table import Table

from q4run.bench.figures.figures import (
    Figures,
    median_of,
    ratios_of,
    set_disk_share,
    set_read_limit,
    summary_of,
)
from q4run.bench.figures.outputs import write_whole
from q4run.bench.figures.provenance import command_line, provenance
from q4run.bench.figures.tables import console, number, over, percent, threads_of, with_range
from q4run.bench.measure.compare import Q4RUN
from q4run.bench.measure.limits import CAN_DROP
from q4run.bench.measure.recording import Recording
from q4run.bench.view.chrome_trace import trace_of
from q4run.bench.view.plot import write_plot
from q4run.bench.view.timeline_report import draw_timeline
from q4run.cli.heat_map import heat_map
from q4run.errors import Error
from q4run.gguf_file import open_gguf
from q4run.planning.machine_speed import disk_speed
from q4run.planning.memory_speed import read_limit
from q4run.sizes import format_size
from q4run.terminal import note, printable, warn

COLD, WARM = "cold", "warm"
# Less of a cold run from disk than this, and something was in the page cache after all.
_COLD_SHARE = 0.9
_HARDLY_ANY_BYTES = 1 << 20  # the program's own pages

# Runs by program, q4run's first.
Results = dict[str, list[Figures]]


def report(results: Results, json_output: bool, peer: str) -> dict[str, Results]:
    """The tables to standard output; with ``json_output`` to standard error, and the JSON.

    peer: the version of llama.cpp, where it ran too. Returns the runs by how they began.
    """
    ours = next(iter(results.values()))
    limit = read_limit(ours[0]["threads"])
    for runs in results.values():
        set_read_limit(runs, limit, ours[0]["decode"]["bytes_per_token"])
    disk = _disk_rate(results)
    if disk:
        for runs in results.values():
            set_disk_share(runs, disk)
    for remark in dict.fromkeys(remark for run in ours for remark in run["notes"]):
        note(remark)
    starts = _by_start(results)
    terminal = console(stderr=json_output)
    for table in tables_of(starts):
        terminal.print(table)
    terminal.print(
        f"Medians of the runs (least to most); memory gives {limit / 1e9:.1f} GB/s to"
        f" {threads_of(ours[0])}.",
        style="dim",
    )
    terminal.print("First token: from the loaded model to its first prompt's end.", style="dim")
    if COLD in starts and (why := why_not_cold(starts[COLD])):
        warn(why)
    if json_output:
        made = {
            "read_limit": limit,
            "disk_rate": disk,
            "file_bytes": open_gguf(Path(ours[0]["model"])).size,
            **provenance(command_line("q4run", sys.argv[1:]), peer),
        }
        print(json.dumps(json_of(starts) | made))
    return starts


def draw(
    recording: Recording,
    starts: dict[str, Results],
    trace: Path | None,
    plot: Path | None,
    json_output: bool,
) -> None:
    """Writes the files of a recording; with ``trace`` also draws it, where the tables went.

    Raises Error where one cannot be written.
    """
    if trace:
        write_whole(trace, trace_of(recording))
        terminal = console(stderr=json_output)
        height = terminal.height if terminal.is_terminal else None
        colour = terminal.is_terminal and not terminal.no_color
        terminal.print(draw_timeline(recording, terminal.width, height, colour=colour))
        if recording.use:
            terminal.print()
            terminal.print(heat_map(recording.use, terminal.width, colour=colour))
        note(f"{trace}: opens in https://ui.perfetto.dev or chrome://tracing.")
    if plot:
        names = names_of(starts)
        medians = {names[start]: median_of(runs[Q4RUN]) for start, runs in starts.items()}
        write_plot(plot, recording, medians)
    if recording.n_dropped:
        warn(f"The recording was too long: its last {recording.n_dropped} spans are not in it.")


def _disk_rate(results: Results) -> float | None:
    """Bytes per second that the model's disk gives, as noted or measured; None where no run read
    from it while it decoded, or nobody can tell."""
    runs = [run for program in results.values() for run in program]
    if not any((run["decode"]["disk_bytes"] or 0) > _HARDLY_ANY_BYTES for run in runs):
        return None
    try:
        return disk_speed(open_gguf(Path(runs[0]["model"])).parts)[0]
    except Error:
        return None


def _by_start(results: Results) -> dict[str, Results]:
    """The runs that began cold and those that began warm, where there are such."""
    starts = {
        start: {
            name: [run for run in runs if run["start"] == start] for name, runs in results.items()
        }
        for start in (COLD, WARM)
    }
    return {start: chosen for start, chosen in starts.items() if all(chosen.values())}


def json_of(starts: dict[str, Results]) -> Figures:
    """The warm figures, or the cold ones where nothing ran warm; under "cold" the cold ones."""
    figures = {start: _json_of_start(results) for start, results in starts.items()}
    cold = figures.get(COLD)
    return (figures.get(WARM) or figures[COLD]) | {"cold": cold and dict(cold)}


def _json_of_start(results: Results) -> Figures:
    ours, *peers = results.values()
    figures = summary_of(ours) | {"peer": None, "ratio": None, "ratio_spread": None}
    if peers:
        ratios = ratios_of(ours, peers[0])
        figures["peer"] = summary_of(peers[0])
        figures["ratio"] = {name: statistics.median(values) for name, values in ratios.items()}
        figures["ratio_spread"] = {name: [min(v), max(v)] for name, v in ratios.items()}
    return figures


def why_not_cold(results: Results) -> str | None:
    """Why what ran first was not really cold; None where it was."""
    if not CAN_DROP:
        return (
            "first, not cold: this system lets no program drop a file from the page cache, so what"
            " was left there was found there"
        )
    shares = [run["from_disk_share"] for run in results[Q4RUN]]
    known = [share for share in shares if share is not None]
    if known and min(known) < _COLD_SHARE:
        return (
            f"first, not cold: the kernel counts only {percent(min(known))} of what was read as"
            " read from disk; another program has the file in use, or the kernel does not count"
            " this file system"
        )
    return None


def names_of(starts: dict[str, Results]) -> dict[str, str]:
    """What each start is called: what was not really cold is not called so."""
    names = {start: start for start in starts}
    if COLD in starts and why_not_cold(starts[COLD]):
        names[COLD] = "first"
    return names


def tables_of(starts: dict[str, Results]) -> list[Table]:
    """One table with a column for each start; beside a peer, a table for each start."""
    names = names_of(starts)
    programs = list(next(iter(starts.values())))
    if len(programs) > 1:
        return [
            _table(results, f"{{}}, {names[start]}", with_start=start == COLD or len(starts) == 1)
            for start, results in starts.items()
        ]
    columns = {names[start]: results[programs[0]] for start, results in starts.items()}
    return [_table(columns, "{}", with_start=True)]


def _table(columns: Results, heading: str, *, with_start: bool) -> Table:
    """with_start: whether the rows of what happens once a process are wanted."""
    first, *others = columns.values()
    table = Table(box=box.SIMPLE_HEAD)
    what = f"{Path(first[0]['model']).name}, {threads_of(first[0])}"
    table.add_column(printable(heading.format(what)))
    for name in columns:
        table.add_column(name, justify="right")
    is_pair = bool(others) and first[0]["start"] == others[0][0]["start"]
    ratios = ratios_of(first, others[0]) if is_pair else None
    if ratios:
        table.add_column("ratio", justify="right")
    for label, value, write, ratio in _rows(first[0]):
        cells = [_cell([value(run) for run in runs], write) for runs in columns.values()]
        if label in _ONCE:
            # A process's later passes have the same: it is told where it happened.
            cells[1:] = cells[1:] if is_pair else [""] * len(others)
            if not with_start:
                continue
        if any(cells):
            if ratios:
                cells.append(with_range(ratios[ratio], number) if ratio else "")
            table.add_row(label, *cells)
    return table


def _cell(values: list[float | None], write: Callable[[float], str]) -> str:
    """Sizes hardly vary, and two columns of them with their ranges would not fit a terminal."""
    known = [value for value in values if value is not None]
    if write is format_size and known:
        return format_size(statistics.median(known))
    return with_range(known, write)


_Value = Callable[[Figures], float | None]
_Row = tuple[str, _Value, Callable[[float], str], str | None]
_ONCE = ("loading, s", "first token, s")


def _rows(first: Figures) -> list[_Row]:
    """Each row's label, its number in a run's figures, how that is written, its ratio's name."""
    n_prompt, n_decode = first["prefill"]["tokens"], first["decode"]["tokens"]

    def read_per_token(run: Figures) -> float | None:
        return over(run["experts"]["bytes_read"], n_decode)

    def requests_per_token(run: Figures) -> float | None:
        return over(run["experts"]["requests"], n_decode)

    def request_size(run: Figures) -> float | None:
        requests = run["experts"]["requests"]
        return run["experts"]["bytes_read"] / requests if requests else None

    def from_disk_per_token(run: Figures) -> float | None:
        return over(run["decode"]["disk_bytes"], n_decode)

    def in_ram(run: Figures) -> float | None:
        return over(run["experts"]["slots"], run["experts"]["count"])

    return [
        ("loading, s", lambda r: r["load_s"], number, None),
        ("first token, s", lambda r: r["first_token_s"], number, None),
        ("really from disk", lambda r: r["from_disk_share"], percent, None),
        (f"prompt of {n_prompt}, tokens/s", lambda r: r["prefill"]["tok_s"], number, "prefill"),
        ("  waited for reads, s", lambda r: r["prefill"]["wait_s"], number, None),
        ("  from disk, all of it", lambda r: r["prefill"]["disk_bytes"], format_size, None),
        (f"decoding {n_decode}, tokens/s", lambda r: r["decode"]["tok_s"], number, "decode"),
        ("  as chat does, tokens/s", lambda r: r["decode"]["as_chat_tok_s"], number, None),
        ("  of memory's read limit", lambda r: r["decode"]["read_limit_ratio"], percent, None),
        ("  weights per token", lambda r: r["decode"]["bytes_per_token"], format_size, None),
        ("  experts there is room for", in_ram, percent, None),
        ("  experts found in RAM", lambda r: r["experts"]["hit_rate"], percent, None),
        ("  read per token", read_per_token, format_size, None),
        ("  requests per token", requests_per_token, number, None),
        ("  bytes per request", request_size, format_size, None),
        ("  from disk per token", from_disk_per_token, format_size, None),
        ("  waited for reads, s", lambda r: r["experts"]["wait_s"], number, None),
        ("  of the disk's rate", lambda r: r["decode"]["disk_share"], percent, None),
        ("  disk busy meanwhile", lambda r: r["decode"]["busy_share"], percent, None),
        ("peak memory", lambda r: r["peak_rss"], format_size, "peak_rss"),
    ]
