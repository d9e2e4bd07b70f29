"""Tensors as parts declare them: what each is, its shape, and its name in a GGUF file."""

from collections.abc import Iterable
from enum import Enum
from typing import NamedTuple, Protocol

from gguf import MODEL_TENSOR, TENSOR_NAMES

WEIGHT, BIAS = "weight", "bias"
BARE = ""  # the end of a name that has none


class Role(Enum):
    """What a tensor does: recipes choose its type by this, budgets where it stays."""

    NORM = "norm"
    ROPE_FACTORS = "rope factors"
    ROUTER = "router"
    BIAS = "bias"
    EMBEDDING = "token embedding"
    OUTPUT = "output matrix"
    MATRIX = "matrix"
    EXPERT = "routed experts"


class Tensor(NamedTuple):
    """A tensor that a part reads; ``shape`` is in numpy's order, ``layer`` None outside layers.

    ``suffix``: what it is for its kind, ``weight`` or ``bias``, which ends its name unless that is
    ``bare``.
    """

    kind: MODEL_TENSOR
    shape: tuple[int, ...]
    role: Role = Role.MATRIX
    layer: int | None = None
    suffix: str = WEIGHT
    bare: bool = False

    @property
    def name(self) -> str:
        """The name in a GGUF file."""
        return tensor_name(self.kind, self.layer, BARE if self.bare else self.suffix)


def tensor_name(kind: MODEL_TENSOR, layer: int | None = None, suffix: str = WEIGHT) -> str:
    """Returns the GGUF name of a tensor of this kind, e.g. the query matrix of layer 3."""
    name = TENSOR_NAMES[kind].format(bid=layer)
    return f"{name}.{suffix}" if suffix else name


def by_kind(tensors: Iterable[Tensor], suffix: str = WEIGHT) -> dict[MODEL_TENSOR, Tensor]:
    """Returns those of a part's tensors that end with ``suffix``, by what they are."""
    return {tensor.kind: tensor for tensor in tensors if tensor.suffix == suffix}


class Part(Protocol):
    """What every part of a layer says of itself."""

    def tensors(self, n_embd: int, layer: int) -> list[Tensor]:
        """Returns the part's tensors in file order."""
        ...
