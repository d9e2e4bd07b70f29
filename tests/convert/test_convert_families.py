"""Other forms in which a family's checkpoints come: state dicts, and blocks that do not run."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.converting import load_checkpoint, save_checkpoint
from helpers.tiny_tokenizer import write_tokenizer
from helpers.transformers_cases import MADE_CASES, MadeCase, make_model

from q4run.convert import convert
from q4run.convert.source.source import open_source

# Of one case of a family: tensors that predict further tokens, as its checkpoints have them.
_BLOCK = ("eh_proj.weight", "enorm.weight", "hnorm.weight", "mlp.experts.0.up_proj.weight")
MTP = {
    "glm4moe": [f"model.layers.3.{name}" for name in _BLOCK],
    "hy_v3": [f"model.layers.3.{name}" for name in _BLOCK],
    "ernie4_5-moe": ["model.mtp_block.0.mlp.up_proj.weight", "model.mtp_emb_norm.0.weight"],
}


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    write_tokenizer("llama", folder)
    return folder


def converted(checkpoint: Path) -> bytes:
    path = checkpoint.parent / "model.gguf"
    convert(checkpoint, path, type="f32")
    return path.read_bytes()


def case_named(name: str) -> MadeCase:
    return next(case for case in MADE_CASES if case.name == name)


@pytest.mark.reference
@pytest.mark.parametrize("case", MADE_CASES, ids=lambda case: case.name)
def test_a_state_dict_gives_the_same_file(case, tmp_path):
    model = make_model(case)
    stored = save(model, tmp_path / "stored" / "checkpoint")
    raw = tmp_path / "raw" / "checkpoint"
    shutil.copytree(stored, raw)
    tensors = {name: values.numpy() for name, values in model.state_dict().items()}
    save_checkpoint(raw / "model.safetensors", tensors)
    assert converted(raw) == converted(stored)


@pytest.mark.reference
@pytest.mark.parametrize("name", MTP)
def test_blocks_that_predict_further_tokens_are_left_out_with_a_note(name, tmp_path):
    plain = save(make_model(case_named(name)), tmp_path / "plain" / "checkpoint")
    longer = tmp_path / "longer" / "checkpoint"
    shutil.copytree(plain, longer)
    tensors = load_checkpoint(plain)
    tensors |= {mtp: np.ones((2, 2), np.float32) for mtp in MTP[name]}
    save_checkpoint(longer / "model.safetensors", tensors)
    assert converted(longer) == converted(plain)
    assert not any("MTP" in note for note in open_source(plain).notes)
    (note,) = (note for note in open_source(longer).notes if "MTP" in note)
    assert note.startswith(f"{len(MTP[name])} tensors")
