"""Makes quantizers.json: how far llama.cpp's quantiser is off, by type and kind of weights.

    python tests/reference/make_quantizers.py

Needs llama-cpp-python (the [bench] extra). For each kind of tests/made_weights.py two numbers: the
mean of the rows' relative squared errors, without an importance and with one.
"""

import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from helpers.made_weights import (  # noqa: E402
    importance_of_columns,
    relative_errors,
    weights_of_many_kinds,
)

from q4run.bench.measure.quantizers import find_peer  # noqa: E402
from q4run.kernels.formats import all_formats  # noqa: E402


def main() -> None:
    name, quantize = find_peer()
    if name != "llama.cpp":
        sys.exit("llama-cpp-python is not installed")
    importance = importance_of_columns(256)
    errors: dict[str, dict[str, list[float]]] = {}
    for fmt in sorted(all_formats(), key=lambda fmt: fmt.name):
        if not fmt.int8_activations:
            continue
        errors[fmt.name] = {
            kind: [
                float(
                    relative_errors(
                        values, fmt.dequantize(quantize(fmt, values, weights)), weights
                    ).mean()
                )
                for weights in (None, importance)
            ]
            for kind, values in weights_of_many_kinds().items()
        }
    (HERE / "quantizers.json").write_text(json.dumps(errors, indent=1) + "\n")


if __name__ == "__main__":
    main()
