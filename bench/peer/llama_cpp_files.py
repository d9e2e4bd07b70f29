"""GGUF files for llama.cpp's quantiser, and from it: run in a Python that has llama-cpp-python."""

import json
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from q4run.bench.peer import llama_cpp_quantize
from q4run.convert.calibration.imatrix import read_imatrix
from q4run.convert.types.recipe import FILE_TYPES
from q4run.errors import Error
from q4run.gguf_file import open_gguf
from q4run.machine.cores import usable_cores


def types_of(path: Path) -> dict[str, int]:
    """The ``ggml_type`` of each matrix of a GGUF that is not f32, by its name."""
    types = {name: tensor.type for name, tensor in open_gguf(path).tensors.items()}
    return {
        name: int(kind) for name, kind in types.items() if kind != gguf.GGMLQuantizationType.F32
    }


def quantize_with_llama_cpp(
    python: str,
    source: Path,
    out: Path,
    type_name: str,
    types: dict[str, int],
    imatrix: Path | None = None,
    threads: int | None = None,
) -> float:
    """Quantises a GGUF with llama.cpp's quantiser; returns its seconds.

    ``types``: the ``ggml_type`` of each tensor by its name (`types_of`). ``imatrix`` is a GGUF as
    ``q4run imatrix`` writes it. Raises Error where llama.cpp fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        means = Path(folder) / "imatrix.npz"
        if imatrix is not None:
            np.savez(means, allow_pickle=False, **_means_of(imatrix))
        request: dict[str, Any] = {
            "source": os.fspath(source),
            "out": os.fspath(out),
            "file_type": int(FILE_TYPES[type_name]),
            "threads": threads or usable_cores(),
            "types": [(f"^{re.escape(name)}$", kind) for name, kind in types.items()],
            "imatrix": os.fspath(means) if imatrix else None,
        }
        done = subprocess.run(
            [python, llama_cpp_quantize.__file__],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        last_words = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        raise Error(
            f"llama.cpp's quantiser failed on {source}: {''.join(last_words) or 'silently'}"
        )
    if types_of(out) != types:
        raise Error(f"{out}: llama.cpp has chosen other types than it was told")
    return float(json.loads(done.stdout.splitlines()[-1])["seconds"])


def _means_of(path: Path) -> dict[str, np.ndarray]:
    """The mean squares by tensor name; 1 for the columns of matrices that were never used."""
    means = {}
    for name, entry in read_imatrix(path).entries.items():
        counts = entry.counts.reshape(-1, 1)
        means[name] = np.where(counts > 0, entry.sums / np.maximum(counts, 1), np.float32(1))
    return means
