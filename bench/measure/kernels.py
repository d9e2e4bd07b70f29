"""How fast the matrix products are, type by type: decoding, prompts, and every number of threads.

    python -m q4run.bench.measure.kernels [--types q4_0 q4_k] [--threads 1 2] [--json]

Decoding multiplies matrices that together are far larger than the caches with one token, and is
bound by memory: GB/s of weights, and their share of what the machine can read (measured in the same
round). Prompts multiply with 512 tokens and are bound by arithmetic: 10^9 operations a second, two
for each weight and token. Medians over the rounds, which go through all types in turn.
"""

import argparse
import json
import statistics
import time
from typing import Any

import numpy as np

from q4run.bench.models.random_blocks import random_blocks
from q4run.kernels.formats import all_formats, find_format_named
from q4run.kernels.formats.base import Format
from q4run.kernels.products.activations import Int8Activations, quantize_activations
from q4run.kernels.products.products import PRODUCT, input_record, matrix_record, run_products
from q4run.kernels.products.strips import interleave
from q4run.kernels.threads.pool import Pool, ThreadPool
from q4run.machine.cores import usable_cores
from q4run.planning.memory_speed import read_limit

_ROWS, _COLS = 4096, 2048
_DECODE_BYTES = 256 << 20
_PROMPT_TOKENS = 512


class Case:
    """One format's matrices and the products with them."""

    def __init__(self, fmt: Format) -> None:
        rng = np.random.default_rng(0)
        n_blocks = _ROWS * _COLS // fmt.block_size
        raw = random_blocks(fmt.name, n_blocks, _COLS**-0.5, rng).reshape(_ROWS, -1)
        strips = np.empty_like(raw)
        interleave(fmt, raw, strips)
        self.fmt = fmt
        self.n_bytes = raw.nbytes
        self._matrices = [strips.copy() for _ in range(max(1, _DECODE_BYTES // raw.nbytes))]
        self._x = rng.standard_normal((_PROMPT_TOKENS, _COLS), dtype=np.float32)
        self._int8 = quantize_activations(self._x)
        self._out = np.empty((_PROMPT_TOKENS, _ROWS), np.float32)
        self.time_prompt(ThreadPool(1).state)  # compiles

    def time_decode(self, pool: Pool) -> float:
        """GB of weights per second."""
        products = [self._product(strips, 1) for strips in self._matrices]
        started = time.perf_counter()
        for product in products:
            run_products(pool, product)
        return len(products) * self.n_bytes / (time.perf_counter() - started) / 1e9

    def time_prompt(self, pool: Pool) -> float:
        """10^9 operations per second."""
        product = self._product(self._matrices[0], _PROMPT_TOKENS)
        started = time.perf_counter()
        run_products(pool, product)
        operations = 2 * _ROWS * _COLS * _PROMPT_TOKENS
        return operations / (time.perf_counter() - started) / 1e9

    def _product(self, strips: np.ndarray, n_tokens: int) -> np.ndarray:
        int8 = Int8Activations(*(array[:n_tokens] for array in self._int8))
        product = np.zeros(1, PRODUCT)
        product[0]["matrix"] = matrix_record(self.fmt, strips.ctypes.data, _ROWS, _COLS)
        product[0]["input"] = input_record(self._x[:n_tokens], int8)
        product[0]["out"] = self._out.ctypes.data
        return product


def measure(types: list[str], threads: list[int], rounds: int) -> list[dict[str, Any]]:
    """One record for each type and number of threads."""
    formats = [fmt for name in types if (fmt := find_format_named(name))]
    cases = [Case(fmt) for fmt in formats]
    figures: dict[tuple[str, int], list[tuple[float, float, float]]] = {}
    for _ in range(rounds):
        for n_threads in threads:
            limit = read_limit(n_threads) / 1e9
            with ThreadPool(n_threads) as pool:
                for case in cases:
                    decode, prompt = case.time_decode(pool.state), case.time_prompt(pool.state)
                    key = (case.fmt.name, n_threads)
                    figures.setdefault(key, []).append((decode, decode / limit, prompt))
    return [
        {
            "type": name,
            "threads": n_threads,
            "decode_gb_s": statistics.median(run[0] for run in runs),
            "read_limit_ratio": statistics.median(run[1] for run in runs),
            "prompt_gop_s": statistics.median(run[2] for run in runs),
        }
        for (name, n_threads), runs in figures.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = sorted(fmt.name for fmt in all_formats())
    parser.add_argument("--types", nargs="+", choices=names, default=names, metavar="TYPE")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, usable_cores()])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    records = measure(arguments.types, sorted(set(arguments.threads)), arguments.rounds)
    if arguments.json:
        print(json.dumps(records, indent=2))
        return
    print("type     threads   decode GB/s   of the read limit   prompt GOP/s")
    for record in sorted(records, key=lambda record: (record["type"], record["threads"])):
        print(
            f"{record['type']:8} {record['threads']:7} {record['decode_gb_s']:13.1f}"
            f" {100 * record['read_limit_ratio']:17.0f} % {record['prompt_gop_s']:14.0f}"
        )


if __name__ == "__main__":
    main()
