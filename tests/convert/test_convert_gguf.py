"""GGUF to GGUF: metadata kept, tensors copied or quantised anew."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from helpers.converting import check_borders, read_gguf
from helpers.gguf_builder import Builder, rich_file
from helpers.tiny_checkpoints import make_checkpoint

from q4run.bench.models.random_blocks import TYPES, random_blocks
from q4run.convert import convert
from q4run.convert.source.gguf_source import GGUFSource
from q4run.errors import BudgetError, Error, FormatError, UnsupportedError
from q4run.gguf_file import open_gguf
from q4run.kernels.formats import find_format
from q4run.models.names import layer_of, role_of
from q4run.models.parts import Role

OWN_KEYS = {"general.file_type", "GGUF.kv_count", "GGUF.tensor_count"}


@pytest.fixture(scope="module")
def llama4(tmp_path_factory):
    return make_checkpoint(
        "llama4_quantisable", tmp_path_factory.mktemp("checkpoint") / "llama4_quantisable"
    )


def write_gguf(path: Path, tensors: dict[str, tuple[tuple[int, ...], str, np.ndarray]]) -> Path:
    """A GGUF of (shape, type, bytes) by name, written by the gguf package."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint16("own.small", 7)
    for name, (shape, type_name, raw) in tensors.items():
        writer.add_tensor_info(
            name,
            shape,
            np.dtype(np.float32),
            raw.nbytes,
            gguf.GGMLQuantizationType[type_name.upper()],
        )
    writer.open_output_file()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    assert writer.fout is not None
    file = writer.fout[0]
    for _, _, raw in tensors.values():
        writer.write_padding(file, file.tell())
        file.write(raw.tobytes())
    writer.write_padding(file, file.tell())
    writer.close()
    return path


def without_own(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in OWN_KEYS}


@pytest.mark.parametrize("through", ["f32", "bf16"])
@pytest.mark.parametrize("type_name", ["q8_0", "q4_0", "bf16", "tq2_0"])
def test_by_way_of_floats_it_is_the_checkpoints_conversion(through, type_name, llama4, tmp_path):
    convert(llama4, tmp_path / "floats.gguf", type=through)
    convert(llama4, tmp_path / "direct.gguf", type=type_name)
    summary = convert(tmp_path / "floats.gguf", tmp_path / "again.gguf", type=type_name)
    assert not any("second time" in note for note in summary.notes)
    direct_values, direct = read_gguf(tmp_path / "direct.gguf")
    values, tensors = read_gguf(tmp_path / "again.gguf")
    assert without_own(values) == without_own(direct_values)
    assert values["general.file_type"] == direct_values["general.file_type"]
    assert tensors.keys() == direct.keys()
    for name, tensor in tensors.items():
        assert tensor.tensor_type == direct[name].tensor_type, name
        assert tensor.data.tobytes() == direct[name].data.tobytes(), name
    assert {count.use for count in summary.counts} > {"routed experts", "router", "norm"}


def readable_types() -> list[str]:
    types = [gguf.GGMLQuantizationType[name.upper()] for name in TYPES]
    return [kind.name.lower() for kind in types if find_format(kind) is not None]


@pytest.mark.parametrize("type_name", readable_types())
def test_every_type_that_can_be_read(type_name, tmp_path):
    """Into f32 as its codec says, and into itself (where it can be written) byte for byte."""
    kind = gguf.GGMLQuantizationType[type_name.upper()]
    fmt = find_format(kind)
    assert fmt is not None
    shape = (3, 7, 512)
    n_blocks = 3 * 7 * 512 // fmt.block_size
    raw = random_blocks(type_name, n_blocks, 0.1, np.random.default_rng(0))
    name = "blk.0.ffn_up_exps.weight"
    norm = np.ones(64, np.float32)
    source = write_gguf(
        tmp_path / "source.gguf",
        {name: (shape, type_name, raw), "blk.0.attn_norm.weight": ((64,), "f32", norm)},
    )
    summary = convert(source, tmp_path / "f32.gguf", type="f32")
    _, tensors = read_gguf(tmp_path / "f32.gguf")
    expected = fmt.dequantize(raw.reshape(21, -1))
    assert np.array_equal(tensors[name].data.reshape(21, 512), expected)
    assert not any("second time" in note for note in summary.notes)
    if fmt.can_quantize and type_name not in ("tq1_0", "tq2_0"):
        convert(source, tmp_path / "same.gguf", type="f32", expert_type=type_name)
        _, tensors = read_gguf(tmp_path / "same.gguf")
        assert tensors[name].tensor_type == kind
        assert tensors[name].data.tobytes() == raw.tobytes()


def test_a_second_quantising_is_told(llama4, tmp_path):
    convert(llama4, tmp_path / "q8_0.gguf", type="q8_0")
    summary = convert(tmp_path / "q8_0.gguf", tmp_path / "q4_0.gguf", type="q4_0")
    assert any("quantised a second time" in note and "q8_0" in note for note in summary.notes)
    kept = convert(tmp_path / "q8_0.gguf", tmp_path / "same.gguf", type="q8_0")
    assert not any("second time" in note for note in kept.notes)
    _, before = read_gguf(tmp_path / "q8_0.gguf")
    _, after = read_gguf(tmp_path / "same.gguf")
    for name, tensor in after.items():
        assert tensor.data.tobytes() == before[name].data.tobytes(), name


def test_tensors_come_layer_by_layer_however_they_lie(llama4, tmp_path):
    """Calibration and parts rely on it; in the file, small ones of all layers stand last."""
    convert(llama4, tmp_path / "model.gguf", type="f16")
    layers = [layer_of(name) for name in open_gguf(tmp_path / "model.gguf").tensors]
    in_file = [layer for layer in layers if layer is not None]
    assert in_file != sorted(in_file)
    told = [layer_of(tensor.name) for tensor in GGUFSource(tmp_path / "model.gguf").tensors]
    in_order = [layer for layer in told if layer is not None]
    assert in_order == sorted(in_file)


def test_every_kind_of_metadata_is_kept(tmp_path):
    content = rich_file()
    n_data = 256 * 3 + 996 - 768
    source = tmp_path / "rich.gguf"
    source.write_bytes(content[:-n_data] + bytes(n_data))
    summary = convert(source, tmp_path / "out.gguf", type="q8_0")
    before, after = open_gguf(source), open_gguf(tmp_path / "out.gguf")
    for key, kind in before.value_types.items():
        if key in ("array.array", "general.alignment", "q4run.padding"):
            continue
        assert after.value_types[key] == kind, key
        assert after.metadata[key] == before.metadata[key], key
    check_borders(after)
    assert any("left out" in note and "array.array" in note for note in summary.notes)
    assert after.tensors["scale"].shape == (1,)
    assert after.tensors["blk.0.attn_norm.weight"].type.name == "F32"


def test_text_that_is_not_utf8_keeps_its_bytes(tmp_path):
    build = Builder()
    entries = [
        build.text("general.architecture", "llama"),
        build.text("odd.text", b"\xff\xfe"),
        build.array_of("odd.list", gguf.GGUFValueType.STRING, [b"\x80", b"ok"]),
    ]
    tensors = [build.tensor("blk.0.attn_norm.weight", [8], 0, 0)]
    source = tmp_path / "odd.gguf"
    source.write_bytes(build.file(entries, tensors, bytes(32)))
    convert(source, tmp_path / "out.gguf", type="f16")
    metadata = open_gguf(tmp_path / "out.gguf").metadata
    assert metadata["odd.text"].encode("utf-8", "surrogateescape") == b"\xff\xfe"
    assert metadata["odd.list"][0].encode("utf-8", "surrogateescape") == b"\x80"


def test_a_split_source_and_a_split_output(llama4, tmp_path, monkeypatch):
    convert(llama4, tmp_path / "one.gguf", type="f32")
    parts = convert(llama4, tmp_path / "many.gguf", type="f32", split_max_size=2_000_000).outputs
    assert len(parts) > 2
    convert(tmp_path / "one.gguf", tmp_path / "a.gguf", type="q8_0")
    convert(parts[0], tmp_path / "b.gguf", type="q8_0")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    with pytest.raises(FormatError, match="give the first"):
        convert(parts[1], tmp_path / "c.gguf", type="q8_0")
    outputs = convert(parts[0], tmp_path / "d.gguf", type="q8_0", split_max_size=10**6).outputs
    assert read_gguf(*outputs)[0]["split.count"] == len(outputs) != len(parts)
    monkeypatch.chdir(tmp_path)
    assert convert(parts[0], type="f16").outputs == [Path("many-f16.gguf")]


def test_the_source_is_never_the_output(llama4, tmp_path):
    source = tmp_path / "model.gguf"
    convert(llama4, source, type="f16")
    before = source.read_bytes()
    with pytest.raises(Error, match="is the source itself"):
        convert(source, source, type="q8_0", force=True)
    assert source.read_bytes() == before


def test_resumed_from_a_gguf(llama4, tmp_path):
    convert(llama4, tmp_path / "q8_0.gguf", type="q8_0")
    convert(tmp_path / "q8_0.gguf", tmp_path / "whole.gguf", type="q4_0")

    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    out = tmp_path / "model.gguf"
    with pytest.raises(KeyboardInterrupt):
        convert(tmp_path / "q8_0.gguf", out, type="q4_0", resume=True, progress=stop)
    summary = convert(tmp_path / "q8_0.gguf", out, type="q4_0", resume=True)
    assert any("were kept" in note for note in summary.notes)
    assert out.read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_small_blocks_make_the_same_file(llama4, tmp_path, monkeypatch):
    from q4run.convert import blocks
    from q4run.convert.output import stream

    convert(llama4, tmp_path / "q8_0.gguf", type="q8_0")
    convert(tmp_path / "q8_0.gguf", tmp_path / "whole.gguf", type="q4_0")
    plan = stream.BlockPlan(block_values=3 * 256, read_values=0, n_threads=3)
    monkeypatch.setattr("q4run.convert.pipeline.plan_blocks", lambda *_: plan)
    monkeypatch.setattr(blocks, "PIECE_VALUES", 300)
    convert(tmp_path / "q8_0.gguf", tmp_path / "parts.gguf", type="q4_0")
    assert (tmp_path / "whole.gguf").read_bytes() == (tmp_path / "parts.gguf").read_bytes()


def test_too_little_memory_is_told(llama4, tmp_path):
    convert(llama4, tmp_path / "f16.gguf", type="f16")
    with pytest.raises(BudgetError, match="allow it --max-ram"):
        convert(tmp_path / "f16.gguf", tmp_path / "out.gguf", type="q8_0", max_ram=10**6)


@pytest.mark.parametrize(
    ("ne", "type_id", "words"),
    [([8], 26, "stored as i32"), ([1, 1, 1, 8], 0, "4 dimensions")],
)
def test_tensors_that_are_not_read(ne, type_id, words, tmp_path):
    build = Builder()
    tensors = [build.tensor("odd.weight", ne, type_id, 0)]
    source = tmp_path / "odd.gguf"
    source.write_bytes(
        build.file([build.text("general.architecture", "llama")], tensors, bytes(32))
    )
    with pytest.raises(UnsupportedError, match=words):
        convert(source, tmp_path / "out.gguf", type="f16")


def test_a_file_without_tensors(tmp_path):
    build = Builder()
    (tmp_path / "source.gguf").write_bytes(build.file([build.text("general.architecture", "x")]))
    with pytest.raises(FormatError, match="holds no tensors"):
        convert(tmp_path / "source.gguf", tmp_path / "out.gguf", type="f16")


def test_a_source_that_is_cut_short_meanwhile(llama4, tmp_path):
    source = tmp_path / "f32.gguf"
    convert(llama4, source, type="f32")

    def truncate(done: int, total: int) -> None:
        with source.open("r+b") as file:
            file.truncate(100_000)

    with pytest.raises(FormatError, match="ends within tensor"):
        convert(source, tmp_path / "out.gguf", type="q8_0", progress=truncate)
    assert not (tmp_path / "out.gguf").exists()


@pytest.mark.parametrize(
    ("name", "n_dimensions", "role"),
    [
        ("token_embd.weight", 2, Role.EMBEDDING),
        ("output.weight", 2, Role.OUTPUT),
        ("output_norm.weight", 1, Role.NORM),
        ("rope_freqs.weight", 1, Role.ROPE_FACTORS),
        ("rope_factors_long.weight", 1, Role.ROPE_FACTORS),
        ("blk.3.attn_q.weight", 2, Role.MATRIX),
        ("blk.3.attn_q.bias", 1, Role.BIAS),
        ("blk.3.attn_output.weight", 2, Role.MATRIX),
        ("blk.3.attn_k_b.weight", 3, Role.MATRIX),
        ("blk.3.ffn_gate_inp.weight", 2, Role.ROUTER),
        ("blk.3.ffn_gate_inp_shexp.weight", 1, Role.ROUTER),
        ("blk.3.ffn_gate_exps.weight", 3, Role.EXPERT),
        ("blk.3.ffn_gate_exps.bias", 2, Role.BIAS),
        ("blk.3.ffn_up_shexp.weight", 2, Role.MATRIX),
        ("blk.3.ssm_conv1d.weight", 2, Role.NORM),
        ("blk.3.ffn_down.weight", 2, Role.MATRIX),
    ],
)
def test_roles_by_name(name, n_dimensions, role):
    assert role_of(name, n_dimensions) is role
