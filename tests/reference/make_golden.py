"""Stores what models, files and plans are: python tests/reference/make_golden.py

    python tests/reference/make_golden.py --bits FILE     also every logit's bits, on this machine
    python tests/reference/make_golden.py --check FILE    compares with them

The bits of logits may differ between processors, so that only the second form holds them.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from helpers import golden  # noqa: E402
from helpers.tiny_checkpoints import CASES, make_checkpoint  # noqa: E402

from q4run.box import MODEL  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bits", type=Path)
    parser.add_argument("--check", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        facts, logits, bits = collect(Path(name))
    if arguments.check:
        known = json.loads(arguments.check.read_text())
        wrong = [key for key in {*known, *bits} if known.get(key) != bits.get(key)]
        stored = json.loads((HERE / "golden.json").read_text())
        wrong += [
            key for key in facts if json.loads(json.dumps(facts[key])) != stored["facts"][key]
        ]
        sys.exit(f"differ: {', '.join(sorted(wrong))}" if wrong else None)
    if arguments.bits:
        arguments.bits.write_text(json.dumps(bits, indent=1))
        return
    text = json.dumps({"facts": facts, "logits": logits}, separators=(",", ":"))
    (HERE / "golden.json").write_text(text.replace('},"', '},\n"') + "\n")


def collect(folder: Path) -> tuple[dict, dict, dict]:
    """Returns the facts by file, the last logits by file and kind, and digests of all logits."""
    paths = {}
    for case in CASES:
        checkpoint = make_checkpoint(case.name, folder / case.name / "checkpoint")
        made = golden.converted(checkpoint, golden.CASE_TYPES, folder / case.name / "made")
        paths |= {f"{case.name}, {kind}": (path, case.token_ids) for kind, path in made.items()}
    ids = golden.box_ids()
    made = golden.converted(MODEL, golden.BOX_TYPES, folder / "box")
    paths |= {f"box, {kind}": (path, ids) for kind, path in made.items()}
    paths["box"] = (MODEL, ids)
    facts = {key: golden.facts_of_file(path) for key, (path, _) in paths.items()}
    facts["geometries"] = golden.geometry_facts()
    logits, bits = {}, {}
    for key, (path, ids) in paths.items():
        for kind, values in golden.logits_of(path, ids):
            bits[f"{key}, {kind}"] = golden.digest(values.tobytes())
            if kind == "f16 resident":
                logits[key] = [round(float(value), 6) for value in values[-1, : golden.N_KEPT]]
    return facts, logits, bits


if __name__ == "__main__":
    main()
