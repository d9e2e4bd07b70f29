"""Which type each tensor gets."""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import gguf

from q4run.convert.tensors import OutputTensor, PlannedTensor
from q4run.errors import Error, UnsupportedError
from q4run.kernels.formats import Format, find_format_named
from q4run.models.parts import Role

FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "bf16": gguf.LlamaFileType.MOSTLY_BF16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "q6_k": gguf.LlamaFileType.MOSTLY_Q6_K,
    "q5_k": gguf.LlamaFileType.MOSTLY_Q5_K_M,
    "q5_1": gguf.LlamaFileType.MOSTLY_Q5_1,
    "q5_0": gguf.LlamaFileType.MOSTLY_Q5_0,
    "q4_k": gguf.LlamaFileType.MOSTLY_Q4_K_M,
    "q4_1": gguf.LlamaFileType.MOSTLY_Q4_1,
    "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
    "iq4_nl": gguf.LlamaFileType.MOSTLY_IQ4_NL,
    "iq4_xs": gguf.LlamaFileType.MOSTLY_IQ4_XS,
    "mxfp4": gguf.LlamaFileType.MOSTLY_MXFP4_MOE,
    "q3_k": gguf.LlamaFileType.MOSTLY_Q3_K_M,
    "q2_k": gguf.LlamaFileType.MOSTLY_Q2_K,
    "tq2_0": gguf.LlamaFileType.MOSTLY_TQ2_0,
    "tq1_0": gguf.LlamaFileType.MOSTLY_TQ1_0,
}
TERNARY = ("tq1_0", "tq2_0")
# What a row that is not a whole number of blocks gets instead, as in llama.cpp's quantiser.
FALLBACKS = {
    "q6_k": ("q8_0", "f16"),
    "q5_k": ("q5_1", "f16"),
    "q4_k": ("q5_0", "f16"),
    "iq4_xs": ("iq4_nl", "f16"),
    "q3_k": ("iq4_nl", "f16"),
    "q2_k": ("iq4_nl", "f16"),
    "tq2_0": ("q4_0", "f16"),
    "tq1_0": ("q4_0", "f16"),
}
DEFAULT_FALLBACKS = ("f16",)
ALWAYS_F32 = (Role.NORM, Role.ROPE_FACTORS, Role.ROUTER, Role.BIAS)
# The least that the output matrix gets: its errors reach every token undamped.
OUTPUT_TYPE = "q6_k"

HeaderBytes = Callable[[Sequence[PlannedTensor]], int]


class TypeChoice(Protocol):
    """What chooses every tensor's type. ``name``: what the output is called for it."""

    @property
    def name(self) -> str: ...

    def plan(
        self, tensors: Sequence[OutputTensor], header_bytes: HeaderBytes | None = None
    ) -> tuple[list[PlannedTensor], list[str]]:
        """The tensors with their types, in their order, and notes on the choice.

        header_bytes: tells, for tensors with types, how many bytes of the files are not for
        tensors; without it none are.
        """
        ...


@dataclass(frozen=True)
class Recipe:
    """Types by the tensors' uses. ``tensor_types`` are pairs of a pattern, searched for in a
    tensor's name, and a type; the first that matches goes before all else but f32 vectors."""

    type: str
    expert_type: str
    tensor_types: Sequence[tuple[str, str]] = ()

    @property
    def name(self) -> str:
        return self.type if self.expert_type == self.type else f"{self.type}-{self.expert_type}"

    def plan(
        self, tensors: Sequence[OutputTensor], header_bytes: HeaderBytes | None = None
    ) -> tuple[list[PlannedTensor], list[str]]:
        """The tensors with their types, and notes on those that could not have the one asked for.

        However long headers are, the types are the same. Router, norms and other vectors stay f32.
        The output matrix (which may be the embedding) is at least q6_k, as in llama.cpp's
        quantiser; beside ternary types it is q8_0, and so is the embedding: ternary would ruin
        them. A row that does not fit a block falls back.
        """
        planned = []
        fallen: dict[tuple[str, str, int], list[str]] = defaultdict(list)
        is_tied = not any(tensor.role is Role.OUTPUT for tensor in tensors)
        for tensor in tensors:
            is_output = tensor.role is (Role.EMBEDDING if is_tied else Role.OUTPUT)
            wanted = "f32" if is_vector(tensor) else self._wanted(tensor, is_output)
            fmt = first_that_fits(wanted, tensor.n_cols)
            if fmt.name != wanted:
                fallen[wanted, fmt.name, tensor.n_cols].append(tensor.name)
            planned.append(PlannedTensor(tensor, fmt))
        notes = [
            f"{len(names)} tensors are {got} instead of {wanted}, because rows of {n_cols} values"
            f" are not whole {wanted} blocks: {names[0]}"
            + (" and others" if len(names) > 1 else "")
            for (wanted, got, n_cols), names in fallen.items()
        ]
        if self.type in TERNARY:
            notes.append("token embedding and output matrix are q8_0: ternary would ruin them")
        return planned, notes

    def _wanted(self, tensor: OutputTensor, is_output: bool) -> str:
        for pattern, type_name in self.tensor_types:
            if re.search(pattern, tensor.name):
                return type_name
        if tensor.role is Role.EXPERT:
            return self.expert_type
        if tensor.role in (Role.EMBEDDING, Role.OUTPUT) and self.type in TERNARY:
            return "q8_0"
        if is_output and named(self.type).bits_per_weight < named(OUTPUT_TYPE).bits_per_weight:
            return OUTPUT_TYPE
        return self.type


# For the usual cases, by the names that --recipe takes: dense type, expert type, what it is for.
RECIPES = {
    "best": ("q8_0", "q6_k", "hardly any loss"),
    "balanced": ("q8_0", "q4_k", "little loss in half a byte per weight"),
    "fast": ("q4_0", "q4_0", "what decodes fastest at four bits"),
    "small": ("q6_k", "q3_k", "three bits for the experts"),
    "ternary": ("q8_0", "tq2_0", "for experts that were trained ternary"),
}


def make_recipe(
    type_name: str | None,
    expert_type: str | None,
    recipe: str | None,
    tensor_types: Sequence[tuple[str, str]],
) -> Recipe:
    """From what was asked for; ``recipe`` names one, which the types given besides go before.

    Raises `UnsupportedError` for a name that is not known and ``Error`` for a pattern that is none.
    """
    if recipe is not None:
        if recipe not in RECIPES:
            known = ", ".join(f"{name} ({purpose})" for name, (*_, purpose) in RECIPES.items())
            raise UnsupportedError(f"there is no recipe '{recipe}': choose {known}")
        dense, experts, _ = RECIPES[recipe]
        type_name, expert_type = type_name or dense, expert_type or experts
    if type_name is None:
        raise Error("no type is given: name one with --type, a recipe, or a size to fit into")
    for pattern, name in tensor_types:
        check_type(name)
        try:
            re.compile(pattern)
        except re.error as error:
            raise Error(f"'{pattern}' is no pattern of tensor names: {error}") from None
    return Recipe(check_type(type_name), check_type(expert_type or type_name), tensor_types)


def check_type(name: str) -> str:
    """``name`` if it is a type that convert can write, else `UnsupportedError`."""
    if name not in FILE_TYPES:
        raise UnsupportedError(
            f"the type '{name}' is not supported (known: {', '.join(FILE_TYPES)})"
        )
    return name


def file_type(tensors: Sequence[PlannedTensor]) -> int:
    """The value of ``general.file_type``: the type that holds most of the weights."""
    weights: dict[str, int] = defaultdict(int)
    for planned in tensors:
        weights[planned.fmt.name] += planned.tensor.n_values
    return int(FILE_TYPES[max(weights, key=lambda name: weights[name])])


def is_vector(tensor: OutputTensor) -> bool:
    """Whether it stays f32 whatever is asked for."""
    return tensor.role in ALWAYS_F32 or len(tensor.shape) == 1


def first_that_fits(wanted: str, n_cols: int) -> Format:
    """The format of that name, or what rows of ``n_cols`` values get instead."""
    for name in (wanted, *FALLBACKS.get(wanted, DEFAULT_FALLBACKS)):
        if named(name).fits(n_cols):
            return named(name)
    raise AssertionError("f16 fits every row")


def named(name: str) -> Format:
    """The format of a name in ``FILE_TYPES``."""
    fmt = find_format_named(name)
    assert fmt is not None
    return fmt
