"""Traces: which experts every layer wanted, pass by pass; read, generated and regrouped.

A file is what ``q4run.experts.trace.TraceWriter`` writes, or a NumPy array of integers (layers,
tokens) with one expert each, as of a model that uses one expert a token.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from q4run.errors import Error, FormatError
from q4run.experts.trace import VERSION

# Far above what models have, so that a damaged file does not ask for much memory.
_MOST_LAYERS = 1024
_MOST_EXPERTS = 4096
_MOST_FILE_BYTES = 64 << 20
_MOST_CHOICES = 1 << 23  # of an array
_NPY_MAGIC = b"\x93NUMPY"


@dataclass(frozen=True)
class Pass:
    """Tokens that went through the model together, and which experts each layer wanted for them."""

    n_tokens: int
    experts: list[list[int]]


@dataclass(frozen=True)
class Trace:
    """``layers``, ``n_expert`` and ``n_used`` have one entry for each layer with experts."""

    name: str
    layers: list[int]
    n_expert: list[int]
    n_used: list[int]
    passes: list[Pass]

    @property
    def n_tokens(self) -> int:
        return sum(one.n_tokens for one in self.passes)


def read_trace(path: Path) -> Trace:
    """A trace from a file of either kind.

    Raises FormatError for a file that is neither, Error where it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            if path.stat().st_size > _MOST_FILE_BYTES:
                raise FormatError(f"{path}: larger than a trace may be (64 MiB); record less")
            if file.read(len(_NPY_MAGIC)) == _NPY_MAGIC:
                return _from_array(path)
            file.seek(0)
            return _from_lines(path, file)
    except OSError as error:
        raise Error(f"{path}: cannot be read: {error.strerror or error}") from error


def made_trace(
    n_layers: int,
    n_expert: int,
    n_used: int,
    n_tokens: int,
    skew: float = 0.0,
    reuse: float = 0.0,
    seed: int = 0,
) -> Trace:
    """A generated trace of single tokens.

    skew: the r-th most popular expert of a layer is drawn in proportion to r**-skew (Zipf), with
    a ranking of its own in each layer; 0 is even. reuse: the probability that a token keeps each
    of the previous token's experts of the layer; the rest is drawn, none twice.
    """
    rng = np.random.default_rng(seed)
    log_weights = np.tile(-skew * np.log(np.arange(1, n_expert + 1)), (n_layers, 1))
    log_weights = rng.permuted(log_weights, axis=1)
    chosen = np.full((n_layers, n_expert), -1)
    passes: list[Pass] = []
    for _ in range(n_tokens):
        # The largest of log weight + Gumbel noise are a weighted draw without replacement.
        scores = log_weights + rng.gumbel(size=log_weights.shape)
        if passes:
            previous = np.take_along_axis(scores, chosen, axis=1)
            kept = rng.random(chosen.shape) < reuse
            np.put_along_axis(scores, chosen, np.where(kept, np.inf, previous), axis=1)
        chosen = np.argpartition(scores, n_expert - n_used, axis=1)[:, n_expert - n_used :]
        passes.append(Pass(1, np.sort(chosen, axis=1).tolist()))
    name = f"{n_layers} layers, {n_used} of {n_expert}, skew {skew:g}, reuse {reuse:g}"
    return Trace(name, list(range(n_layers)), [n_expert] * n_layers, [n_used] * n_layers, passes)


def in_chunks(trace: Trace, n_tokens: int) -> Trace:
    """The same tokens as a prompt: passes of (at least) so many, which want each expert once."""
    passes: list[Pass] = []
    for group in _groups(trace.passes, n_tokens):
        wanted = zip(*(one.experts for one in group), strict=True)
        experts = [sorted(set().union(*layer)) for layer in wanted]
        passes.append(Pass(sum(one.n_tokens for one in group), experts))
    name = f"{trace.name}, in chunks of {n_tokens}"
    return Trace(name, trace.layers, trace.n_expert, trace.n_used, passes)


def _groups(passes: Sequence[Pass], n_tokens: int) -> Iterator[list[Pass]]:
    group: list[Pass] = []
    for one in passes:
        group.append(one)
        if sum(member.n_tokens for member in group) >= n_tokens:
            yield group
            group = []
    if group:
        yield group


def _from_array(path: Path) -> Trace:
    try:
        # Mapped, NumPy compares the size that the header claims with the file's.
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, SyntaxError, OverflowError, MemoryError) as error:
        raise FormatError(f"{path}: damaged NumPy array") from error
    if array.ndim != 2 or array.dtype.kind not in "iu" or not array.size:
        raise FormatError(f"{path}: no trace: not an array of integers, layers x tokens")
    if len(array) > _MOST_LAYERS:
        raise FormatError(f"{path}: no trace: {len(array)} layers; is it layers x tokens?")
    if array.size > _MOST_CHOICES:
        raise FormatError(f"{path}: larger than a trace may be; record less")
    if array.min() < 0 or array.max() >= _MOST_EXPERTS:
        raise FormatError(f"{path}: no trace: experts from {array.min()} to {array.max()}")
    n_layers, n_expert = len(array), int(array.max()) + 1
    passes = [Pass(1, [[expert] for expert in token]) for token in array.T.tolist()]
    return Trace(path.name, list(range(n_layers)), [n_expert] * n_layers, [1] * n_layers, passes)


def _from_lines(path: Path, file: BinaryIO) -> Trace:
    header = _parse(path, 1, file.readline(_MOST_FILE_BYTES))
    if not isinstance(header, dict) or "q4run_trace" not in header:
        raise FormatError(f"{path}: no trace of q4run's: the first line does not say q4run_trace")
    if header["q4run_trace"] != VERSION:
        raise FormatError(f"{path}: a trace of another version; this q4run reads {VERSION}")
    layers, n_expert = header.get("layers", []), header.get("n_expert", [])
    if not _are_counts(layers, 0, _MOST_LAYERS) or layers != sorted(set(layers)) or not layers:
        raise FormatError(f"{path}: layers in the first line are not rising layer numbers")
    if not _are_counts(n_expert, 1, _MOST_EXPERTS) or len(n_expert) != len(layers):
        raise FormatError(f"{path}: n_expert in the first line is not a count for each layer")
    n_used = header.get("n_expert_used", [])
    if type(n_used) is int:
        n_used = [n_used] * len(layers)
    if (
        not _are_counts(n_used, 1, _MOST_EXPERTS)
        or len(n_used) != len(layers)
        or any(used > count for used, count in zip(n_used, n_expert, strict=True))
    ):
        raise FormatError(f"{path}: n_expert_used in the first line does not fit n_expert")
    passes: list[Pass] = []
    while line := file.readline(_MOST_FILE_BYTES):
        number = len(passes) + 2
        content = _parse(path, number, line)
        if not _is_pass(content, n_expert, n_used):
            raise FormatError(
                f"{path}: line {number} is no pass: not [tokens, [[experts of a layer], ...]] as"
                " the first line has it"
            )
        passes.append(Pass(*content))
    if not passes:
        raise FormatError(f"{path}: a trace without a single pass")
    return Trace(path.name, layers, n_expert, n_used, passes)


def _parse(path: Path, number: int, line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{path}: line {number} is not a line of JSON") from error


def _are_counts(values: Any, least: int, most: int) -> bool:
    return isinstance(values, list) and all(
        type(value) is int and least <= value <= most for value in values
    )


def _is_pass(content: Any, n_expert: list[int], n_used: list[int]) -> bool:
    if not isinstance(content, list) or len(content) != 2:
        return False
    n_tokens, experts = content
    if type(n_tokens) is not int or not 0 < n_tokens < 1 << 31 or not isinstance(experts, list):
        return False
    return len(experts) == len(n_expert) and all(
        _are_counts(wanted, 0, count - 1)
        and used <= len(wanted) <= n_tokens * used
        and len(set(wanted)) == len(wanted)
        for wanted, count, used in zip(experts, n_expert, n_used, strict=True)
    )
