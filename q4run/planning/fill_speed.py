"""How fast experts reach their slots where the page cache has them, beside the computation."""

import math
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from threading import local

import numpy as np

from q4run.cores import usable_cores
from q4run.experts.filling import N_READERS, PIECE_BYTES
from q4run.experts.readers import Fill, Readers
from q4run.huge_pages import empty_bytes
from q4run.kernels.formats import Format
from q4run.kernels.strips import ROWS, to_strips
from q4run.read_at import read_at

_COLS = 2048
# Experts of two sizes, in pieces; together far larger than the caches.
_SMALL, _LARGE = 2, 16
_N_SMALL, _N_LARGE = 32, 8
_ROUNDS = 3
_BYTE = 0x21  # a small positive number in every type of float


@dataclass(frozen=True)
class Filling:
    """What the computation loses to experts that are brought from the page cache meanwhile.

    fill: bytes per second and core, read and interleaved; fill_s: seconds for each expert besides:
    readers are woken, and hold up the computation's threads; first_fill: as ``fill``, into memory
    that was never used before, which the system must find and clear.
    """

    fill: float
    fill_s: float
    first_fill: float


def measure_filling(fmt: Format, compute: Callable[[int], None]) -> Filling:
    """Takes about half a second. fmt: of the file; compute: works on so many bytes of weights.

    As a layer does it, whose expert is missing: the reads leave, as much is computed as of a
    shared expert, the reads are waited for, and the expert is computed.
    """
    few = some_rows(fmt, _COLS)
    n_rows = max(ROWS, PIECE_BYTES // few.nbytes * ROWS)
    piece = np.tile(few, (n_rows // ROWS, 1))
    in_ram = (n_rows, fmt.in_ram.row_bytes(_COLS))
    n_pieces = max(_SMALL * _N_SMALL, _LARGE * _N_LARGE)
    slots = empty_bytes(n_pieces * math.prod(in_ram)).reshape(n_pieces, *in_ram)
    buffers = local()
    with tempfile.TemporaryFile() as file:
        for _ in range(n_pieces):
            file.write(piece.data)
        file.flush()

        def fill(i: int) -> int:
            if not hasattr(buffers, "rows"):
                buffers.rows = np.empty_like(piece)
            read_at(file.fileno(), buffers.rows.data.cast("B"), i * piece.nbytes)
            to_strips(fmt, buffers.rows, slots[i])
            return piece.nbytes

        readers = Readers(N_READERS)

        def run(size: int, n: int, *, fills: bool) -> float:
            """Seconds for each of ``n`` layers whose experts have ``size`` pieces."""
            started = time.perf_counter()
            for layer in range(n):
                reads = [partial(fill, layer * size + i) for i in range(size * fills)]
                readers.submit(Fill((layer, 0), len(reads), urgent=True), reads)
                compute(size * math.prod(in_ram))
                for _ in reads:
                    readers.arrived.get()
                compute(size * math.prod(in_ram))
            return (time.perf_counter() - started) / n

        def loss(size: int, n: int) -> float:
            return run(size, n, fills=True) - run(size, n, fills=False)

        try:
            first = loss(_LARGE, _N_LARGE)
            rounds = [(loss(_LARGE, _N_LARGE), loss(_SMALL, _N_SMALL)) for _ in range(_ROUNDS)]
        finally:
            readers.close()
    large, small = (max(1e-9, statistics.median(column)) for column in zip(*rounds, strict=True))
    n_cores = min(N_READERS, usable_cores())
    s_per_byte = max(large - small, large / 2) / ((_LARGE - _SMALL) * piece.nbytes)
    return Filling(
        fill=1 / s_per_byte / n_cores,
        fill_s=max(0.0, small - _SMALL * piece.nbytes * s_per_byte),
        first_fill=min(1 / s_per_byte, _LARGE * piece.nbytes / max(first, 1e-9)) / n_cores,
    )


def some_rows(fmt: Format, n_cols: int) -> np.ndarray:
    """A strip's rows as the file has them, uint8 (ROWS, row bytes). What they say does not matter,
    but that no float in them is subnormal, which would be slow, or a NaN."""
    return np.full((ROWS, fmt.row_bytes(n_cols)), _BYTE, np.uint8)
