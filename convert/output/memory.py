"""What a conversion may take of the machine, and whether that is enough for it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import psutil

from q4run.convert.output.stream import check_memory, least_plan
from q4run.convert.tensors import PlannedTensor
from q4run.convert.widen import BFLOAT16, largest_bfloat, transpose_columns, widen
from q4run.machine.cores import choose_threads
from q4run.machine.memory import available_memory

DEFAULT_RAM_SHARE = 4
# What a tokenizer's file takes, per byte, while it is parsed and once it is GGUF keys (measured
# on Llama 3's: 9 and 6).
TOKENIZER_PEAK, TOKENIZER_HELD = 12, 8


@dataclass(frozen=True)
class Limits:
    """``max_ram``: the most memory of the whole process, in bytes; ``n_threads`` quantise."""

    max_ram: int
    n_threads: int


def choose_limits(max_ram: int | None, threads: int | None) -> Limits:
    """Takes what is asked for, else what is held now and a quarter of what is free, and one thread
    per core. Raises ``Error`` for more threads than the machine has."""
    n_threads = choose_threads(threads)
    if max_ram is None:
        max_ram = held_memory() + available_memory() // DEFAULT_RAM_SHARE
    return Limits(max_ram, n_threads)


def held_memory() -> int:
    """The resident memory of this process, in bytes."""
    return int(psutil.Process().memory_info().rss)


def check_least_memory(
    limits: Limits, tokenizer_bytes: int, tensors: Sequence[PlannedTensor]
) -> None:
    """Raises ``BudgetError`` when ``limits`` are too little to read the tokenizer, or to write.

    Compiles the codecs first, so that the memory which that takes counts as held.
    """
    _compile_codecs(tensors)
    streaming = least_plan(tensors, limits.n_threads).n_bytes
    least = max(TOKENIZER_PEAK * tokenizer_bytes, TOKENIZER_HELD * tokenizer_bytes + streaming)
    check_memory(limits.max_ram, held_memory(), least)


def _compile_codecs(tensors: Sequence[PlannedTensor]) -> None:
    for dtype in (np.float32, np.float16, BFLOAT16):
        widen(np.zeros((1, 1), dtype))
    largest_bfloat(np.zeros((1, 1), BFLOAT16))
    for bits in (np.uint8, np.uint16, np.uint32):
        transpose_columns(np.zeros((1, 1), bits), 0, np.zeros((1, 1), bits), 0)
    for fmt in {planned.fmt.name: planned.fmt for planned in tensors}.values():
        fmt.quantize(np.zeros((1, fmt.block_size), np.float32))
    stored = [planned.tensor.stored for planned in tensors]
    for fmt in {fmt.name: fmt for fmt in stored if fmt is not None}.values():
        fmt.dequantize(np.zeros((1, fmt.type_size), np.uint8))
