"""Checkpoints as other programs save them: other names for the same tensors, MLX's stacks."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.converting import edit_json, load_checkpoint, read_gguf, save_checkpoint
from helpers.tiny_checkpoints import make_checkpoint

from q4run.convert import convert
from q4run.errors import FormatError, UnsupportedError

Rename = Callable[[str], str]


def renamed(folder: Path, rename: Rename) -> None:
    """Gives the tensors of a checkpoint other names."""
    tensors = {rename(name): array for name, array in load_checkpoint(folder).items()}
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    save_checkpoint(folder / "model.safetensors", tensors)


def same_values(made: Path, expected: Path) -> None:
    tensors, others = read_gguf(made)[1], read_gguf(expected)[1]
    assert tensors.keys() == others.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(tensor.data, others[name].data, err_msg=name)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.removeprefix("model."),
        lambda name: f"language_model.{name}",
        lambda name: f"model.language_model.{name}",
        lambda name: re.sub(r"^model\.", "model.language_model.", name),
    ],
    ids=["prefixless", "language_model", "model.language_model.model", "model.language_model"],
)
@pytest.mark.parametrize("case", ["llama_gqa", "mixtral_quantisable", "llama4_quantisable"])
def test_prefixes(case, rename, tmp_path):
    folder = make_checkpoint(case, tmp_path / "model")
    convert(folder, tmp_path / "expected.gguf", type="q8_0")
    renamed(folder, rename)
    convert(folder, tmp_path / "made.gguf", type="q8_0")
    same_values(tmp_path / "made.gguf", tmp_path / "expected.gguf")


def test_two_tensors_of_one_plain_name_are_refused(tmp_path):
    folder = make_checkpoint("llama_gqa", tmp_path / "model")
    tensors = load_checkpoint(folder)
    tensors["norm.weight"] = tensors["model.norm.weight"]
    save_checkpoint(folder / "model.safetensors", tensors)
    with pytest.raises(FormatError, match=r"model\.norm\.weight"):
        convert(folder, tmp_path / "made.gguf", type="q8_0")


def stack_mixtral(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As mlx-lm's ``sanitize`` does it for Mixtral."""
    names = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
    made, stacks = {}, {}
    for name, array in tensors.items():
        match = re.fullmatch(r"(.*block_sparse_moe)\.experts\.(\d+)\.(w\d)\.weight", name)
        if match is None:
            made[name] = array
        else:
            stack = f"{match[1]}.switch_mlp.{names[match[3]]}.weight"
            stacks.setdefault(stack, {})[int(match[2])] = array
    return made | {
        name: np.stack([found[number] for number in sorted(found)])
        for name, found in stacks.items()
    }


def turn_llama4(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """As mlx-lm's ``sanitize`` does it for Llama 4: rows are outputs, gate and up apart."""
    made = {}
    for name, array in tensors.items():
        base, _, end = name.rpartition(".")
        if end == "gate_up_proj":
            gate, up = np.split(np.swapaxes(array, 1, 2), 2, axis=1)
            made |= {f"{base}.gate_proj.weight": gate, f"{base}.up_proj.weight": up}
        elif end == "down_proj" and base.endswith("experts"):
            made[f"{name}.weight"] = np.swapaxes(array, 1, 2)
        else:
            made[name] = array
    return made


@pytest.mark.parametrize(
    ("case", "change"),
    [("mixtral_quantisable", stack_mixtral), ("llama4_quantisable", turn_llama4)],
)
def test_stacks_as_mlx_makes_them(case, change, tmp_path):
    folder = make_checkpoint(case, tmp_path / "model")
    convert(folder, tmp_path / "expected.gguf", type="q8_0")
    tensors = change(load_checkpoint(folder))
    assert any(len(array.shape) == 3 for array in tensors.values())
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    save_checkpoint(folder / "model.safetensors", tensors)
    convert(folder, tmp_path / "made.gguf", type="q8_0")
    same_values(tmp_path / "made.gguf", tmp_path / "expected.gguf")


def test_what_mlx_quantised_is_named(tmp_path):
    folder = make_checkpoint("llama_gqa", tmp_path / "model")
    edit_json(folder / "config.json", quantization={"group_size": 64, "bits": 4})
    with pytest.raises(UnsupportedError, match="by MLX"):
        convert(folder, tmp_path / "made.gguf", type="q8_0")


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 16060617592\n"


@pytest.mark.parametrize(
    "name",
    [
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "tokenizer.model",
        "chat_template.jinja",
        "model.safetensors",
        "model.safetensors.index.json",
    ],
)
def test_git_lfs_pointers_are_named_as_such(name, tmp_path):
    folder = make_checkpoint("llama_gqa", tmp_path / "model")
    if name == "tokenizer.model":
        (folder / "tokenizer.json").unlink()
    if name.endswith("index.json"):
        (folder / "model.safetensors").unlink()
    (folder / name).write_text(POINTER)
    with pytest.raises(FormatError, match=rf"{re.escape(name)}: a Git LFS pointer.*git lfs pull"):
        convert(folder, tmp_path / "made.gguf", type="q8_0")
