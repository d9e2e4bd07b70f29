"""The model families q4run runs, one file each; a family says what its layers do.

A file of this folder that names an ``ARCHITECTURE`` is a family. `parts` has the words in which
families speak, `config` what all decoders share, `names` what tensors of any family do, `shapes`
known models.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import Protocol, cast

from q4run.errors import UnsupportedError
from q4run.gguf_file import GGUFFile
from q4run.models.config import ModelConfig


class Family(Protocol):
    """A module that knows the models of one architecture."""

    ARCHITECTURE: str

    def read_config(self, file: GGUFFile) -> ModelConfig: ...


def _find_families() -> dict[str, Family]:
    modules = (import_module(f"{__name__}.{file.name}") for file in iter_modules(__path__))
    return {m.ARCHITECTURE: cast(Family, m) for m in modules if hasattr(m, "ARCHITECTURE")}


FAMILIES = _find_families()


def read_config(file: GGUFFile) -> ModelConfig:
    """Reads a model's hyperparameters; UnsupportedError for an unknown family."""
    family = FAMILIES.get(file.architecture)
    if family is None:
        raise UnsupportedError(
            f"{file.path}: the architecture '{file.architecture}' is not supported;"
            f" q4run runs {', '.join(FAMILIES)}"
        )
    return family.read_config(file)
