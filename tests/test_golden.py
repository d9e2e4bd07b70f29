"""Files, plans, budgets and logits are what they were: for changes that are to change nothing.

Where one is to change something, ``python tests/reference/make_golden.py`` stores it anew.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import golden
from helpers.tiny_checkpoints import CASES, make_checkpoint

import q4run
from q4run.box import MODEL

STORED = json.loads((Path(__file__).parent / "reference" / "golden.json").read_text())


def same(facts: object) -> Any:
    return json.loads(json.dumps(facts))


def check_logits(path: Path, ids: list[int], key: str) -> None:
    with q4run.load(path, context=64) as model:
        last = model.logits(ids)[-1, : golden.N_KEPT]
    np.testing.assert_allclose(last, STORED["logits"][key], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_tiny_model(case, tmp_path):
    checkpoint = make_checkpoint(case.name, tmp_path / "checkpoint")
    made = golden.converted(checkpoint, golden.CASE_TYPES, tmp_path / "made")
    for kind, path in made.items():
        key = f"{case.name}, {kind}"
        assert same(golden.facts_of_file(path)) == STORED["facts"][key]
        check_logits(path, case.token_ids, key)


def test_the_model_in_the_box(tmp_path):
    ids = golden.box_ids()
    made = golden.converted(MODEL, golden.BOX_TYPES, tmp_path / "made")
    paths = {f"box, {kind}": path for kind, path in made.items()} | {"box": MODEL}
    for key, path in paths.items():
        assert same(golden.facts_of_file(path)) == STORED["facts"][key]
        check_logits(path, ids, key)


def test_known_shapes():
    stored = STORED["facts"]["geometries"]  # those that could be planned then
    facts = same(golden.geometry_facts())
    assert {name: facts[name] for name in stored} == stored
