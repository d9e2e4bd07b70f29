"""How fast this machine can read memory: what decoding, which reads every weight, cannot exceed.

python -m q4run.planning.memory_speed
"""

import os
import time
from concurrent.futures import ThreadPoolExecutor

import numba
import numpy as np

from q4run.machine.memory import available_memory

# Far above the last cache of any processor of a small machine.
_N_BYTES = 512 << 20
_RUNS = 20


def read_limit(threads: int) -> float:
    """Bytes per second that ``threads`` threads read together; takes about half a second.

    Each thread adds up its own share of half a gigabyte (of a quarter of free memory where that is
    less) as uint64, a loop that the compiler turns into vector loads and the hardware prefetches;
    the best of twenty passes counts. Reading several streams per thread, or prefetching by hand,
    measured no more.
    """
    n_bytes = min(_N_BYTES, max(1 << 20, available_memory() // 4))
    shares = np.array_split(np.ones(n_bytes // 8, np.uint64), threads)
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(1 + _RUNS):  # the first compiles, and starts the threads
            started = time.perf_counter()
            list(pool.map(_sum, shares))
            best = min(best, time.perf_counter() - started)
    return n_bytes / best


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _sum(values: np.ndarray) -> np.uint64:
    total = np.uint64(0)
    for i in range(values.size):  # over the values themselves, it would gather them
        total += values[i]
    return total


def main() -> None:
    for threads in range(1, (os.cpu_count() or 1) + 1):
        print(f"{threads} threads: {read_limit(threads) / 1e9:.1f} GB/s")


if __name__ == "__main__":
    main()
