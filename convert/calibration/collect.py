"""An importance matrix of a model and a text: the whole text goes through the model once."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import MODEL_TENSOR

from q4run.convert.calibration.arrays import Arrays
from q4run.convert.calibration.forward import Forward
from q4run.convert.calibration.imatrix import Entry, ImportanceMatrix, write_imatrix
from q4run.convert.calibration.room import working_bytes
from q4run.convert.calibration.weights import FileWeights
from q4run.convert.calibration.windows import read_windows
from q4run.errors import BudgetError, Error
from q4run.gguf_file import GGUFFile, open_gguf
from q4run.machine.memory import available_memory
from q4run.models import read_config
from q4run.models.config import ModelConfig
from q4run.models.parts import Experts, Role, Tensor
from q4run.sizes import format_size
from q4run.text import DEFAULT_WINDOW
from q4run.text.tokenizer import load_tokenizer

DEFAULT_SHARE = 0.75
# Called with how much of the work is done, of how much in all.
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Collected:
    """What `make_imatrix` did. ``unused``: how many experts, of how many, met no token."""

    out: Path
    n_entries: int
    n_chunks: int
    n_tokens: int
    context: int
    unused: int
    n_experts: int
    seconds: float


def make_imatrix(
    model: Path,
    text: Path,
    out: Path,
    *,
    context: int = DEFAULT_WINDOW,
    chunks: int | None = None,
    ram_budget: int | None = None,
    progress: Progress | None = None,
) -> Collected:
    """Runs a UTF-8 text through a GGUF model and writes what its matrices multiplied to ``out``.

    context: tokens in a window; chunks: how many windows at most; ram_budget: bytes, of weights
    and intermediate results (default: three quarters of what is free). What does not fit beside
    the weights of half a layer lies in unnamed files in ``out``'s folder. Raises subclasses of
    `q4run.Error`; whatever is raised, ``out`` is as it was.
    """
    started = time.monotonic()
    if not out.absolute().parent.is_dir():
        raise Error(f"{out.absolute().parent}: no such folder: make it first")
    if out.is_dir():
        raise Error(f"{out}: is a folder: name a file to write")
    file = open_gguf(model)
    config = read_config(file)
    windows = read_windows(text, load_tokenizer(file.metadata), context, chunks)
    arrays = Arrays(_room(file, config, context, ram_budget), out.absolute().parent)
    forward = Forward(config, FileWeights(file), windows, arrays)
    entries = _collect(forward, config, progress)
    write_imatrix(out, ImportanceMatrix(entries, str(text), len(windows), context))
    downs = [e.counts for name, e in entries.items() if name in _last_of_experts(config)]
    counts = np.concatenate(downs or [np.empty(0)])
    return Collected(
        out=out,
        n_entries=len(entries),
        n_chunks=len(windows),
        n_tokens=windows.size,
        context=context,
        unused=int((counts == 0).sum()),
        n_experts=len(counts),
        seconds=time.monotonic() - started,
    )


def _room(file: GGUFFile, config: ModelConfig, context: int, ram_budget: int | None) -> int:
    """Bytes for the residual stream; BudgetError where not even the weights at work fit."""
    budget = ram_budget or int(DEFAULT_SHARE * available_memory())
    least = working_bytes(config, context) + _sums_bytes(config)
    if budget < least:
        raise BudgetError(
            f"{file.path.name}: the weights of half a layer as f32 do not fit into"
            f" {format_size(budget)}: allow at least --ram-budget {-(-least // 10**6)}M"
        )
    return budget - least


def _last_of_experts(config: ModelConfig) -> set[str]:
    """The matrix of each layer's experts that runs last: one for each count of tokens."""
    kind = MODEL_TENSOR.FFN_DOWN_EXP
    return {name for name, tensor in config.tensors.items() if tensor.kind is kind}


def _sums_bytes(config: ModelConfig) -> int:
    per_layer = (
        3 * config.n_embd
        + layer.attention.attended_width
        + (part.n_expert * (config.n_embd + part.n_ff) if isinstance(part, Experts) else part.n_ff)
        for layer in config.layers
        for part in (layer.feed_forward,)
    )
    return 8 * sum(per_layer)


def _collect(forward: Forward, config: ModelConfig, progress: Progress | None) -> dict[str, Entry]:
    entries: dict[str, Entry] = {}
    n_layers, done = len(config.layers), 0

    def tick(n_tokens: int) -> None:
        nonlocal done
        done += n_tokens
        if progress is not None:
            progress(done, 2 * forward.n_tokens * n_layers)

    for i, layer in enumerate(config.layers):
        sums = _Sums(layer.tensors(config.n_embd, i))
        forward.run_layer(i, sums.observe, tick)
        entries |= sums.entries()
    head = _Sums(config.head.tensors(config.n_embd))
    if not config.tied_embeddings:
        forward.run_head(head.observe)
    return entries | head.entries()


class _Sums:
    """The sums of squares of one layer's inputs, and how many tokens they are of."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self._tensors = {tensor.name: tensor for tensor in tensors}
        self._sums: dict[tuple[str, ...], tuple[np.ndarray, np.ndarray]] = {}

    def observe(
        self, names: tuple[str, ...], matrix: int, tokens: np.ndarray, inputs: np.ndarray
    ) -> None:
        tensor = self._tensors[names[0]]
        if tensor.role is Role.ROUTER:
            return  # never quantised
        if names not in self._sums:
            n_matrices = tensor.shape[0] if tensor.role is Role.EXPERT else 1
            self._sums[names] = np.zeros((n_matrices, inputs.shape[1])), np.zeros(n_matrices)
        sums, counts = self._sums[names]
        sums[matrix] += np.square(inputs).sum(axis=0)
        counts[matrix] += len(inputs)

    def entries(self) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        for names, (sums, counts) in self._sums.items():
            entry = Entry(sums.astype(np.float32), counts.astype(np.float32))
            entries |= dict.fromkeys(names, entry)
        return entries
