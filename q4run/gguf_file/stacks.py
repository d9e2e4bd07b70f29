"""Experts that are tensors of their own, as Mixtral's first files have them, seen as stacks.

Since llama.cpp's pull request 6505 (April 2024) a layer's experts are one tensor of three axes.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from q4run.errors import FormatError
from q4run.gguf_file.cursor import quote
from q4run.gguf_file.header import TensorInfo

_EXPERT = re.compile(r"(.{1,80}\.ffn_(?:gate|up|down))\.(\d{1,9})\.weight", re.DOTALL)


def stack_experts(path: Path, tensors: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
    """Returns the tensors, each layer's separate experts as one under today's name.

    path: for messages. Raises FormatError where an expert is missing or has another shape than the
    layer's first, or the file has the stack too.
    """
    members: dict[str, dict[int, TensorInfo]] = defaultdict(dict)
    stacked: dict[str, TensorInfo | None] = {}
    for name, tensor in tensors.items():
        match = _EXPERT.fullmatch(name)
        if match is None:
            stacked[name] = tensor
            continue
        stack = f"{match[1]}_exps.weight"
        members[stack][int(match[2])] = tensor
        stacked.setdefault(stack, None)  # where the first of them stands
    for name in members:
        if name in tensors:
            raise FormatError(
                f"{path}: {quote(name)} is stored whole and expert by expert; the file is damaged"
            )
    whole = {name: _stack(path, name, found) for name, found in members.items()}
    return {name: tensor or whole[name] for name, tensor in stacked.items()}


def _stack(path: Path, name: str, found: Mapping[int, TensorInfo]) -> TensorInfo:
    missing = next(number for number in range(len(found) + 1) if number not in found)
    if missing != len(found):
        raise FormatError(
            f"{path}: {quote(name)} is stored expert by expert, and expert {missing} is missing;"
            " the model is not complete"
        )
    first, *others = parts = tuple(found[number] for number in range(len(found)))
    for part in others:
        if part.shape != first.shape or len(part.shape) != 2:
            raise FormatError(
                f"{path}: the tensor {quote(part.name)} has the shape {part.shape}, but"
                f" {quote(first.name)} has {first.shape}; the file is damaged"
            )
    return replace(
        first,
        name=name,
        shape=(len(parts), *first.shape),
        n_bytes=sum(part.n_bytes for part in parts),
        parts=parts,
    )
