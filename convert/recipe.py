"""Which type each tensor gets."""

from collections import defaultdict
from collections.abc import Sequence

import gguf

from q4run.convert.tensors import OutputTensor, Role
from q4run.errors import UnsupportedError
from q4run.kernels.formats import Format, find_format_named

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
ALWAYS_F32 = (Role.NORM, Role.ROPE_FACTORS, Role.ROUTER)


def check_type(name: str) -> str:
    """``name`` if it is a type that convert can write, else `UnsupportedError`."""
    if name not in FILE_TYPES:
        raise UnsupportedError(
            f"the type '{name}' is not supported (known: {', '.join(FILE_TYPES)})"
        )
    return name


def choose_formats(
    tensors: Sequence[OutputTensor], type_name: str, expert_type: str
) -> tuple[list[Format], list[str]]:
    """The format of each tensor, and notes on those that could not have the one asked for.

    Router, norms and other vectors stay f32. Ternary embedding and output matrices would ruin the
    model, so that they are q8_0 there. A row that does not fit a block falls back.
    """
    formats = []
    fallen: dict[tuple[str, str, int], list[str]] = defaultdict(list)
    for tensor in tensors:
        wanted = _wanted(tensor, type_name, expert_type)
        fmt = _first_that_fits(wanted, tensor.n_cols)
        if fmt.name != wanted:
            fallen[wanted, fmt.name, tensor.n_cols].append(tensor.name)
        formats.append(fmt)
    notes = [
        f"{len(names)} tensors are {got} instead of {wanted}, because rows of {n_cols} values are "
        f"not whole {wanted} blocks: {names[0]}" + (" and others" if len(names) > 1 else "")
        for (wanted, got, n_cols), names in fallen.items()
    ]
    if type_name in TERNARY:
        notes.append("token embedding and output matrix are q8_0: ternary would ruin them")
    return formats, notes


def file_type(tensors: Sequence[OutputTensor], formats: Sequence[Format]) -> int:
    """The value of ``general.file_type``: the type that holds most of the weights."""
    weights: dict[str, int] = defaultdict(int)
    for tensor, fmt in zip(tensors, formats, strict=True):
        weights[fmt.name] += tensor.n_values
    return int(FILE_TYPES[max(weights, key=lambda name: weights[name])])


def _wanted(tensor: OutputTensor, type_name: str, expert_type: str) -> str:
    if tensor.role in ALWAYS_F32 or len(tensor.shape) == 1:
        return "f32"
    if tensor.role is Role.EXPERT:
        return expert_type
    if tensor.role in (Role.EMBEDDING, Role.OUTPUT) and type_name in TERNARY:
        return "q8_0"
    return type_name


def _first_that_fits(wanted: str, n_cols: int) -> Format:
    for name in (wanted, *FALLBACKS.get(wanted, DEFAULT_FALLBACKS)):
        fmt = find_format_named(name)
        if fmt is not None and fmt.fits(n_cols):
            return fmt
    raise AssertionError("f16 fits every row")
