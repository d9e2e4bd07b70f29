"""The model families q4run runs, one file each; a family says what its layers do."""

from typing import Protocol

from q4run.errors import UnsupportedError
from q4run.gguf_file import GGUFFile
from q4run.models import llama, llama4
from q4run.models.config import ModelConfig


class Family(Protocol):
    """A module that knows the models of one architecture."""

    ARCHITECTURE: str

    def read_config(self, file: GGUFFile) -> ModelConfig: ...


FAMILIES: dict[str, Family] = {family.ARCHITECTURE: family for family in (llama, llama4)}


def read_config(file: GGUFFile) -> ModelConfig:
    """The hyperparameters of the model in ``file``; UnsupportedError for an unknown family."""
    family = FAMILIES.get(file.architecture)
    if family is None:
        raise UnsupportedError(
            f"{file.path}: the architecture '{file.architecture}' is not supported;"
            f" q4run runs {', '.join(FAMILIES)}"
        )
    return family.read_config(file)
