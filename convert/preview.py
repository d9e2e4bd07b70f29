"""What a conversion would write, as a file that is not there: for `q4run plan`."""

from pathlib import Path

from q4run.convert.output.layout import lay_out
from q4run.convert.source.source import open_source
from q4run.convert.tensors import OutputTensor, Rows
from q4run.convert.types.recipe import Recipe
from q4run.gguf_file import GGUFFile, describe_file
from q4run.models.shapes import Geometry, hyperparameters, tensors_of


def preview_checkpoint(source: Path, recipe: Recipe) -> GGUFFile:
    """The file that converting a checkpoint would give, called NAME-TYPE.gguf.

    Reads headers only, and refuses what `convert` refuses.
    """
    opened = open_source(source)
    metadata, _ = opened.write_metadata()
    tensors, _ = recipe.plan(opened.tensors, 0)
    out = Path(f"{opened.name}-{recipe.name}.gguf")
    (part,) = lay_out(out, metadata, tensors, None)
    values = {key: entry.value for key, entry in metadata.kv_data[0].items()}
    described = ((p.tensor.name, p.tensor.shape, p.fmt.ggml_type) for p in tensors)
    return describe_file(out, values, described, len(part.header))


def preview_geometry(name: str, geometry: Geometry, recipe: Recipe) -> GGUFFile:
    """The file that converting a model of this shape would give, but for its tokenizer."""
    tensors = [
        OutputTensor(tensor.name, tensor.shape, tensor.role, _no_rows)
        for tensor in tensors_of(geometry)
    ]
    planned, _ = recipe.plan(tensors, 0)
    values: dict[str, object] = {
        f"{geometry.architecture}.{key}": value for key, value in hyperparameters(geometry).items()
    }
    values["general.architecture"] = geometry.architecture
    described = ((p.tensor.name, p.tensor.shape, p.fmt.ggml_type) for p in planned)
    return describe_file(Path(f"{name}-{recipe.name}.gguf"), values, described)


def _no_rows(matrix: int, start: int, stop: int) -> Rows:
    raise AssertionError("there are no weights to read")
