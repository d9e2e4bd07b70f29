"""The tensors' bytes, block by block within a budget: read ahead, widened, checked, quantised."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from q4run.convert.layout import PlannedTensor, padded
from q4run.convert.tensors import BAND_BYTES
from q4run.errors import BudgetError, Error, FormatError
from q4run.memory import format_size

# What a value takes while it is quantised: itself as f32, its code and the codec's temporaries.
QUANTIZE_BYTES_PER_VALUE = 16
# One run of rows is read while the one before it is quantised, each of at most 4 bytes a value.
READ_BYTES_PER_VALUE = 2 * 4
LARGEST_BLOCK = 4 * 2**20
SMALLEST_BLOCK = 64 * 2**10
LARGEST_READ = 128 * 2**20
# A matrix that is stored transposed is read whole once for each of its runs: not more than this.
MAX_RUNS = 16
# Allocators and libraries keep some memory beyond what is asked of them.
RESERVE_BYTES = 32 * 2**20
LARGEST_F16 = 65504.0


@dataclass(frozen=True)
class BlockPlan:
    """How many values are quantised at once, and how many of a transposed matrix read at once."""

    block_values: int
    read_values: int

    @property
    def n_bytes(self) -> int:
        """The memory that takes."""
        read = max(self.block_values, self.read_values)
        return (
            self.block_values * QUANTIZE_BYTES_PER_VALUE
            + read * READ_BYTES_PER_VALUE
            + BAND_BYTES
            + RESERVE_BYTES
        )


def least_plan(tensors: Sequence[PlannedTensor]) -> BlockPlan:
    """The smallest blocks that work."""
    longest_row = max(planned.tensor.n_cols for planned in tensors)
    least_read = max(
        -(-tensor.n_rows // MAX_RUNS) * tensor.n_cols if tensor.whole else 0
        for tensor in (planned.tensor for planned in tensors)
    )
    return BlockPlan(max(SMALLEST_BLOCK, longest_row), least_read)


def check_memory(max_ram: int, least: int) -> None:
    """Raises ``BudgetError`` when ``max_ram`` is below ``least`` bytes."""
    if max_ram < least:
        raise BudgetError(
            f"{format_size(max_ram)} of memory is too little for this conversion: "
            f"the least that works is --max-ram {-(-least // 10**6)}M"
        )


def plan_blocks(tensors: Sequence[PlannedTensor], max_ram: int, held: int) -> BlockPlan:
    """The largest sensible blocks with which a process that holds ``held`` stays below ``max_ram``.

    Raises ``BudgetError``, with the least that works, when that leaves too little.
    """
    plan = least_plan(tensors)
    check_memory(max_ram, held + plan.n_bytes)
    matrices = [
        tensor.n_rows * tensor.n_cols
        for tensor in (planned.tensor for planned in tensors)
        if tensor.whole
    ]
    read = max(plan.read_values, min(LARGEST_READ, max(matrices, default=0)))
    # Larger reads first: they save reading a transposed matrix again; then larger blocks.
    plan = _grown(plan, BlockPlan(plan.block_values, read), max_ram - held)
    block = max(plan.block_values, LARGEST_BLOCK)
    return _grown(plan, BlockPlan(block, plan.read_values), max_ram - held)


def _grown(plan: BlockPlan, larger: BlockPlan, room: int) -> BlockPlan:
    """The largest plan between the two, by halves of the way, that fits into ``room`` bytes."""
    for _ in range(16):
        if larger.n_bytes <= room:
            return larger
        larger = BlockPlan(
            (plan.block_values + larger.block_values) // 2,
            (plan.read_values + larger.read_values) // 2,
        )
    return plan


@dataclass(frozen=True)
class _Run:
    """Rows ``start`` to ``stop`` of one matrix of a tensor."""

    planned: PlannedTensor
    matrix: int
    start: int
    stop: int

    def read(self) -> np.ndarray:
        return self.planned.tensor.read(self.matrix, self.start, self.stop)

    @property
    def is_last(self) -> bool:
        tensor = self.planned.tensor
        return self.matrix == tensor.n_matrices - 1 and self.stop == tensor.n_rows


def stream_tensors(
    tensors: Sequence[PlannedTensor], plan: BlockPlan
) -> Iterator[memoryview | bytes]:
    """All bytes of the tensors in order, each padded to the alignment.

    Raises ``FormatError`` for values that are not finite, ``Error`` for values a type cannot hold.
    """
    for run, rows in _read_ahead(_runs(tensors, plan)):
        step = max(1, plan.block_values // rows.shape[1])
        for start in range(0, len(rows), step):
            values = rows[start : start + step].astype(np.float32)
            _check_values(values, run.planned)
            yield run.planned.fmt.quantize(values).reshape(-1).data
        n_bytes = run.planned.n_bytes
        if run.is_last and padded(n_bytes) > n_bytes:
            yield bytes(padded(n_bytes) - n_bytes)


def _runs(tensors: Sequence[PlannedTensor], plan: BlockPlan) -> Iterator[_Run]:
    for planned in tensors:
        tensor = planned.tensor
        n_values = plan.read_values if tensor.whole else plan.block_values
        step = max(1, n_values // tensor.n_cols)
        for matrix in range(tensor.n_matrices):
            for start in range(0, tensor.n_rows, step):
                yield _Run(planned, matrix, start, min(start + step, tensor.n_rows))


def _read_ahead(runs: Iterable[_Run]) -> Iterator[tuple[_Run, np.ndarray]]:
    """Each run with its rows; the next one is read in a thread while the caller works on one."""
    with ThreadPoolExecutor(1, thread_name_prefix="read-ahead") as reader:
        previous = None
        for run in runs:
            rows = reader.submit(run.read)
            if previous is not None:
                yield previous[0], previous[1].result()
            previous = run, rows
        if previous is not None:
            yield previous[0], previous[1].result()


def _check_values(values: np.ndarray, planned: PlannedTensor) -> None:
    low, high = float(values.min()), float(values.max())
    name, fmt = planned.tensor.name, planned.fmt.name
    if not (np.isfinite(low) and np.isfinite(high)):
        raise FormatError(
            f"the checkpoint's values for {name} are not all finite: it is damaged or was saved "
            "from a training run that failed"
        )
    if max(-low, high) > LARGEST_F16 and fmt not in ("f32", "bf16"):
        raise Error(f"{name} holds values too large for {fmt}: choose bf16 or f32")
