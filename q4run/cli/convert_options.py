"""The options of ``q4run convert``, in groups: types, importance, writing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

TYPES = (
    "f32, f16, bf16, q8_0, q6_k, q5_k, q5_1, q5_0, q4_k, q4_1, q4_0, iq4_nl, iq4_xs, mxfp4, q3_k,"
    " q2_k, tq2_0, tq1_0"
)
RECIPES = (
    "best (hardly any loss), balanced (little loss in half a byte per weight), fast (what decodes"
    " fastest at four bits), small (three bits for the experts), ternary (for experts that were"
    " trained ternary)"
)


@dataclass(frozen=True)
class Types:
    """Which types the tensors get."""

    type_name: Annotated[
        str | None,
        typer.Option(
            "--type",
            metavar="T",
            help=f"The type of the matrices: {TYPES}.",
            show_default=False,
        ),
    ] = None
    expert_type: Annotated[
        str | None,
        typer.Option(
            "--expert-type",
            metavar="T",
            help="Another type for the routed experts.",
            show_default=False,
        ),
    ] = None
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            metavar="NAME",
            help=f"Types for a usual case instead of --type: {RECIPES}.",
            show_default=False,
        ),
    ] = None
    fit: Annotated[
        str | None,
        typer.Option(
            "--fit",
            metavar="SIZE",
            help="Choose the types instead, for the least loss in a file of at most this size.",
            show_default=False,
        ),
    ] = None
    tensor_types: Annotated[
        list[str] | None,
        typer.Option(
            "--tensor-type",
            metavar="PATTERN=T",
            help="Another type for the tensors in whose names the pattern is found; may be given"
            " several times.",
            show_default=False,
        ),
    ] = None


@dataclass(frozen=True)
class Importance:
    """What tells which weights are to be kept more exactly."""

    imatrix: Annotated[
        Path | None,
        typer.Option(
            "--imatrix",
            metavar="FILE",
            help="An importance matrix of this model (q4run imatrix, or llama.cpp's): columns that"
            " multiply large values are kept more exactly.",
            show_default=False,
        ),
    ] = None
    calibrate: Annotated[
        Path | None,
        typer.Option(
            "--calibrate",
            metavar="TEXT",
            help="Run this text through the model while converting, and make up in some weights for"
            " what others lose in rounding: the best quality, and the slowest.",
            show_default=False,
        ),
    ] = None
    calibrate_chunks: Annotated[
        int | None,
        typer.Option(
            "--calibrate-chunks",
            metavar="N",
            min=1,
            help="How many windows of 512 tokens of it at most. Not given: 256.",
            show_default=False,
        ),
    ] = None


@dataclass(frozen=True)
class Writing:
    """What is written, and within what."""

    max_ram: Annotated[
        str | None,
        typer.Option(
            "--max-ram",
            metavar="SIZE",
            help="The most memory to use: 6G (powers of 1000), 6GiB (of 1024), 500M, or a share of"
            " the machine's RAM such as 50%. Not given: a quarter of what is free.",
            show_default=False,
        ),
    ] = None
    threads: Annotated[
        int | None,
        typer.Option(
            "--threads",
            metavar="N",
            min=1,
            help="Threads that quantise. Not given: one per physical core, as far as a container's"
            " limit allows.",
            show_default=False,
        ),
    ] = None
    split_max_size: Annotated[
        str | None,
        typer.Option(
            "--split-max-size",
            metavar="SIZE",
            help="Write several files of at most this size: NAME-00001-of-00005.gguf.",
            show_default=False,
        ),
    ] = None
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be written, and how large it is.")
    ] = False
    force: Annotated[
        bool, typer.Option("--force", help="Replace an output that exists, once the new is whole.")
    ] = False
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Keep what is finished if interrupted, and go on from there if there is any.",
        ),
    ] = False
