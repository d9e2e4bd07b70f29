"""llama.cpp's own quantiser, for ``q4run.bench``: a request in, seconds out, both JSON.

Run as a script, by a Python that need have nothing but llama-cpp-python. The request names the
``source`` and the ``out`` GGUF, the ``file_type`` (a ``llama_ftype``), the ``threads``, ``types``
(pairs of a tensor name's pattern and a ``ggml_type``, which go before the file type's own choice)
and ``imatrix``, a .npz with the mean square of every column of every matrix by tensor name, or
null.
"""

import ctypes
import importlib
import json
import sys
import time
from typing import Any


def quantize(request: dict[str, Any]) -> float:
    """Writes the output; returns the seconds that took. SystemExit where llama.cpp fails."""
    library = importlib.import_module("llama_cpp")
    parameters = library.llama_model_quantize_default_params()
    parameters.ftype = request["file_type"]
    parameters.nthread = request["threads"]
    if request["types"]:
        overrides = (library.llama_model_tensor_override * (len(request["types"]) + 1))()
        for entry, (pattern, ggml_type) in zip(overrides, request["types"], strict=False):
            entry.pattern, entry.type = pattern.encode(), ggml_type
        parameters.tt_overrides = overrides
    if request["imatrix"]:
        parameters.imatrix = imatrix_entries(library, request["imatrix"])
    started = time.perf_counter()
    status = library.llama_model_quantize(
        request["source"].encode(), request["out"].encode(), ctypes.byref(parameters)
    )
    if status:
        raise SystemExit(f"llama.cpp could not quantise {request['source']}: status {status}")
    return time.perf_counter() - started


def imatrix_entries(library: Any, path: str) -> Any:
    """A C array of the tensors' mean squares, ended by an entry without a name."""
    stored = importlib.import_module("numpy").load(path)
    entries = (library.llama_model_imatrix_data * (len(stored.files) + 1))()
    for entry, name in zip(entries, stored.files, strict=False):
        values = stored[name].astype("float32").ravel()
        kept = (ctypes.c_float * values.size).from_buffer_copy(values.tobytes())
        entry.name = name.encode()
        entry.data, entry.size = kept, values.size
    return entries


if __name__ == "__main__":
    print(json.dumps({"seconds": quantize(json.load(sys.stdin))}))
