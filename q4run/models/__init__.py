"""The model families q4run runs, one file each; a family says what its layers do.

A file of this folder that names an ``ARCHITECTURE`` is a family. `parts` and `rope` have the words
in which families speak, `config` and `rope_keys` what all decoders share, `keys` every metadata key
that can change what is computed, `names` what tensors of any family do; `shapes` says what a
model of given sizes is, `published` those of known models.
"""

from importlib import import_module
from pkgutil import iter_modules
from typing import Protocol, cast

from q4run.errors import UnsupportedError
from q4run.gguf_file import GGUFFile
from q4run.models.config import ModelConfig
from q4run.models.keys import FamilyKeys, check_keys, notes_on_keys


class Family(Protocol):
    """A module that knows the models of one architecture."""

    ARCHITECTURE: str
    KEYS: FamilyKeys

    def read_config(self, file: GGUFFile) -> ModelConfig: ...


def _find_families() -> dict[str, Family]:
    modules = (import_module(f"{__name__}.{file.name}") for file in iter_modules(__path__))
    return {m.ARCHITECTURE: cast(Family, m) for m in modules if hasattr(m, "ARCHITECTURE")}


FAMILIES = _find_families()


def read_config(file: GGUFFile) -> ModelConfig:
    """Reads a model's hyperparameters; UnsupportedError for an unknown family, and for a metadata
    key that the family cannot obey."""
    family = _family_of(file)
    check_keys(file, family.KEYS)
    return family.read_config(file)


def notes_on(file: GGUFFile) -> list[str]:
    """Returns lines about metadata that q4run takes no notice of; UnsupportedError as above."""
    return notes_on_keys(file, _family_of(file).KEYS)


def _family_of(file: GGUFFile) -> Family:
    family = FAMILIES.get(file.architecture)
    if family is None:
        raise UnsupportedError(
            f"{file.path}: the architecture '{file.architecture}' is not supported;"
            f" q4run runs {', '.join(FAMILIES)}"
        )
    return family
