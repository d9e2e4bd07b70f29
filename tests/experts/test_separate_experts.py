"""Mixtral's first files, with a tensor for each expert: they run, and conversions stack them."""

import re
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from helpers.converting import read_gguf
from helpers.tiny_checkpoints import case_named, make_checkpoint

import q4run
from q4run.convert import convert
from q4run.errors import FormatError, UnsupportedError
from q4run.gguf_file import open_gguf
from q4run.inspection.model import summarize

CASE = "mixtral_quantisable"
LAYOUT = ("general.alignment", "q4run.padding")
Place = tuple[str, int]  # a stack's name without its end, and the expert's number


@pytest.fixture(scope="module")
def stacked(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stacked")
    convert(make_checkpoint(CASE, folder / "checkpoint"), folder / "q.gguf", type="q8_0")
    return folder / "q.gguf"


@pytest.fixture(scope="module")
def separate(stacked, tmp_path_factory) -> Path:
    return separated(stacked, tmp_path_factory.mktemp("separate") / "model.gguf")


def separated(
    source: Path,
    out: Path,
    change: Callable[[Place, np.ndarray], np.ndarray | None] = lambda place, data: data,
) -> Path:
    """A copy as of early 2024: gate, up and down of each expert in turn.

    change: what is stored as the q8_0 blocks of an expert's matrix; None: nothing.
    """
    values, tensors = read_gguf(source)
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(out, values["general.architecture"])
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name in ("general.architecture", *LAYOUT):
            continue
        inner = field.types[-1] if len(field.types) > 1 else None
        writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
    experts: list[tuple[int, str, np.ndarray]] = []
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(blk\.\d+\.ffn_(?:gate|up|down))_exps\.weight", name)
        if match is None:
            writer.add_tensor(name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
            continue
        for number, data in enumerate(tensor.data):
            changed = change((match[1], number), np.array(data))
            if changed is not None:
                experts.append((number, f"{match[1]}.{number}.weight", changed))
    for _, name, data in sorted(experts, key=lambda expert: expert[:2]):
        is_float = data.dtype == np.float32
        writer.add_tensor(
            name, data, raw_dtype=None if is_float else gguf.GGMLQuantizationType.Q8_0
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


def logits(path: Path, **settings: object) -> np.ndarray:
    with q4run.load(path, context=64, **settings) as model:
        return model.logits(case_named(CASE).token_ids)


def test_they_run_as_the_stacked_file_does(stacked, separate):
    assert not any("_exps" in name for name in read_gguf(separate)[1])
    expected = logits(stacked)
    np.testing.assert_array_equal(logits(separate), expected)
    np.testing.assert_array_equal(logits(separate, ram_budget="8M"), expected)


def test_parts_may_hold_experts_of_one_layer(stacked, separate, tmp_path):
    """As llama.cpp's split makes them, which knows no layers."""
    reader = gguf.GGUFReader(separate)
    names = [tensor.name for tensor in reader.tensors]
    paths = [tmp_path / f"m-{number:05}-of-00002.gguf" for number in (1, 2)]
    for number, path in enumerate(paths):
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", len(names))
        for field in reader.fields.values() if number == 0 else ():
            if not field.name.startswith("GGUF.") and field.name != "general.architecture":
                inner = field.types[-1] if len(field.types) > 1 else None
                writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=inner)
        for tensor in reader.tensors[number::2]:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    np.testing.assert_array_equal(logits(paths[0], ram_budget="8M"), logits(stacked))


@pytest.mark.parametrize("type_name", ["q8_0", "q4_0"])
def test_conversion_stacks_them(type_name, stacked, separate, tmp_path):
    convert(stacked, tmp_path / "expected.gguf", type=type_name)
    convert(separate, tmp_path / "made.gguf", type=type_name)
    assert (tmp_path / "made.gguf").read_bytes() == (tmp_path / "expected.gguf").read_bytes()


def test_inspect_shows_what_the_file_holds(stacked, separate):
    summary = summarize(open_gguf(separate), list_tensors=True)
    names = {tensor["name"] for tensor in summary["tensors"]}
    assert "blk.0.ffn_gate.0.weight" in names
    assert summary["tensor_count"] == len(names) == len(read_gguf(separate)[1])
    expected = summarize(open_gguf(stacked))
    for key in ("parameters", "bytes", "active_parameters", "experts"):
        assert summary[key] == expected[key], key


def test_a_missing_expert_is_named(stacked, tmp_path):
    lost = ("blk.1.ffn_up", 1)
    path = separated(
        stacked, tmp_path / "m.gguf", lambda place, data: None if place == lost else data
    )
    with pytest.raises(FormatError, match=r"blk\.1\.ffn_up_exps.*expert 1 is missing"):
        open_gguf(path)


def test_experts_of_other_shapes_are_refused(stacked, tmp_path):
    odd = ("blk.0.ffn_down", 1)
    path = separated(
        stacked, tmp_path / "m.gguf", lambda place, data: data[:-1] if place == odd else data
    )
    with pytest.raises(FormatError, match=r"blk\.0\.ffn_down\.1\.weight.*shape"):
        open_gguf(path)


def test_experts_of_several_types_convert_only(stacked, tmp_path):
    """As the quantiser of January 2024 made them."""

    def first_in_f32(place: Place, data: np.ndarray) -> np.ndarray:
        if place != ("blk.0.ffn_gate", 0):
            return data
        return gguf.quants.dequantize(data, gguf.GGMLQuantizationType.Q8_0)

    path = separated(stacked, tmp_path / "mixed.gguf", first_in_f32)
    with pytest.raises(UnsupportedError, match=r"blk\.0\.ffn_gate_exps.*f32, q8_0.*q4run convert"):
        logits(path)
    convert(path, tmp_path / "made.gguf", type="q8_0")
    _, expected = read_gguf(stacked)
    for name, tensor in read_gguf(tmp_path / "made.gguf")[1].items():
        if "_exps" in name:
            np.testing.assert_array_equal(tensor.data, expected[name].data)
