"""How fast the kernels of a type are: from memory, out of the cache, in prompts."""

import statistics
from dataclasses import dataclass

import numpy as np

from q4run.kernels.formats import Format
from q4run.kernels.products.activations import Int8Activations, quantize_activations
from q4run.kernels.products.products import PRODUCT, input_record, matrix_record, run_products
from q4run.kernels.products.strips import ROWS, interleave
from q4run.kernels.threads.pool import Pool, ThreadPool
from q4run.machine.huge_pages import empty_bytes
from q4run.planning.fill_speed import measure_filling, some_rows
from q4run.planning.timing import median_seconds, seconds_of

_COLS = 2048
_ROWS = 4096
_DECODE_BYTES = 256 << 20  # far above the last cache of any processor of a small machine
_CACHED_BYTES = 256 << 10  # inside the second cache
_PROMPT_TOKENS = 512
_FEW_TOKENS = 4  # what a tile takes at a time
_ROUNDS = 5


@dataclass(frozen=True)
class KernelSpeed:
    """Of one type, per second, or in seconds where it says so.

    memory: bytes of weights in a decoded token's products, by all threads, from matrices far larger
    than the caches; core: the same by one thread from its own cache, which no memory can exceed;
    region_s: seconds that are lost where one product ends and threads begin another; prompt:
    operations of one thread in a prompt's products, two for each weight and token; unpack_s:
    seconds of one thread for each weight, however many tokens it multiplies; fill, fill_s and
    first_fill: as of ``Filling``.
    """

    memory: float
    core: float
    region_s: float
    prompt: float
    unpack_s: float
    fill: float
    fill_s: float
    first_fill: float


def measure_kernels(fmt: Format, pool: Pool, n_threads: int) -> KernelSpeed:
    """Takes about a second. fmt: a type of a file's tensors; what it is held as in RAM computes.

    Medians of a few rounds; the best of what takes milliseconds, which one interruption spoils.
    """
    matrices = _Matrices(fmt.in_ram)
    large = max(_ROWS, matrices.rows_of(_DECODE_BYTES))
    cached = matrices.rows_of(_CACHED_BYTES)
    with ThreadPool(1) as alone:
        matrices.multiply(alone.state, cached, 1)  # compiles, and brings the matrix into the cache
        core = min(
            seconds_of(lambda: matrices.multiply(alone.state, cached, 1, times=64))
            for _ in range(_ROUNDS)
        )
    n_products = large // _ROWS
    at_once, in_parts = [], []
    for _ in range(_ROUNDS):  # in turn: what memory gives changes
        at_once.append(seconds_of(lambda: matrices.multiply(pool, large, 1)))
        in_parts.append(seconds_of(lambda: matrices.multiply_in_parts(pool, n_products)))
    many = median_seconds(lambda: matrices.multiply(pool, _ROWS, _PROMPT_TOKENS), _ROUNDS)
    few = median_seconds(lambda: matrices.multiply(pool, _ROWS, _FEW_TOKENS, times=8), _ROUNDS) / 8
    n_weights = _ROWS * _COLS
    filling = measure_filling(fmt, lambda n_bytes: matrices.multiply_bytes(pool, n_bytes))
    return KernelSpeed(
        memory=matrices.n_bytes(large) / statistics.median(at_once),
        core=64 * matrices.n_bytes(cached) / core,
        region_s=max(0.0, min(in_parts) - min(at_once)) / n_products,
        prompt=2 * n_weights * _PROMPT_TOKENS / many / n_threads,
        unpack_s=max(0.0, few - many * _FEW_TOKENS / _PROMPT_TOKENS) * n_threads / n_weights,
        fill=filling.fill,
        fill_s=filling.fill_s,
        first_fill=filling.first_fill,
    )


class _Matrices:
    """A tall matrix of a type, whose first rows are matrices of any number of rows."""

    def __init__(self, fmt: Format) -> None:
        self._fmt = fmt
        few = some_rows(fmt, _COLS)
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

    def multiply_bytes(self, pool: Pool, n_bytes: int) -> None:
        """The product of so many bytes, or of all there are, with one token."""
        self.multiply(pool, min(self.rows_of(n_bytes), self.rows_of(self._strips.size)), 1)

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
