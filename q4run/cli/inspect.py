"""``q4run inspect``: what is in a model file, from its headers alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

from q4run.cli import options
from q4run.cli.opening import model_in_the_box
from q4run.gguf_file import open_gguf
from q4run.inspection.model import summarize

# Into a pipe, rows must not be folded to the 80 columns that rich assumes there.
_PIPE_WIDTH = 200
_LONGEST_SHOWN = 100


def inspect(
    model: options.ModelFile = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    json_output: Annotated[
        bool, typer.Option("--json", help="Print one JSON object instead.")
    ] = False,
) -> None:
    """Show what is in a model file: sizes, types, attention, experts, tokenizer.

    Reads the headers alone, so that it takes no longer for a large model.

    [bold]Examples[/]
      q4run inspect model.gguf
      q4run inspect model.gguf --tensors
      q4run inspect model-00001-of-00006.gguf --json > model.json
    """
    summary = summarize(open_gguf(model or model_in_the_box()), list_tensors=tensors)
    if json_output:
        typer.echo(json.dumps(summary, indent=2))
        return
    console = Console()
    if not console.is_terminal:
        console = Console(width=_PIPE_WIDTH)
    console.print(_facts(summary))
    if summary["tensor_count"]:
        console.print(_class_table(summary))
    if tensors:
        console.print(_tensor_table(summary))


def _facts(summary: dict[str, Any]) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in _fact_rows(summary):
        table.add_row(label, Text(value))
    return table


def _fact_rows(summary: dict[str, Any]) -> list[tuple[str, str]]:
    n_parts = len(summary["parts"])
    context, attention = summary["context_length"], summary["attention"]
    rows = [
        ("file", _printable(summary["path"])),
        ("last part", _printable(Path(summary["parts"][-1]).name) if n_parts > 1 else ""),
        ("format", f"GGUF version {summary['gguf_version']}, alignment {summary['alignment']}"),
        ("size", decimal(summary["size"]) + (f" in {n_parts} parts" if n_parts > 1 else "")),
        ("name", _shown(summary["name"] or "not given")),
        ("architecture", _architecture_text(summary)),
        ("file type", _file_type_text(summary["file_type"])),
        ("layers", _layer_text(summary)),
        ("context", "not given" if context is None else f"{context:,} tokens"),
        ("attention", _attention_text(attention) if attention else ""),
        ("positions", _positions_text(attention) if attention else ""),
        ("experts", _expert_text(summary["experts"])),
        ("parameters", _parameter_text(summary)),
        ("tokenizer", _tokenizer_text(summary["tokenizer"])),
        ("imatrix", _notes_text(summary["imatrix"])),
        ("calibrated", _notes_text(summary["calibration"])),
    ]
    # What a file seldom has is left out where it does not.
    return [(label, value) for label, value in rows if value]


def _architecture_text(summary: dict[str, Any]) -> str:
    name = summary["architecture"]
    if name is None:
        return "not given"
    return _shown(name) + ("" if summary["supported"] else " (q4run cannot run it yet)")


def _file_type_text(file_type: dict[str, Any] | None) -> str:
    if file_type is None:
        return "not given"
    return file_type["name"] or f"number {file_type['number']}, which has no name here"


def _notes_text(notes: dict[str, Any] | None) -> str:
    """What was noted of an importance matrix or a calibration."""
    if notes is None:
        return ""
    source = notes.get("file") or notes["dataset"]
    said = [_shown(source) if source else "with a text that is not named"]
    if notes.get("file") and notes["dataset"]:
        said.append(f"of {_shown(notes['dataset'])}")
    if notes.get("entries_count") is not None:
        said.append(f"{notes['entries_count']:,} matrices")
    if notes["chunks_count"] is not None:
        said.append(f"{notes['chunks_count']:,} chunks")
    return ", ".join(said)


def _layer_text(summary: dict[str, Any]) -> str:
    count, width = summary["block_count"], summary["embedding_length"]
    if count is None:
        return "not given"
    return f"{count}" + ("" if width is None else f" of width {width}")


def _attention_text(facts: dict[str, Any]) -> str:
    """The facts about heads in a line, as people say them."""
    if facts["heads"] is None:
        return "not given"
    text = f"{facts['heads']} heads"
    if facts["head_dim"] is not None:
        text += f" of {facts['head_dim']}"
    if facts["kv_heads"] not in (None, facts["heads"]):
        text += f", {facts['kv_heads']} of keys and values"
    return text


def _positions_text(facts: dict[str, Any]) -> str:
    """The facts about positions and about how far layers see, in a line."""
    said = []
    if facts["rope_base"] is not None:
        base = facts["rope_base"]
        said.append(f"RoPE of base {base:,.0f}" if base == int(base) else f"RoPE of base {base:g}")
        if facts["rope_dim"] not in (None, facts["head_dim"]):
            said[-1] += f" over {facts['rope_dim']} values of a head"
    scaling = facts["rope_scaling"]
    if scaling is not None:
        factor = "" if scaling["factor"] is None else f" by {scaling['factor']:g}"
        said.append(f"scaled{factor} ({_shown(scaling['type'])})")
    if facts["rope_factors"]:
        said.append("a factor for each frequency")
    layers, with_rope = facts["layers"], facts["rope_layers"]
    if layers is not None and with_rope != layers:
        said.append(f"none in {layers - with_rope} of {layers} layers (NoPE)")
    if facts["chunked_layers"]:
        said.append(f"{facts['chunked_layers']} see chunks of {facts['chunk_size']:,} tokens")
    if facts["sliding_window"]:
        said.append(f"a window of {facts['sliding_window']:,} tokens")
    return ", ".join(said) or "not given"


def _expert_text(experts: dict[str, Any] | None) -> str:
    if experts is None:
        return "none"
    used = experts["used"]
    return f"{experts['count']}" + ("" if used is None else f", {used} used per token")


def _parameter_text(summary: dict[str, Any]) -> str:
    if not summary["tensor_count"]:
        return "none: there are no tensors in this file"
    text = _amount(summary["parameters"])
    active = summary["active_parameters"]
    if active is not None and active != summary["parameters"]:
        text += f", {_amount(active)} active per token"
    return text


def _tokenizer_text(tokenizer: dict[str, Any] | None) -> str:
    if tokenizer is None:
        return "none"
    kind = tokenizer["model"] + (f" ({tokenizer['pre']})" if tokenizer["pre"] else "")
    template = "with" if tokenizer["chat_template"] else "no"
    return f"{_shown(kind)}, {tokenizer['vocab_size']:,} tokens, {template} chat template"


def _class_table(summary: dict[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_footer=True)
    table.add_column("tensors", footer="all")
    table.add_column("types", footer=_type_text(summary["types"]))
    for heading, footer in zip(
        ("count", "parameters", "size", "bits per weight"), _figure_texts(summary), strict=True
    ):
        table.add_column(heading, footer=footer, justify="right", no_wrap=True)
    for label, figures in summary["classes"].items():
        table.add_row(label, _type_text(figures["types"]), *_figure_texts(figures))
    return table


def _tensor_table(summary: dict[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("name", overflow="fold")
    table.add_column("type", no_wrap=True)
    table.add_column("shape", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    if len(summary["parts"]) > 1:
        table.add_column("part", overflow="fold")
    for tensor in summary["tensors"]:
        shape = " × ".join(str(dimension) for dimension in tensor["shape"])
        cells = [tensor["type"], shape or "scalar", decimal(tensor["bytes"])]
        if len(summary["parts"]) > 1:
            cells.append(Text(_shown(tensor["part"])))
        table.add_row(Text(_shown(tensor["name"])), *cells)
    return table


def _figure_texts(figures: dict[str, Any]) -> list[str]:
    bits = figures["bits_per_weight"]
    return [
        f"{figures['tensor_count']:,}",
        _amount(figures["parameters"]),
        decimal(figures["bytes"]),
        "" if bits is None else f"{bits:.2f}",
    ]


def _type_text(types: dict[str, int]) -> str:
    return ", ".join(
        f"{kind} ({count})" if len(types) > 1 else kind for kind, count in types.items()
    )


def _amount(number: int) -> str:
    """A count of parameters as people say it: 998, 30.3 M, 108.6 B."""
    for unit, suffix in ((10**12, " T"), (10**9, " B"), (10**6, " M"), (10**3, " k")):
        if number >= unit:
            return f"{number / unit:.1f}{suffix}"
    return str(number)


def _shown(text: str) -> str:
    """Text out of a file, made safe for a terminal and not endless."""
    if len(text) > _LONGEST_SHOWN:
        text = text[: _LONGEST_SHOWN - 1] + "…"
    return _printable(text)


def _printable(text: str) -> str:
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
