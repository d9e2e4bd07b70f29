"""How fast experts reach their slots where the page cache has them, beside the computation."""

import statistics
import tempfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from q4run.disk.methods.pread import Pread
from q4run.disk.speed import N_READERS
from q4run.experts.layout import ExpertLayout, ExpertMatrix
from q4run.experts.store import ExpertStore
from q4run.kernels.formats import Format
from q4run.kernels.products.strips import ROWS
from q4run.machine.cores import usable_cores
from q4run.planning.timing import seconds_of

_COLS = 2048
_FILE_BYTES = 128 << 20  # far larger than the caches
_LARGE_BYTES, _SMALL_BYTES = 16 << 20, 2 << 20  # of an expert
_ROUNDS = 3
_BYTE = 0x21  # a small positive number in every type of float


@dataclass(frozen=True)
class Filling:
    """What the computation loses to experts that are brought from the page cache meanwhile.

    fill: bytes per second and core, read and interleaved; fill_s: seconds for each expert besides:
    asking for it, waking readers, which then hold up the computation's threads; first_fill: as
    ``fill``, into memory that was never used before, which the system must find and clear.
    """

    fill: float
    fill_s: float
    first_fill: float


def measure_filling(fmt: Format, compute: Callable[[int], None]) -> Filling:
    """Takes about half a second. fmt: of the file; compute: works on so many bytes of weights.

    As a layer does it whose expert is missing: it is requested, as much is computed as of a shared
    expert, and when it has come, it is computed too. With experts of two sizes, so that what each
    takes can be told from what its bytes take.
    """
    with tempfile.NamedTemporaryFile() as file:
        rows = some_rows(fmt, _COLS)
        piece = np.tile(rows, (max(1, (1 << 20) // rows.nbytes), 1)).data
        for _ in range(-(-_FILE_BYTES // piece.nbytes)):
            file.write(piece)
        file.flush()
        large, small = (
            _layout(Path(file.name), fmt, size) for size in (_LARGE_BYTES, _SMALL_BYTES)
        )
        large_s, first_s = _losses(large, compute)
        small_s, _ = _losses(small, compute)
    n_cores = min(N_READERS, usable_cores())
    large_bytes, small_bytes = (layout.n_bytes // layout.n_experts for layout in (large, small))
    s_per_byte = max(large_s - small_s, large_s / 2, 1e-9) / (large_bytes - small_bytes)
    return Filling(
        fill=1 / s_per_byte / n_cores,
        fill_s=max(0.0, small_s - small_bytes * s_per_byte),
        first_fill=large_bytes / max(s_per_byte * large_bytes, first_s) / n_cores,
    )


def _losses(layout: ExpertLayout, compute: Callable[[int], None]) -> tuple[float, float]:
    """Seconds for an expert in a slot that was used before, the median of some rounds, and in a
    new one."""
    n_slots = max(1, layout.n_experts // 2)
    files = Pread({matrix.path for matrix in layout.layers[0]})
    with closing(ExpertStore(layout, n_slots, files, prefetch="never")) as store:

        def stream(experts: range) -> None:
            for expert in experts:
                store.begin_pass(1)
                with store.request(0, [expert]) as request:
                    for _ in request:
                        compute(layout.slot_bytes)
                store.end_pass(1)

        def only_compute(experts: range) -> None:
            for _ in experts:
                compute(layout.slot_bytes)
                compute(layout.slot_bytes)

        def loss(experts: range) -> float:
            """Seconds that each expert takes longer than one in RAM."""
            misses = store.counters.misses
            longer = seconds_of(lambda: stream(experts)) - seconds_of(lambda: only_compute(experts))
            return max(1e-9, longer / max(1, store.counters.misses - misses))

        first = loss(range(n_slots))
        return statistics.median(loss(range(layout.n_experts)) for _ in range(_ROUNDS)), first


def _layout(path: Path, fmt: Format, expert_bytes: int) -> ExpertLayout:
    """Experts of three equal matrices, one after the other in a file."""
    n_rows = max(1, expert_bytes // 3 // (ROWS * fmt.row_bytes(_COLS))) * ROWS
    n_expert = max(2, _FILE_BYTES // (3 * n_rows * fmt.row_bytes(_COLS)))
    matrices: list[ExpertMatrix] = []
    for i in range(3):
        matrix = ExpertMatrix(path, fmt, n_expert, n_rows, _COLS, 0, 0)
        offset, slot_offset = i * n_expert * matrix.n_bytes, i * matrix.slot_bytes
        matrices.append(ExpertMatrix(path, fmt, n_expert, n_rows, _COLS, offset, slot_offset))
    gate, up, down = matrices
    n_bytes = 3 * n_expert * gate.n_bytes
    return ExpertLayout({0: (gate, up, down)}, 3 * gate.slot_bytes, n_expert, n_expert, n_bytes)


def some_rows(fmt: Format, n_cols: int) -> np.ndarray:
    """A strip's rows as the file has them, uint8 (ROWS, row bytes). What they say does not matter,
    but that no float in them is subnormal, which would be slow, or a NaN."""
    return np.full((ROWS, fmt.row_bytes(n_cols)), _BYTE, np.uint8)
