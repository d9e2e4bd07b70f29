"""The tensors' bytes within a budget: read ahead in threads, quantised by as many as compute.

Rows are read in runs, a few blocks long; every block is widened, checked and quantised by one
thread. Results are given in the order of the file, so that the number of threads changes nothing.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np

from q4run.convert.blocks import Blocks
from q4run.convert.tensors import BAND_BYTES, PlannedTensor, Rows
from q4run.convert.widen import BFLOAT16, largest_bfloat, widen
from q4run.errors import BudgetError, Error, FormatError
from q4run.gguf_file.borders import padded
from q4run.sizes import format_size

Result = TypeVar("Result")

# What a value takes while it is quantised: itself as f32, its code and the codec's temporaries.
QUANTIZE_BYTES_PER_VALUE = 16
# A value that was read takes at most this.
READ_BYTES_PER_VALUE = 4
# Larger blocks are no faster: these still lie in a core's cache from one pass to the next.
LARGEST_BLOCK = 2**20
SMALLEST_BLOCK = 64 * 2**10
BLOCKS_PER_RUN = 4
# Two threads read: while one waits for the disk, the other copies or transposes.
N_READERS = 2
LARGEST_READ = 128 * 2**20
# A matrix that is stored transposed is read whole once for each of its runs: not more than this.
MAX_RUNS = 16
# Allocators and libraries keep some memory beyond what is asked of them.
RESERVE_BYTES = 32 * 2**20
LARGEST_F16 = 65504.0


@dataclass(frozen=True)
class BlockPlan:
    """How many values are quantised at once, by how many threads, and how many of a transposed
    matrix are read at once."""

    block_values: int
    read_values: int
    n_threads: int = 1

    @property
    def run_values(self) -> int:
        """How many values of a matrix that is not transposed are read at once."""
        return BLOCKS_PER_RUN * self.block_values

    @property
    def n_blocks(self) -> int:
        """How many blocks are worked on, or wait to be, or to be written."""
        return self.n_threads + 2

    @property
    def n_bytes(self) -> int:
        """The memory that takes."""
        # Those being read, the one that is cut into blocks, and those that blocks come from.
        n_runs = N_READERS + 1 + -(-self.n_blocks // BLOCKS_PER_RUN)
        n_whole_runs = N_READERS + 2
        read = max(n_runs * self.run_values, n_whole_runs * self.read_values)
        return (
            self.n_blocks * self.block_values * QUANTIZE_BYTES_PER_VALUE
            + read * READ_BYTES_PER_VALUE
            + N_READERS * BAND_BYTES
            + RESERVE_BYTES
        )


def least_plan(tensors: Sequence[PlannedTensor], n_threads: int) -> BlockPlan:
    """The smallest blocks that work."""
    longest_row = max(planned.tensor.n_cols for planned in tensors)
    least_read = max(
        -(-tensor.n_rows // MAX_RUNS) * tensor.n_cols if tensor.whole else 0
        for tensor in (planned.tensor for planned in tensors)
    )
    return BlockPlan(max(SMALLEST_BLOCK, longest_row), least_read, n_threads)


# Of a process's memory, what it may hold otherwise the next time, or a moment later.
HELD_VARIES, HELD_VARIES_BYTES = 1 / 20, 8 * 10**6


def check_memory(max_ram: int, held: int, least: int) -> None:
    """Raises ``BudgetError`` when ``max_ram`` is too little for what the process holds and
    ``least`` bytes beside it. It advises what is enough also where a bit more is held next time."""
    if max_ram < held + least:
        enough = int(held * (1 + HELD_VARIES)) + HELD_VARIES_BYTES + least
        raise BudgetError(
            f"{format_size(max_ram)} of memory is too little for this conversion: "
            f"allow it --max-ram {-(-enough // 10**6)}M"
        )


def plan_blocks(
    tensors: Sequence[PlannedTensor], max_ram: int, held: int, n_threads: int
) -> BlockPlan:
    """The largest sensible blocks with which a process that holds ``held`` stays below ``max_ram``.

    Raises ``BudgetError``, with what is enough, when that leaves too little.
    """
    plan = least_plan(tensors, n_threads)
    check_memory(max_ram, held, plan.n_bytes)
    matrices = [
        tensor.n_rows * tensor.n_cols
        for tensor in (planned.tensor for planned in tensors)
        if tensor.whole
    ]
    read = max(plan.read_values, min(LARGEST_READ, max(matrices, default=0)))
    # Larger reads first: they save reading a transposed matrix again; then larger blocks.
    plan = _grown(plan, replace(plan, read_values=read), max_ram - held)
    block = max(plan.block_values, LARGEST_BLOCK)
    return _grown(plan, replace(plan, block_values=block), max_ram - held)


def _grown(plan: BlockPlan, larger: BlockPlan, room: int) -> BlockPlan:
    """The largest plan between the two, by halves of the way, that fits into ``room`` bytes."""
    for _ in range(16):
        if larger.n_bytes <= room:
            return larger
        larger = replace(
            plan,
            block_values=(plan.block_values + larger.block_values) // 2,
            read_values=(plan.read_values + larger.read_values) // 2,
        )
    return plan


@dataclass(frozen=True)
class _Run:
    """Rows ``start`` to ``stop`` of one matrix of a tensor."""

    planned: PlannedTensor
    matrix: int
    start: int
    stop: int

    def read(self) -> "tuple[_Run, Rows]":
        return self, self.planned.tensor.read(self.matrix, self.start, self.stop)

    @property
    def is_last(self) -> bool:
        tensor = self.planned.tensor
        return self.matrix == tensor.n_matrices - 1 and self.stop == tensor.n_rows


def stream_tensors(
    tensors: Sequence[PlannedTensor], plan: BlockPlan, first_matrix: int = 0
) -> Iterator[memoryview | bytes]:
    """All bytes of the tensors in order, each padded to the alignment.

    The first tensor's begin with its matrix ``first_matrix``.
    Raises ``FormatError`` for values that are not finite, ``Error`` for values a type cannot hold.
    Whoever stops before the end closes the generator, which then waits for its threads.
    """
    with _threads(N_READERS, "read-ahead") as readers, _threads(plan.n_threads, "quantise") as pool:
        runs = _in_order(
            readers, (run.read for run in _runs(tensors, plan, first_matrix)), N_READERS
        )
        yield from _in_order(pool, _blocks(runs, plan), plan.n_blocks)


def quantize_rows(planned: PlannedTensor, matrix: int, values: np.ndarray) -> np.ndarray:
    """Rows of one matrix of a tensor, float32 (n, columns), as their bytes in the file, uint8."""
    if planned.calibration is not None:
        return planned.calibration.quantize_rows(planned.tensor, planned.fmt, matrix, values)
    importance = None if planned.importance is None else planned.importance[matrix]
    return planned.fmt.quantize(values, importance)


def _runs(tensors: Sequence[PlannedTensor], plan: BlockPlan, first_matrix: int) -> Iterator[_Run]:
    for index, planned in enumerate(tensors):
        tensor = planned.tensor
        n_values = plan.read_values if tensor.whole else plan.run_values
        step = max(1, n_values // tensor.n_cols)
        for matrix in range(first_matrix if index == 0 else 0, tensor.n_matrices):
            for start in range(0, tensor.n_rows, step):
                yield _Run(planned, matrix, start, min(start + step, tensor.n_rows))


def _blocks(
    runs: Iterable[tuple[_Run, Rows]], plan: BlockPlan
) -> Iterator[Callable[[], memoryview | bytes]]:
    """What makes the bytes of each block of the runs, and of the padding between tensors."""
    for run, rows in runs:
        step = max(1, plan.block_values // run.planned.tensor.n_cols)
        for start in range(0, len(rows), step):
            yield partial(_convert, run.planned, run.matrix, rows[start : start + step])
        n_bytes = run.planned.n_bytes
        if run.is_last and padded(n_bytes) > n_bytes:
            yield partial(bytes, padded(n_bytes) - n_bytes)


def _convert(planned: PlannedTensor, matrix: int, rows: Rows) -> memoryview:
    if isinstance(rows, Blocks):
        if rows.fmt is planned.fmt:
            return np.ascontiguousarray(rows.raw).reshape(-1).data
        rows = rows.dequantize()
    if rows.dtype == BFLOAT16 and planned.fmt.name == "bf16":
        _check_largest(largest_bfloat(rows), planned)
        return np.ascontiguousarray(rows).view(np.uint8).reshape(-1).data
    values, largest = widen(rows)
    _check_largest(largest, planned)
    return quantize_rows(planned, matrix, values).reshape(-1).data


@contextmanager
def _threads(count: int, name: str) -> Iterator[ThreadPoolExecutor]:
    """Threads that have ended when the block ends, however it does; what waits is not begun."""
    pool = ThreadPoolExecutor(count, thread_name_prefix=name)
    try:
        yield pool
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _in_order(
    pool: ThreadPoolExecutor, tasks: Iterable[Callable[[], Result]], ahead: int
) -> Iterator[Result]:
    """The tasks' results in their order, while up to ``ahead`` tasks are under way or done."""
    under_way: deque[Future[Result]] = deque()
    for task in tasks:
        if len(under_way) == ahead:
            yield under_way.popleft().result()
        under_way.append(pool.submit(task))
    while under_way:
        yield under_way.popleft().result()


def _check_largest(largest: float, planned: PlannedTensor) -> None:
    """``largest``: the largest magnitude of some values of the tensor."""
    name, fmt = planned.tensor.name, planned.fmt.name
    if not np.isfinite(largest):
        raise FormatError(
            f"the checkpoint's values for {name} are not all finite: it is damaged or was saved "
            "from a training run that failed"
        )
    if largest > LARGEST_F16 and fmt not in ("f32", "bf16"):
        raise Error(f"{name} holds values too large for {fmt}: choose bf16 or f32")
