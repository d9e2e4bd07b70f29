"""How well and how fast weights are quantised, type by type, beside llama.cpp's quantiser.

    python -m q4run.bench.measure.quantizers [--types q4_0 q4_k] [--rounds 3] [--json]

Rows of independent values, normally distributed or with heavy tails (Student's t, 4 degrees of
freedom), each without an importance and with one (log-normal, sigma 1.5: columns differ as the
inputs of real layers do). The error is the root of the weighted squared error's share of the
weighted squares. Speeds are millions of values a second of one thread's processor time, the
fastest of the rounds. llama.cpp's quantiser is called in the library of llama-cpp-python, with the
same values and importance, where that is installed; else gguf's stands in, where it has the type.
"""

import argparse
import ctypes
import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from rich import box
from rich.table import Table

from q4run.bench.figures.arguments import count
from q4run.bench.figures.tables import console, number, over
from q4run.kernels.formats import all_formats, find_format_named
from q4run.kernels.formats.base import Format

_ROWS, _COLS = 512, 4096

Quantizer = Callable[[Format, np.ndarray, np.ndarray | None], np.ndarray]


def quantize_ours(fmt: Format, values: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    return fmt.quantize(values, importance)


def quantize_gguf(fmt: Format, values: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
    """gguf's quantiser, which knows no importance; NotImplementedError for most types."""
    raw: np.ndarray = gguf.quants.quantize(values, fmt.ggml_type)
    return raw.view(np.uint8)


def find_peer() -> tuple[str, Quantizer]:
    """llama.cpp's quantiser where llama-cpp-python is installed, else gguf's; and its name."""
    spec = importlib.util.find_spec("llama_cpp")
    folder = Path(spec.origin).parent / "lib" if spec and spec.origin else Path()
    libraries = sorted(folder.glob("*ggml-base*"))
    if not libraries:
        return "gguf", quantize_gguf
    chunk = ctypes.CDLL(str(libraries[0])).ggml_quantize_chunk
    pointer, long = ctypes.c_void_p, ctypes.c_int64
    chunk.argtypes = [ctypes.c_int, pointer, pointer, long, long, long, pointer]
    chunk.restype = ctypes.c_size_t

    def quantize(fmt: Format, values: np.ndarray, importance: np.ndarray | None) -> np.ndarray:
        n_rows, n_cols = values.shape
        raw = np.empty((n_rows, fmt.row_bytes(n_cols)), np.uint8)
        weights = importance.ctypes.data if importance is not None else None
        target = raw.ctypes.data
        chunk(fmt.ggml_type.value, values.ctypes.data, target, 0, n_rows, n_cols, weights)
        return raw

    return "llama.cpp", quantize


def error_of(
    fmt: Format, raw: np.ndarray, values: np.ndarray, importance: np.ndarray | None
) -> float:
    """The root of the weighted squared error's share of the weighted squares."""
    weights = 1.0 if importance is None else importance.astype(np.float64)
    off = fmt.dequantize(raw).astype(np.float64) - values
    squares: float = np.sum(weights * off**2) / np.sum(weights * values.astype(np.float64) ** 2)
    return float(squares**0.5)


def measure(types: list[str], rounds: int) -> list[dict[str, Any]]:
    """One record for each type, kind of values, and with and without an importance."""
    rng = np.random.default_rng(0)
    kinds = {
        "normal": rng.standard_normal((_ROWS, _COLS), dtype=np.float32),
        "heavy tails": rng.standard_t(4, (_ROWS, _COLS)).astype(np.float32),
    }
    importance = rng.lognormal(0, 1.5, _COLS).astype(np.float32)
    peer_name, peer = find_peer()
    records = []
    for fmt in filter(None, map(find_format_named, types)):
        fmt.quantize(np.zeros((1, fmt.block_size), np.float32))  # compiles
        for kind, values in kinds.items():
            for weights in (None, importance):
                ours = _measure_one(quantize_ours, fmt, values, weights, rounds)
                theirs = _measure_one(peer, fmt, values, weights, rounds)
                records.append(
                    {
                        "type": fmt.name,
                        "values": kind,
                        "importance": weights is not None,
                        "error": ours["error"],
                        "values_s": ours["values_s"],
                        "peer": peer_name,
                        "peer_error": theirs["error"],
                        "peer_values_s": theirs["values_s"],
                    }
                )
    return records


def _measure_one(
    quantize: Quantizer,
    fmt: Format,
    values: np.ndarray,
    importance: np.ndarray | None,
    rounds: int,
) -> dict[str, float | None]:
    least = float("inf")
    try:
        for _ in range(rounds):
            started = time.thread_time()
            raw = quantize(fmt, values, importance)
            least = min(least, time.thread_time() - started)
    except NotImplementedError:
        return {"error": None, "values_s": None}
    return {"error": error_of(fmt, raw, values, importance), "values_s": values.size / least}


def print_table(records: list[dict[str, Any]]) -> None:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("type")
    table.add_column("values")
    peer = records[0]["peer"] if records else ""
    for heading in ("error", peer, "ratio", "M values/s", peer, "ratio"):
        table.add_column(heading, justify="right", no_wrap=True)
    for record in records:
        error, peer_error = record["error"], record["peer_error"]
        speed, peer_speed = record["values_s"], record["peer_values_s"]
        ratio, faster = over(error, peer_error), over(speed, peer_speed)
        table.add_row(
            record["type"],
            record["values"] + (", importance" if record["importance"] else ""),
            f"{error:.5f}",
            f"{peer_error:.5f}" if peer_error is not None else "",
            f"{ratio:.3f}" if ratio is not None else "",
            number(speed / 1e6),
            number(peer_speed / 1e6) if peer_speed is not None else "",
            number(faster) if faster is not None else "",
        )
    console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = sorted(fmt.name for fmt in all_formats() if fmt.can_quantize and fmt.int8_activations)
    parser.add_argument("--types", nargs="+", choices=names, default=names, metavar="TYPE")
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    records = measure(arguments.types, arguments.rounds)
    if arguments.json:
        print(json.dumps(records, indent=2))
    else:
        print_table(records)


if __name__ == "__main__":
    main()
