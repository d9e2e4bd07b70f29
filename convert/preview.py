"""What a conversion would write, as a file that is not there: for `q4run plan`."""

from pathlib import Path
from typing import NamedTuple

import gguf

from q4run.convert.options import ConversionOptions
from q4run.convert.plan import plan_conversion
from q4run.convert.tensors import OutputTensor, Rows
from q4run.convert.types.recipe import Recipe
from q4run.gguf_file import GGUFFile, describe_file
from q4run.models.parts import Role
from q4run.models.shapes import Geometry, hyperparameters, tensors_of


def preview_checkpoint(source: Path, recipe: Recipe) -> GGUFFile:
    """The file that converting a checkpoint would give, called NAME-TYPE.gguf.

    Reads headers only, and refuses what `convert` refuses.
    """
    options = ConversionOptions(
        type=recipe.type,
        expert_type=recipe.expert_type,
        tensor_types=recipe.tensor_types,
        dry_run=True,
    )
    plan = plan_conversion(source, None, options)
    (part,) = plan.parts
    values = {key: entry.value for key, entry in plan.metadata.kv_data[0].items()}
    described = ((p.tensor.name, p.tensor.shape, p.fmt.ggml_type) for p in plan.tensors)
    return describe_file(part.path, values, described, len(part.header))


def preview_geometry(name: str, geometry: Geometry, recipe: Recipe) -> GGUFFile:
    """The file that converting a model of this shape would give, but for its tokenizer."""
    planned, _ = recipe.plan(_output_tensors(geometry))
    values: dict[str, object] = {
        f"{geometry.architecture}.{key}": value for key, value in hyperparameters(geometry).items()
    }
    values[gguf.Keys.General.ARCHITECTURE] = geometry.architecture
    described = ((p.tensor.name, p.tensor.shape, p.fmt.ggml_type) for p in planned)
    return describe_file(Path(f"{name}-{recipe.name}.gguf"), values, described)


class ExpertReads(NamedTuple):
    """What a token reads of routed experts, in bytes, and the types that these are."""

    n_bytes: int
    types: tuple[str, ...]


def expert_reads(geometry: Geometry, recipe: Recipe) -> ExpertReads:
    """What a token reads as long as no expert is in RAM; a type that does not fit rows is replaced
    as in a conversion."""
    planned, _ = recipe.plan(_output_tensors(geometry))
    experts = [p for p in planned if p.tensor.role is Role.EXPERT]
    stored = sum(
        p.tensor.n_values // p.tensor.n_cols * p.fmt.row_bytes(p.tensor.n_cols) for p in experts
    )
    types = tuple(dict.fromkeys(p.fmt.name for p in experts))
    return ExpertReads(stored // geometry.n_expert * geometry.n_expert_used, types)


def _output_tensors(geometry: Geometry) -> list[OutputTensor]:
    return [
        OutputTensor(tensor.name, tensor.shape, tensor.role, _no_rows)
        for tensor in tensors_of(geometry)
    ]


def _no_rows(matrix: int, start: int, stop: int) -> Rows:
    raise AssertionError("there are no weights to read")
