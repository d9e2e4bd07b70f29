"""The options of ``q4run convert``, in groups."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from pkgutil import iter_modules
from typing import Annotated, Any

import gguf
import typer

from q4run import kernels
from q4run.errors import Error
from q4run.machine.memory import total_memory
from q4run.sizes import parse_size

# As text: what has them imports the kernels, which --help does not wait for.
_RECIPES = (
    "best (hardly any loss), balanced (little loss in half a byte per weight), fast (what decodes"
    " fastest at four bits), small (three bits for the experts), ternary (for experts that were"
    " trained ternary)"
)


def type_names() -> list[str]:
    """Returns the types there are kernels for, the largest first: every file of the formats' folder
    that bears the name of a GGUF type. Imports none of them."""
    files = iter_modules([f"{folder}/formats" for folder in kernels.__path__])
    types = gguf.GGMLQuantizationType.__members__
    found = [types[file.name.upper()] for file in files if file.name.upper() in types]

    def bits_per_weight(ggml_type: gguf.GGMLQuantizationType) -> float:
        block_size, n_bytes = gguf.GGML_QUANT_SIZES[ggml_type]
        return 8 * n_bytes / block_size

    return [one.name.lower() for one in sorted(found, key=bits_per_weight, reverse=True)]


@dataclass(frozen=True)
class Types:
    """Which types the tensors get."""

    type_name: Annotated[
        str | None,
        typer.Option(
            "--type",
            metavar="T",
            help=f"The type of the matrices: {', '.join(type_names())}.",
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
            help=f"Types for a usual case instead of --type: {_RECIPES}.",
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

    def keywords(self) -> dict[str, Any]:
        """Returns what ``q4run.convert`` takes. Raises typer.BadParameter for a wrong choice."""
        fit = _size(self.fit, "--fit", total_memory())
        overrides = [_override(text) for text in self.tensor_types or ()]
        if not (self.type_name or self.recipe or fit):
            raise typer.BadParameter("give a --type, a --recipe, or a size to --fit")
        if fit and (self.type_name or self.expert_type or self.recipe or overrides):
            raise typer.BadParameter("--fit chooses the types: give either it or types")
        return {
            "type": self.type_name,
            "expert_type": self.expert_type,
            "recipe": self.recipe,
            "tensor_types": overrides,
            "fit": fit,
        }


@dataclass(frozen=True)
class Calibration:
    """What says which weights matter."""

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
    """How the output is written."""

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
    pre: Annotated[
        str | None,
        typer.Option(
            "--pre",
            metavar="NAME",
            help="How text is cut into words (the name for tokenizer.ggml.pre), where the source"
            " does not say it in a way that is known.",
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

    def keywords(self) -> dict[str, Any]:
        """Returns what ``q4run.convert`` takes. Raises typer.BadParameter for what is no size."""
        return asdict(self) | {
            "max_ram": _size(self.max_ram, "--max-ram", total_memory()),
            "split_max_size": _size(self.split_max_size, "--split-max-size", None),
        }


def _override(text: str) -> tuple[str, str]:
    pattern, equals, type_name = text.rpartition("=")
    if not equals or not pattern:
        raise typer.BadParameter(f"'{text}' is not PATTERN=TYPE", param_hint="--tensor-type")
    return pattern, type_name


def _size(text: str | None, option: str, total: int | None) -> int | None:
    if text is None:
        return None
    try:
        return parse_size(text, total)
    except Error as error:
        raise typer.BadParameter(str(error), param_hint=option) from None
