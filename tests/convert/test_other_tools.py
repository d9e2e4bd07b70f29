"""Converted files in other programs' hands: gguf's scripts, llama.cpp's quantiser and its splitter.

The quantiser needs llama-cpp-python (the [bench] extra). The splitter is the program that
LLAMA_GGUF_SPLIT names, or `llama-gguf-split` on the PATH; no Python package brings it, but
tests/reference/make_gguf_split.sh builds it.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.gguf_writer import GGUFValue
from helpers.converting import read_gguf
from helpers.tiny_checkpoints import case_named, make_checkpoint

import q4run
from q4run.bench.peer.llama_cpp_files import quantize_with_llama_cpp, types_of
from q4run.convert import convert
from q4run.convert.output.header import Entry, make_header
from q4run.gguf_file import open_gguf
from q4run.gguf_file.borders import PADDING_KEY

CASE = "mixtral_quantisable"
SPLITTER = os.environ.get("LLAMA_GGUF_SPLIT") or shutil.which("llama-gguf-split")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    return make_checkpoint(CASE, tmp_path_factory.mktemp("tools") / "checkpoint")


@pytest.fixture(scope="module")
def model(checkpoint, tmp_path_factory) -> Path:
    """In f16: what people quantise further."""
    path = tmp_path_factory.mktemp("model") / "f16.gguf"
    convert(checkpoint, path, type="f16")
    return path


def logits(path: Path) -> np.ndarray:
    with q4run.load(path, context=64) as model:
        return model.logits(case_named(CASE).token_ids)


def run_script(name: str, *arguments: object) -> None:
    command = [sys.executable, "-m", f"gguf.scripts.{name}", *map(str, arguments)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def same_tensors(path: Path, other: Path) -> None:
    before, after = read_gguf(path)[1], read_gguf(other)[1]
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.tensor_type == after[name].tensor_type
        np.testing.assert_array_equal(tensor.data, after[name].data)


@pytest.mark.parametrize("n_value", range(4096 - 64, 4096 + 64, 7))
def test_headers_end_on_a_border_whatever_they_hold(n_value, tmp_path):
    values = {"general.name": GGUFValue("x" * n_value, gguf.GGUFValueType.STRING)}
    entries = [Entry("a", (2, 32), 256, gguf.GGMLQuantizationType.F32)]
    header = make_header("llama", values, entries)
    assert len(header) % 4096 == 0
    path = tmp_path / "m.gguf"
    path.write_bytes(header + np.arange(64, dtype="<f4").tobytes())
    assert open_gguf(path).tensors["a"].offset == len(header)
    _, tensors = read_gguf(path)
    np.testing.assert_array_equal(tensors["a"].data.reshape(-1), np.arange(64))


def test_a_value_set_in_place(model, tmp_path):
    path = tmp_path / "model.gguf"
    shutil.copy(model, path)
    run_script("gguf_set_metadata", "--force", path, "llama.context_length", 77)
    assert open_gguf(path).get_int("llama.context_length") == 77
    same_tensors(model, path)
    np.testing.assert_array_equal(logits(path), logits(model))


def test_a_copy_with_new_metadata(model, tmp_path):
    path = tmp_path / "model.gguf"
    name = "a name that is longer than the one it had" * 200
    run_script("gguf_new_metadata", "--general-name", name, model, path)
    file = open_gguf(path)
    assert file.get_str("general.name") == name
    assert file.alignment == 32
    same_tensors(model, path)
    np.testing.assert_array_equal(logits(path), logits(model))


def test_such_a_copy_converts_to_borders_again(checkpoint, model, tmp_path):
    moved, path, direct = (tmp_path / name for name in ("moved.gguf", "q.gguf", "direct.gguf"))
    run_script("gguf_new_metadata", "--general-name", "checkpoint", model, moved)
    convert(moved, path, type="q8_0")
    convert(model, direct, type="q8_0")
    assert path.read_bytes() == direct.read_bytes()


def test_the_dump_shows_no_page_of_spaces(model):
    command = [sys.executable, "-m", "gguf.scripts.gguf_dump", "--no-tensors", str(model)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    line = next(line for line in done.stdout.splitlines() if PADDING_KEY in line)
    assert len(line) < 200


@pytest.mark.parametrize("type_name", ["q8_0", "q4_k"])
def test_what_llama_cpp_quantises_runs(type_name, checkpoint, model, tmp_path):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    convert(checkpoint, ours, type=type_name)
    quantize_with_llama_cpp(sys.executable, model, theirs, type_name, types_of(ours))
    assert open_gguf(theirs).alignment == 32
    before, after = read_gguf(model)[1], read_gguf(theirs)[1]
    for name, tensor in after.items():
        values = gguf.quants.dequantize(before[name].data, before[name].tensor_type)
        errors = gguf.quants.dequantize(tensor.data, tensor.tensor_type) - values
        assert np.square(errors).mean() < 0.01 * np.square(values).mean(), name
    if type_name == "q8_0":  # else a router may choose other experts
        np.testing.assert_allclose(logits(theirs), logits(ours), atol=0.05)


@pytest.mark.skipif(SPLITTER is None, reason="llama.cpp's llama-gguf-split is not installed")
@pytest.mark.parametrize("splits", [None, 150_000])
def test_what_llama_cpp_splits_and_merges_runs(splits, checkpoint, model, tmp_path):
    if splits:
        source = convert(checkpoint, tmp_path / "m.gguf", type="f16", split_max_size=splits)
        first = source.outputs[0]
    else:
        command = [SPLITTER, "--split", "--split-max-tensors", "5", model, tmp_path / "m"]
        subprocess.run(command, check=True, capture_output=True, timeout=120)
        first = next(tmp_path.glob("m-00001-of-*.gguf"))
    assert len(open_gguf(first).parts) > 2
    np.testing.assert_array_equal(logits(first), logits(model))
    command = [SPLITTER, "--merge", first, tmp_path / "merged.gguf"]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    same_tensors(model, tmp_path / "merged.gguf")
    np.testing.assert_array_equal(logits(tmp_path / "merged.gguf"), logits(model))
