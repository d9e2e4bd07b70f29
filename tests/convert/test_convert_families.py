"""Forms in which checkpoints of a family come: state dicts, short configurations, MTP blocks."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.converting import load_checkpoint, save_checkpoint
from helpers.tiny_tokenizer import write_tokenizer
from helpers.transformers_cases import MADE_CASES, MadeCase, make_model

from q4run.convert import convert
from q4run.convert.families import FAMILIES
from q4run.convert.source.source import open_source
from q4run.errors import Error

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


@pytest.mark.reference
@pytest.mark.parametrize("case", MADE_CASES, ids=lambda case: case.name)
def test_what_config_json_leaves_away_is_as_the_class_has_it(case, tmp_path):
    full = save(make_model(case), tmp_path / "full" / "checkpoint")
    short = tmp_path / "short" / "checkpoint"
    shutil.copytree(full, short)
    default = default_config(case).to_dict()
    path = short / "config.json"
    told = json.loads(path.read_text())
    said = {key: value for key, value in told.items() if default.get(key) != value}
    path.write_text(json.dumps(said | {"architectures": told["architectures"]}))
    assert len(said) < len(told)
    assert converted(short) == converted(full)


@pytest.mark.reference
@pytest.mark.parametrize("case", {case.config_class: case for case in MADE_CASES}.values())
def test_sizes_that_nobody_tells_are_those_of_the_class(case):
    default = default_config(case)
    name = case.config_class.replace("TextConfig", "Config").replace("Config", "ForCausalLM")
    module = sys.modules[FAMILIES[name].__module__]
    defaults = getattr(module, "_DEFAULTS", None) or module.DEFAULTS
    rope = default.rope_parameters
    # What a model has none of may be None there.
    in_class = {key: getattr(default, key, None) or rope.get(key, 0) for key in defaults}
    assert in_class == defaults


REFUSED = [
    ("olmoe", {"clip_qkv": 8.0}, "clip_qkv is not supported"),
    ("qwen3moe", {"mlp_only_layers": [0]}, "layers without experts are not supported"),
    ("qwen2moe", {"decoder_sparse_step": 2}, "layers without experts are not supported"),
    ("qwen3moe", {"num_experts_per_tok": 7}, "num_experts_per_tok is 7, but must be at most"),
    ("ernie4_5-moe", {"use_bias": True}, "use_bias is not supported"),
    ("ernie4_5-moe", {"moe_layer_end_index": 1}, "dense layers after those with experts"),
    ("glm4moe", {"topk_group": 3}, "topk_group is 3, but must be at most n_group"),
    ("hunyuan-moe", {"moe_topk": [3, 2]}, "moe_topk differs from layer to layer"),
    ("hy_v3", {"mlp_layer_types": ["dense", "sparse", "dense"]}, "dense layers after those"),
    ("hy_v3", {"route_norm": False}, "without route_norm is not supported"),
    ("hy_v3", {"mlp_layer_types": ["dense", "sparse"]}, "mlp_layer_types is .*, but must be dense"),
    ("hy_v3", {"mlp_layer_types": ["dense", "moe", "moe"]}, "mlp_layer_types is .*, but must be"),
]


@pytest.mark.reference
@pytest.mark.parametrize(("name", "change", "message"), REFUSED)
def test_what_cannot_be_is_refused_by_name(name, change, message, tmp_path):
    checkpoint = save(make_model(case_named(name)), tmp_path)
    path = checkpoint / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(Error, match=message):
        open_source(checkpoint)


def default_config(case: MadeCase) -> Any:
    return getattr(pytest.importorskip("transformers"), case.config_class)()
