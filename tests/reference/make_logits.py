"""Makes logits.npz: what transformers computes for every case of `tiny_checkpoints`.

    python tests/reference/make_logits.py --out tests/reference/logits.npz

Needs torch and transformers (the [reference] extra). Before anything is stored, each case must
agree with the float64 forward pass of `numpy_forward`, choose its experts clearly, and change when
a feature under test is switched off, so that a vector cannot pass for want of that feature.

logits.npz holds, per case, float32 logits (tokens, vocab) under the case's name, and under `about`
a JSON text: the versions used and for each case a fingerprint of its checkpoint.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from helpers.tiny_checkpoints import CASES, Case, fingerprint, make_checkpoint  # noqa: E402
from reference import numpy_forward, transformers_forward  # noqa: E402

Logits = np.ndarray[Any, np.dtype[np.float32]]

# float32 against float64, relative to the largest logit; 1e-6 to 3e-6 were measured.
TOLERANCE = 1e-5
# The least distance between a chosen expert's router logit and the runner-up's.
LEAST_GAP = 5e-3
# A switched-off feature must change the logits by more than this, relative to the largest.
LEAST_EFFECT = 1e-2


def main() -> None:
    """Parses the command line, makes and checks every case, writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "logits.npz", metavar="FILE")
    parser.add_argument("--case", action="append", help="check this case only; nothing is written")
    args = parser.parse_args()

    stored: dict[str, Any] = {}
    about: dict[str, Any] = {"versions": transformers_forward.versions(), "cases": {}}
    for case in CASES:
        if args.case and case.name not in args.case:
            continue
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = make_checkpoint(case.name, Path(folder))
            stored[case.name], about["cases"][case.name] = check_case(case, checkpoint)
    if not args.case:
        np.savez_compressed(args.out, about=np.array(json.dumps(about)), **stored)
        print(f"{args.out}: {args.out.stat().st_size} bytes")


def check_case(case: Case, checkpoint: Path) -> tuple[Logits, dict[str, Any]]:
    """The logits of a case and the facts to store; raises `AssertionError` when they are unfit."""
    logits = transformers_forward.logits(
        transformers_forward.load_model(checkpoint), case.token_ids
    )
    exact = numpy_forward.forward(*numpy_forward.load_checkpoint(checkpoint), case.token_ids)
    error = relative_difference(logits, exact.logits)
    assert error < TOLERANCE, f"{case.name}: transformers and float64 numpy differ by {error:.1e}"
    gap = exact.router_gap
    assert gap > LEAST_GAP, f"{case.name}: a router gap of {gap:.1e}; choose another seed"
    effects = {
        name: check_switch(name, case, checkpoint, logits, changes, first_row)
        for name, changes, first_row in switches(case)
    }
    told = "  ".join(f"{name} {effect:.2f}" for name, effect in effects.items())
    print(f"{case.name:24} error {error:.1e}  router gap {gap:.4f}  effects: {told or 'none'}")
    return logits, {"fingerprint": fingerprint(checkpoint, case.token_ids)}


def switches(case: Case) -> list[tuple[str, dict[str, Any], int]]:
    """Features to switch: name, change of the configuration, first token the change may touch."""
    config = case.text_config
    found: list[tuple[str, dict[str, Any], int]] = []
    if "rope_scaling" in config:
        plain = {"rope_type": "default", "rope_theta": config["rope_theta"]}
        found.append(("rope scaling", {"rope_parameters": plain}, 1))
    if case.family == "llama4":
        n_layer = config["num_hidden_layers"]
        full = "layer_types" in config
        other = "chunked_attention" if full else "full_attention"
        chunk_size = config["attention_chunk_size"]
        found.append(("chunks", {"layer_types": [other] * n_layer}, chunk_size))
        tuned = {"attn_temperature_tuning": not config["attn_temperature_tuning"]}
        found.append(("temperature", tuned, config["floor_scale"] - 1))
        found.append(("q/k norm", {"use_qk_norm": not config["use_qk_norm"]}, 1))
    return found


def check_switch(
    name: str, case: Case, checkpoint: Path, logits: Logits, changes: dict[str, Any], first_row: int
) -> float:
    """How much a switch changes the logits; they must not change before `first_row`."""
    model = transformers_forward.load_model(checkpoint, **changes)
    switched = transformers_forward.logits(model, case.token_ids)
    before = relative_difference(switched[:first_row], logits[:first_row])
    assert before < TOLERANCE, f"{case.name}: {name} acts before token {first_row}: {before:.1e}"
    effect = relative_difference(switched[first_row:], logits[first_row:])
    assert effect > LEAST_EFFECT, f"{case.name}: {name} has no effect: {effect:.1e}"
    return effect


def relative_difference(actual: Any, expected: Any) -> float:
    """The largest difference over the largest expected value."""
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


if __name__ == "__main__":
    main()
