"""How fast the kernels of a type are: from memory, out of the cache, in prompts, filling slots."""

import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from q4run.cores import usable_cores
from q4run.experts.filling import N_READERS, PIECE_BYTES
from q4run.huge_pages import empty_bytes
from q4run.kernels.activations import Int8Activations, quantize_activations
from q4run.kernels.formats import Format
from q4run.kernels.products import PRODUCT, input_record, matrix_record, run_products
from q4run.kernels.strips import ROWS, interleave, to_strips
from q4run.kernels.threads.pool import Pool, ThreadPool
from q4run.read_at import read_at

_COLS = 2048
_ROWS = 4096
_DECODE_BYTES = 256 << 20  # far above the last cache of any processor of a small machine
_CACHED_BYTES = 256 << 10  # inside the second cache
_PROMPT_TOKENS = 512
_FEW_TOKENS = 4  # what a tile takes at a time
_FILL_BYTES = 64 << 20
_ROUNDS = 5
_BYTE = 0x21  # a small positive number in every type of float


@dataclass(frozen=True)
class KernelSpeed:
    """Of one type, per second, or in seconds where it says so.

    memory: bytes of weights in a decoded token's products, by all threads, from matrices far larger
    than the caches; core: the same by one thread from its own cache, which no memory can exceed;
    region_s: seconds that are lost where one product ends and threads begin another; prompt:
    operations of one thread in a prompt's products, two for each weight and token; unpack_s:
    seconds of one thread for each weight, however many tokens it multiplies; fill: bytes that one
    core brings from the page cache into slots, interleaved.
    """

    memory: float
    core: float
    region_s: float
    prompt: float
    unpack_s: float
    fill: float


def measure_kernels(fmt: Format, pool: Pool, n_threads: int) -> KernelSpeed:
    """Takes about a second. fmt: a type of a file's tensors; what it is held as in RAM computes.

    Medians of a few rounds; the best of what takes milliseconds, which one interruption spoils.
    """
    matrices = _Matrices(fmt.in_ram)
    large = max(_ROWS, matrices.rows_of(_DECODE_BYTES))
    cached = matrices.rows_of(_CACHED_BYTES)
    with ThreadPool(1) as alone:
        matrices.multiply(alone.state, cached, 1)  # compiles, and brings the matrix into the cache
        core = min(_seconds(lambda: matrices.multiply(alone.state, cached, 1, times=64)))
    n_products = large // _ROWS
    at_once = _median(lambda: matrices.multiply(pool, large, 1))
    one_by_one = _median(lambda: matrices.multiply_in_parts(pool, n_products))
    many = _median(lambda: matrices.multiply(pool, _ROWS, _PROMPT_TOKENS))
    few = _median(lambda: matrices.multiply(pool, _ROWS, _FEW_TOKENS, times=8)) / 8
    n_weights = _ROWS * _COLS
    return KernelSpeed(
        memory=matrices.n_bytes(large) / at_once,
        core=64 * matrices.n_bytes(cached) / core,
        region_s=max(0.0, one_by_one - at_once) / n_products,
        prompt=2 * n_weights * _PROMPT_TOKENS / many / n_threads,
        unpack_s=max(0.0, few - many * _FEW_TOKENS / _PROMPT_TOKENS) * n_threads / n_weights,
        fill=_fill_speed(fmt),
    )


def _median(run: Callable[[], None]) -> float:
    return statistics.median(_seconds(run))


def _seconds(run: Callable[[], None]) -> list[float]:
    """Of a few runs."""
    seconds = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - started)
    return seconds


class _Matrices:
    """A tall matrix of a type, whose first rows are matrices of any number of rows."""

    def __init__(self, fmt: Format) -> None:
        self._fmt = fmt
        few = _some_rows(fmt)
        strip = np.empty_like(few)
        interleave(fmt, few, strip)
        n_strips = max(_ROWS // ROWS, -(-_DECODE_BYTES // strip.nbytes))
        self._strips = empty_bytes(n_strips * strip.nbytes)
        self._strips.reshape(n_strips, -1)[:] = strip.reshape(-1)
        rng = np.random.default_rng(0)
        self._x = rng.standard_normal((_PROMPT_TOKENS, _COLS), np.float32)
        self._int8 = quantize_activations(self._x)
        self._out = np.empty(max(_PROMPT_TOKENS * _ROWS, n_strips * ROWS), np.float32)

    def rows_of(self, n_bytes: int) -> int:
        """Whole strips in that many bytes."""
        return n_bytes // (ROWS * self._fmt.row_bytes(_COLS)) * ROWS

    def n_bytes(self, n_rows: int) -> int:
        return n_rows * self._fmt.row_bytes(_COLS)

    def multiply(self, pool: Pool, n_rows: int, n_tokens: int, times: int = 1) -> None:
        """The product of the first rows with some tokens."""
        product = self._product(n_rows, n_tokens)
        for _ in range(times):
            run_products(pool, product)

    def multiply_in_parts(self, pool: Pool, n_products: int) -> None:
        """Products of ``_ROWS`` rows with one token, one after the other."""
        product = self._product(_ROWS, 1)
        for i in range(n_products):
            product[0]["matrix"]["weights"] = self._strips.ctypes.data + i * self.n_bytes(_ROWS)
            run_products(pool, product)

    def _product(self, n_rows: int, n_tokens: int) -> np.ndarray:
        int8 = Int8Activations(*(array[:n_tokens] for array in self._int8))
        product = np.zeros(1, PRODUCT)
        product[0]["matrix"] = matrix_record(self._fmt, self._strips.ctypes.data, n_rows, _COLS)
        product[0]["input"] = input_record(self._x[:n_tokens], int8)
        product[0]["out"] = self._out.ctypes.data
        return product


def _some_rows(fmt: Format) -> np.ndarray:
    """A strip's rows as the file has them, uint8 (ROWS, row bytes). What they say does not matter,
    but that no float in them is subnormal, which would be slow, or a NaN."""
    return np.full((ROWS, fmt.row_bytes(_COLS)), _BYTE, np.uint8)


def _fill_speed(fmt: Format) -> float:
    """Bytes per second and core, with as many readers as run beside the computation."""
    few = _some_rows(fmt)
    n_rows = max(ROWS, PIECE_BYTES // few.nbytes * ROWS)
    data = np.tile(few, (n_rows // ROWS, 1))
    in_ram = (n_rows, fmt.in_ram.row_bytes(_COLS))
    n_pieces = max(1, _FILL_BYTES // data.nbytes // N_READERS)
    with tempfile.TemporaryFile() as file, ThreadPoolExecutor(N_READERS) as readers:
        file.write(data.data)
        file.flush()

        def fill(reader: int) -> None:
            rows, target = np.empty_like(data), np.empty(in_ram, np.uint8)
            for _ in range(n_pieces):
                read_at(file.fileno(), rows.data.cast("B"), 0)
                to_strips(fmt, rows, target)

        def fill_all() -> None:
            list(readers.map(fill, range(N_READERS)))

        seconds = min(_seconds(fill_all))
    n_bytes = n_pieces * N_READERS * data.nbytes
    return n_bytes / seconds / min(N_READERS, usable_cores())
