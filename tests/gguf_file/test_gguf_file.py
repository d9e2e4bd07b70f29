"""Reading GGUF: what a sound file yields, and the one-line error of each unsound one."""

from __future__ import annotations

import io
import math
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFValueType
from helpers.gguf_builder import Builder, rich_file

from q4run.errors import Error, FormatError, UnsupportedError
from q4run.gguf_file import GGUFFile, TensorInfo, open_gguf
from q4run.gguf_file.cursor import Cursor

F32, F16, Q4_0 = 0, 1, 2
V3 = Builder()


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    def write(content: bytes, name: str = "model.gguf") -> Path:
        path = tmp_path / name
        path.write_bytes(content)
        return path

    return write


def refused(path: Path, kind: type[Error], *words: str) -> None:
    """Opening fails with exactly this class, in one line that contains the words."""
    with pytest.raises(Error) as caught:
        open_gguf(path)
    message = str(caught.value)
    assert type(caught.value) is kind, message
    assert "\n" not in message
    for word in words:
        assert word in message


# --- sound files -----------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2, 3])
def test_every_value_and_tensor_type(save: Any, version: int) -> None:
    content = rich_file(version)
    model = open_gguf(save(content))
    assert model.version == version
    assert model.alignment == 32
    assert model.size == len(content)
    assert model.parts == (model.path,)
    assert model.architecture == "llama"
    scalars: dict[str, Any] = {
        "uint8": 255,
        "int8": -128,
        "uint16": 65535,
        "int16": -32768,
        "uint32": 2**32 - 1,
        "int32": -(2**31),
        "float32": 0.5,
        "bool": True,
        "string": "héllo",
        "uint64": 2**64 - 1,
        "int64": -(2**63),
        "float64": 0.1,
    }
    for name, value in scalars.items():
        assert model.metadata[f"scalar.{name}"] == value
        assert type(model.metadata[f"scalar.{name}"]) is type(value)
        assert model.metadata[f"array.{name}"] == [value, value]
        assert type(model.metadata[f"array.{name}"][0]) is type(value)
    assert model.metadata["array.array"] == [[1, 2], ["a", ""], []]
    assert len(model.metadata) == len(list(model.metadata)) == 2 + 2 * len(scalars)

    data_start = content.index(bytes(range(256)))
    assert [
        (t.name, t.shape, t.type.name, t.offset - data_start, t.n_bytes, t.n_elements)
        for t in model.tensors.values()
    ] == [
        ("token_embd.weight", (3, 64), "F32", 0, 768, 192),
        ("blk.0.attn_q.weight", (2, 32), "Q4_0", 768, 36, 64),
        ("blk.0.ffn_up_exps.weight", (2, 1, 256), "TQ1_0", 832, 108, 512),
        ("blk.0.attn_norm.weight", (5,), "BF16", 960, 10, 5),
        ("scale", (), "F32", 992, 4, 1),
    ]
    assert list(model.tensors) == [t.name for t in model.tensors.values()]


def test_arrays_are_decoded_once(save: Any) -> None:
    model = open_gguf(save(rich_file()))
    assert model.metadata["array.string"] is model.metadata["array.string"]
    assert model.get_array("array.string", str) is model.metadata["array.string"]
    assert model.metadata["array.array"] is model.metadata["array.array"]


def test_file_without_entries_or_tensors(save: Any) -> None:
    model = open_gguf(save(V3.header()))
    assert dict(model.metadata) == {}
    assert dict(model.tensors) == {}
    assert model.size == 24


@pytest.mark.parametrize("alignment", [1, 2, 8, 32, 4096, 1 << 20])
@pytest.mark.parametrize("kind", [GGUFValueType.UINT32, GGUFValueType.UINT64])
def test_alignments(save: Any, alignment: int, kind: GGUFValueType) -> None:
    second = -(-4 // alignment) * alignment
    content = V3.file(
        [V3.number("general.alignment", alignment, kind)],
        [V3.tensor("a", [1], F32, 0), V3.tensor("b", [3], F16, second)],
        b"AAAA" + bytes(second - 4) + b"BBBBBB",
        alignment=alignment,
    )
    model = open_gguf(save(content))
    assert model.alignment == alignment
    for name, expected in (("a", b"AAAA"), ("b", b"BBBBBB")):
        tensor = model.tensor(name)
        assert tensor.offset % alignment == 0
        assert content[tensor.offset : tensor.offset + tensor.n_bytes] == expected


def test_tensors_in_any_order_with_gaps(save: Any) -> None:
    tensors = [V3.tensor("late", [8], F32, 96), V3.tensor("early", [8], F32, 0)]
    model = open_gguf(save(V3.file([], tensors, bytes(128))))
    assert list(model.tensors) == ["late", "early"]
    assert model.tensor("late").offset - model.tensor("early").offset == 96


@pytest.mark.parametrize("version", [1, 3])
def test_strings_that_are_not_utf8_keep_their_bytes(save: Any, version: int) -> None:
    build = Builder(version)
    tokens = [b"\xff", b"\xc4", b"a\0b", b"", "é".encode(), b"\xed\xa0\x80", b"\0"]
    path = save(
        build.file(
            [
                build.text("general.name", b"caf\xe9"),
                build.array_of("tokens", GGUFValueType.STRING, tokens),
            ]
        )
    )
    model = open_gguf(path)
    assert model.metadata["general.name"].encode("utf-8", "surrogateescape") == b"caf\xe9"
    decoded = model.get_array("tokens", str)
    assert [token.encode("utf-8", "surrogateescape") for token in decoded] == tokens
    assert decoded[4] == "é"


def test_the_file_may_change_after_opening(save: Any) -> None:
    """Arrays are decoded from the bytes that were checked, not from the file as it is later."""
    path = save(rich_file())
    model = open_gguf(path)
    path.write_bytes(b"")
    assert model.metadata["array.string"] == ["héllo", "héllo"]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="counts descriptors in /proc")
def test_nothing_stays_open(save: Any) -> None:
    before = len(os.listdir("/proc/self/fd"))
    model = open_gguf(save(rich_file()))
    assert len(os.listdir("/proc/self/fd")) == before
    assert "model.gguf" not in Path("/proc/self/maps").read_text()
    assert len(model.tensors) == 5


# --- typed access ----------------------------------------------------------------------------


@pytest.fixture
def model(save: Any) -> GGUFFile:
    return open_gguf(save(rich_file()))


def test_typed_values(model: GGUFFile) -> None:
    assert model.get_int("scalar.uint8") == 255
    assert model.get_int("scalar.uint64") == 2**64 - 1
    assert model.get_int("scalar.int8", minimum=-128) == -128
    assert model.get_int("scalar.uint8", minimum=255, maximum=255) == 255
    assert model.get_float("scalar.float64") == 0.1
    assert model.get_str("scalar.string") == "héllo"
    assert model.get_bool("scalar.bool") is True
    assert model.get_array("array.int16", int) == [-32768, -32768]
    assert model.get_array("array.float32", float) == [0.5, 0.5]
    assert model.get_array("array.bool", bool) == [True, True]
    assert model.get_array("array.string", str) == ["héllo", "héllo"]
    assert model.array_length("array.string") == 2
    assert model.array_length("scalar.string") == model.array_length("none") == 0


def test_defaults_are_for_missing_keys_only(model: GGUFFile) -> None:
    assert model.get_int("none", None) is None
    assert model.get_int("none", -7, minimum=0) == -7
    assert math.isinf(model.get_float("none", math.inf))
    assert model.get_str("none", "x") == "x"
    assert model.get_bool("none", False) is False
    assert model.get_array("none", int, None) is None
    with pytest.raises(FormatError, match=r"scalar\.string"):
        model.get_int("scalar.string", 5)
    with pytest.raises(FormatError, match=r"array\.int8"):
        model.get_array("array.int8", str, [])


@pytest.mark.parametrize(
    "access",
    [
        lambda m: m.get_int("the.key"),
        lambda m: m.get_float("the.key"),
        lambda m: m.get_str("the.key"),
        lambda m: m.get_bool("the.key"),
        lambda m: m.get_array("the.key", int),
        lambda m: m.tensor("the.key"),
    ],
)
def test_missing_names_the_key(model: GGUFFile, access: Callable[[GGUFFile], Any]) -> None:
    with pytest.raises(FormatError, match=r"the\.key.* is missing") as caught:
        access(model)
    assert str(model.path) in str(caught.value)


@pytest.mark.parametrize(
    ("access", "key"),
    [
        (lambda m: m.get_int("scalar.float32"), "scalar.float32"),
        (lambda m: m.get_int("scalar.bool"), "scalar.bool"),
        (lambda m: m.get_int("array.int32"), "array.int32"),
        (lambda m: m.get_int("scalar.int8"), "scalar.int8"),
        (lambda m: m.get_int("scalar.uint64", maximum=2**31), "scalar.uint64"),
        (lambda m: m.get_int("scalar.uint8", minimum=256), "scalar.uint8"),
        (lambda m: m.get_float("scalar.uint8"), "scalar.uint8"),
        (lambda m: m.get_str("scalar.uint8"), "scalar.uint8"),
        (lambda m: m.get_bool("scalar.uint8"), "scalar.uint8"),
        (lambda m: m.get_array("scalar.uint8", int), "scalar.uint8"),
        (lambda m: m.get_array("array.bool", int), "array.bool"),
        (lambda m: m.get_array("array.uint8", float), "array.uint8"),
        (lambda m: m.get_array("array.array", int), "array.array"),
    ],
)
def test_wrong_type_or_range_names_the_key(
    model: GGUFFile, access: Callable[[GGUFFile], Any], key: str
) -> None:
    with pytest.raises(FormatError, match=key.replace(".", r"\.")) as caught:
        access(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_float_must_be_finite(save: Any, value: float) -> None:
    content = V3.file([V3.entry("eps", GGUFValueType.FLOAT32, struct.pack("<f", value))])
    with pytest.raises(FormatError, match="eps"):
        open_gguf(save(content)).get_float("eps")


def test_architecture_missing(save: Any) -> None:
    with pytest.raises(FormatError, match=r"general\.architecture"):
        _ = open_gguf(save(V3.header())).architecture


# --- what is not a GGUF file of ours ---------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"", "empty"),
        (b"GGU", "not a GGUF file"),
        (b"GGUF\3\0", "ends after 6 bytes"),
        (b"lmgg" + bytes(40), "before GGUF"),
        (b"tjgg" + bytes(40), "before GGUF"),
        (struct.pack("<Q", 300) + b'{"__metadata__":{"format":"pt"}}', "safetensors"),
        (b"PK\x03\x04" + bytes(40), "PyTorch"),
        (b"\x80\x02}q\x00.", "pickle"),
        (b"\x1f\x8b\x08" + bytes(40), "decompress"),
        (b"\r\n<!DOCTYPE html><html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "Git LFS"),
        ("Once upon a time, ☃".encode(), "text file"),
        (bytes(4096), "zeros"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "unknown format"),
    ],
)
def test_other_formats_are_named(save: Any, content: bytes, word: str) -> None:
    refused(save(content), FormatError, word, "model.gguf")


@pytest.mark.parametrize("version", [1, 2, 3])
def test_big_endian_is_refused_by_name(save: Any, version: int) -> None:
    refused(save(rich_file(version, order=">")), UnsupportedError, "big-endian")


def test_unknown_versions(save: Any) -> None:
    refused(save(b"GGUF" + V3.u32(4) + bytes(16)), UnsupportedError, "version 4")
    refused(save(b"GGUF" + V3.u32(0) + bytes(16)), FormatError, "version 0")
    refused(save(b"GGUF" + V3.u32(0x12345678) + bytes(16)), FormatError, "damaged")


def test_no_such_file_folder_pipe(tmp_path: Path) -> None:
    refused(tmp_path / "absent.gguf", Error, "absent.gguf", "No such file")
    refused(tmp_path, Error, "folder", "q4run convert")
    refused(tmp_path / "absent" / "model.gguf", Error, "No such file")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe")
        refused(tmp_path / "pipe", Error, "not a regular file")


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read every file"
)
def test_no_permission(save: Any) -> None:
    path = save(rich_file())
    path.chmod(0)
    refused(path, Error, "Permission denied")


def test_read_errors_are_told(save: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(rich_file())

    def fail(*arguments: object, **options: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", fail)
    refused(path, Error, "Permission denied", "model.gguf")


def test_file_that_shrinks_while_it_is_read() -> None:
    cursor = Cursor(io.BytesIO(b"GGUF"), Path("model.gguf"), size=100)
    with pytest.raises(FormatError, match="became shorter"):
        cursor.take(50)


# --- damaged headers -------------------------------------------------------------------------


@pytest.mark.parametrize("huge", [2**64 - 1, 2**63, 2**63 - 1, 2**40, 100_000])
def test_huge_counts_and_lengths(save: Any, huge: int) -> None:
    array_start = V3.string("k") + V3.u32(GGUFValueType.ARRAY)
    cases = [
        V3.header(n_tensors=huge),
        V3.header(n_entries=huge),
        V3.header([V3.u64(huge) + b"key"]),
        V3.header([V3.string("k") + V3.u32(GGUFValueType.STRING) + V3.u64(huge) + b"text"]),
        V3.header([], [V3.u64(huge) + b"name"]),
    ]
    for element_type in GGUFValueType:
        cases.append(V3.header([array_start + V3.u32(element_type) + V3.u64(huge) + bytes(64)]))
    in_string_array = V3.u32(GGUFValueType.STRING) + V3.u64(2) + V3.string("a") + V3.u64(huge)
    cases.append(V3.header([array_start + in_string_array + bytes(64)]))
    for content in cases:
        refused(save(content), FormatError, "model.gguf")


def test_last_string_of_an_array_past_the_end(save: Any) -> None:
    entry = V3.array_of("k", GGUFValueType.STRING, ["abc", "def"])
    refused(save(V3.header([entry])[:-1]), FormatError, "'k'", "past the end")


def test_more_entries_than_any_model_has(save: Any) -> None:
    content = V3.header(n_entries=(1 << 18) + 1) + bytes(8 << 18) + bytes(64)
    refused(save(content), UnsupportedError, "metadata", "entries")


@pytest.mark.parametrize("type_id", [13, 255, 2**32 - 1])
def test_unknown_value_types(save: Any, type_id: int) -> None:
    refused(save(V3.header([V3.entry("k", type_id, bytes(64))])), FormatError, "'k'", str(type_id))
    array = V3.entry("k", GGUFValueType.ARRAY, V3.array(type_id, [bytes(8)]))
    refused(save(V3.header([array])), FormatError, "'k'", str(type_id))


def test_nesting_is_bounded(save: Any) -> None:
    def nested(depth: int) -> bytes:
        value = V3.array(GGUFValueType.UINT8, [b"\7"])
        for _ in range(depth - 1):
            value = V3.array(GGUFValueType.ARRAY, [value])
        return V3.header([V3.entry("k", GGUFValueType.ARRAY, value)])

    assert open_gguf(save(nested(4))).metadata["k"] == [[[[7]]]]
    refused(save(nested(5)), FormatError, "'k'", "nests")
    refused(save(nested(5000)), FormatError, "'k'", "nests")
    empty = V3.array(GGUFValueType.UINT8, [])
    many = V3.array(GGUFValueType.ARRAY, [empty] * 40000)
    entry = V3.entry("k", GGUFValueType.ARRAY, many)
    assert open_gguf(save(V3.header([entry]))).metadata["k"] == [[]] * 40000
    another = V3.entry("l", GGUFValueType.ARRAY, many)
    refused(save(V3.header([entry, another])), FormatError, "'l'", "nests")


def test_truth_values(save: Any) -> None:
    refused(save(V3.header([V3.entry("k", GGUFValueType.BOOL, b"\2")])), FormatError, "'k'")
    array = V3.entry("k", GGUFValueType.ARRAY, V3.array(GGUFValueType.BOOL, [b"\1\0\x80"]))
    array = array.replace(V3.u64(1) + b"\1\0", V3.u64(3) + b"\1\0")
    refused(save(V3.header([array])), FormatError, "'k'", "neither 0 nor 1")


def test_names(save: Any) -> None:
    refused(save(V3.header([V3.number("k", 1), V3.number("k", 1)])), FormatError, "'k'", "twice")
    refused(save(V3.header([V3.text(b"\xff", "x")])), FormatError, "entry 1 of 1", "UTF-8")
    refused(save(V3.header([V3.text("k" * 65536, "x")])), FormatError, "65536 bytes")
    refused(save(V3.header([], [V3.tensor(b"\xff", [1], F32, 0)])), FormatError, "UTF-8")
    twins = [V3.tensor("same", [8], F32, 0), V3.tensor("same", [8], F32, 32)]
    refused(save(V3.file([], twins, bytes(64))), FormatError, "'same'", "twice")


def test_hostile_names_stay_on_one_short_line(save: Any) -> None:
    name = "a\n\x1b[31m" + "b" * 60000
    path = save(V3.header([V3.entry(name, 99, b"")]))
    refused(path, FormatError, r"a\n\x1b[31mbbb")
    with pytest.raises(FormatError) as caught:
        open_gguf(path)
    assert len(str(caught.value)) < len(str(path)) + 200


@pytest.mark.parametrize("alignment", [0, 3, 24, 2**32 - 1])
def test_alignment_not_a_power_of_two(save: Any, alignment: int) -> None:
    entry = V3.number("general.alignment", alignment)
    refused(save(V3.file([entry])), FormatError, "general.alignment", str(alignment))


@pytest.mark.parametrize(
    "entry",
    [
        V3.number("general.alignment", -32, GGUFValueType.INT32),
        V3.text("general.alignment", "32"),
        V3.entry("general.alignment", GGUFValueType.BOOL, b"\1"),
        V3.entry("general.alignment", GGUFValueType.FLOAT32, struct.pack("<f", 32.0)),
        V3.array_of("general.alignment", GGUFValueType.UINT32, [32]),
    ],
)
def test_alignment_of_the_wrong_type(save: Any, entry: bytes) -> None:
    refused(save(V3.file([entry])), FormatError, "general.alignment")


def test_alignment_beyond_the_file(save: Any) -> None:
    entry = V3.number("general.alignment", 1 << 63, GGUFValueType.UINT64)
    assert open_gguf(save(V3.file([entry]))).alignment == 1 << 63
    refused(save(V3.file([entry], [V3.tensor("a", [1], F32, 0)], bytes(64))), FormatError, "'a'")


@pytest.mark.parametrize(
    ("tensor", "words"),
    [
        (V3.tensor("t", [1, 1, 1, 1, 1], F32, 0), ["5 dimensions"]),
        (V3.tensor("t", [4, 0], F32, 0), ["dimension of 0"]),
        (V3.tensor("t", [33], Q4_0, 0), ["rows of 33", "Q4_0", "32"]),
        (V3.tensor("t", [], Q4_0, 0), ["rows of 1"]),
        (V3.tensor("t", [16, 2], Q4_0, 0), ["rows of 16"]),
        (V3.tensor("t", [8], F32, 16), ["32-aligned"]),
        (V3.tensor("t", [25], F32, 0), ["cut short"]),
        (V3.tensor("t", [1], F32, 96), ["cut short"]),
        (V3.tensor("t", [1], F32, 2**64 - 32), ["cut short"]),
        (V3.tensor("t", [2**63], F32, 0), ["cut short"]),
        (V3.tensor("t", [2**32, 2**32], F32, 0), ["cut short"]),
        (V3.tensor("t", [2**32, 2**32, 2**32, 2**32], F32, 0), ["cut short"]),
        (V3.tensor("t", [2**62, 4], F32, 0), ["cut short"]),
    ],
)
def test_damaged_tensors(save: Any, tensor: bytes, words: list[str]) -> None:
    refused(save(V3.file([], [tensor], bytes(96))), FormatError, "'t'", *words)


def test_the_last_byte_of_the_last_tensor_is_needed(save: Any) -> None:
    content = V3.file([], [V3.tensor("t", [24], F32, 0)], bytes(96))
    assert open_gguf(save(content)).tensor("t").n_bytes == 96
    refused(save(content[:-1]), FormatError, "'t'", "cut short")


@pytest.mark.parametrize("type_id", [4, 36, 1000, 2**32 - 1])
def test_unknown_tensor_types_are_named(save: Any, type_id: int) -> None:
    content = V3.file([], [V3.tensor("blk.0.x", [32], type_id, 0)], bytes(64))
    refused(save(content), UnsupportedError, "'blk.0.x'", str(type_id))


@pytest.mark.parametrize("second", [0, 32])
def test_overlapping_tensors(save: Any, second: int) -> None:
    tensors = [V3.tensor("b", [4], F32, second), V3.tensor("a", [16], F32, 0)]
    refused(save(V3.file([], tensors, bytes(96))), FormatError, "'a'", "'b'", "overlap")


# --- split files -----------------------------------------------------------------------------


def part(index: int, count: int, total: int, *tensors: str, alignment: int = 32) -> bytes:
    entries = [
        V3.number("split.no", index, GGUFValueType.UINT16),
        V3.number("split.count", count, GGUFValueType.UINT16),
        V3.number("split.tensors.count", total, GGUFValueType.INT32),
    ]
    if alignment != 32:
        entries.append(V3.number("general.alignment", alignment))
    if index == 0:
        entries.append(V3.text("general.architecture", "llama"))
    directory = [V3.tensor(name, [2], F32, i * alignment) for i, name in enumerate(tensors)]
    return V3.file(entries, directory, bytes(alignment * len(tensors)), alignment=alignment)


def part_name(number: int, count: int) -> str:
    return f"big-model-{number:05d}-of-{count:05d}.gguf"


@pytest.fixture
def three_parts(save: Any) -> Path:
    save(part(1, 3, 4, "c", alignment=64), part_name(2, 3))
    save(part(2, 3, 4, "d"), part_name(3, 3))
    return save(part(0, 3, 4, "a", "b", alignment=4096), part_name(1, 3))


def test_split_file(three_parts: Path) -> None:
    model = open_gguf(str(three_parts))
    names = [path.name for path in model.parts]
    assert names == [part_name(1, 3), part_name(2, 3), part_name(3, 3)]
    assert [(t.name, t.path.name) for t in model.tensors.values()] == [
        ("a", names[0]),
        ("b", names[0]),
        ("c", names[1]),
        ("d", names[2]),
    ]
    assert model.path == three_parts
    assert model.alignment == 32
    assert model.size == sum(path.stat().st_size for path in model.parts)
    assert model.get_int("split.no") == 0
    for tensor in model.tensors.values():
        assert tensor.offset + tensor.n_bytes <= tensor.path.stat().st_size


def test_split_of_one_needs_no_special_name(save: Any) -> None:
    assert list(open_gguf(save(part(0, 1, 1, "a"))).tensors) == ["a"]


def test_what_llama_cpp_quantises_of_a_file_with_an_alignment_is_explained(save: Any) -> None:
    directory = [V3.tensor("a", [2], F32, 0), V3.tensor("b", [2], F32, 32)]
    entries = [V3.number("general.alignment", 4096)]
    path = save(V3.file(entries, directory, bytes(64), alignment=4096))
    refused(path, FormatError, "general.alignment = 4096", "quantiser", "q4run convert")


def test_joined_files_are_told_apart_from_damaged_ones(save: Any) -> None:
    first = part(0, 2, 2, "a", alignment=4096)
    joined = save(first + part(1, 2, 2, "b"), "whole.gguf")
    refused(joined, FormatError, "joined into one", "--merge")
    alone = save(V3.file([], [V3.tensor("a", [2], F32, 0)], bytes(8)) * 2, "twice.gguf")
    refused(alone, FormatError, "joined into one")


def test_missing_part_is_named(three_parts: Path) -> None:
    third = three_parts.with_name(part_name(3, 3))
    third.unlink()
    refused(three_parts, FormatError, third.name, "missing")


def test_another_part_names_the_first(three_parts: Path) -> None:
    refused(three_parts.with_name(part_name(2, 3)), FormatError, three_parts.name, "part 2 of 3")


def test_renamed_parts(three_parts: Path) -> None:
    alone = three_parts.rename(three_parts.with_name("model.gguf"))
    refused(alone, FormatError, "-00001-of-00003.gguf")
    elsewhere = alone.rename(alone.with_name(part_name(4, 3)))
    refused(elsewhere, FormatError, three_parts.name)
    of_five = elsewhere.rename(elsewhere.with_name(part_name(1, 5)))
    refused(of_five, FormatError, "-00001-of-00003.gguf")


def test_parts_of_different_models(save: Any, three_parts: Path) -> None:
    second, third = (three_parts.with_name(part_name(i, 3)) for i in (2, 3))
    sound = second.read_bytes()
    second.write_bytes(third.read_bytes())
    refused(three_parts, FormatError, second.name, "part 3 of 3")
    second.write_bytes(part(1, 4, 4, "c"))
    refused(three_parts, FormatError, second.name, "part 2 of 4")
    second.write_bytes(V3.file([], [V3.tensor("c", [2], F32, 0)], bytes(32)))
    refused(three_parts, FormatError, second.name)
    second.write_bytes(part(1, 3, 4, "a"))
    refused(three_parts, FormatError, second.name, "'a'")
    second.write_bytes(part(1, 3, 4))
    refused(three_parts, FormatError, "should have 4", "have 3")
    second.write_bytes(sound[:-60])
    refused(three_parts, FormatError, second.name, "cut short")
    second.write_bytes(sound)
    assert len(open_gguf(three_parts).tensors) == 4


def test_split_keys_of_the_wrong_kind(save: Any) -> None:
    name = part_name(1, 2)
    save(part(1, 2, 0), part_name(2, 2))
    count = V3.number("split.count", 2)
    refused(save(V3.file([count, V3.text("split.no", "0")]), name), FormatError, "split.no")
    refused(save(V3.file([count]), name), FormatError, "split.tensors.count")
    refused(save(V3.file([V3.text("split.count", "2")]), name), FormatError, "split.count")
    negative = V3.number("split.count", -1, GGUFValueType.INT32)
    refused(save(V3.file([negative]), name), FormatError, "split.count")
    huge = V3.number("split.count", 2**64 - 1, GGUFValueType.UINT64)
    refused(save(V3.file([huge]), name), FormatError, "keep their names")


def test_split_written_by_the_gguf_package(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=2)
    arrays = {f"t{i}": np.arange(i, i + 40, dtype=np.float32).reshape(5, 8) for i in range(5)}
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model = open_gguf(tmp_path / "m-00001-of-00003.gguf")
    assert len(model.parts) == 3
    assert list(model.tensors) == list(arrays)
    for name, array in arrays.items():
        assert np.array_equal(read(model.tensor(name)), array)


# --- against the gguf package's reader -------------------------------------------------------


def read(tensor: TensorInfo) -> np.ndarray:
    with tensor.path.open("rb") as file:
        file.seek(tensor.offset)
        data = file.read(tensor.n_bytes)
    assert tensor.type == GGMLQuantizationType.F32
    return np.frombuffer(data, "<f4").reshape(tensor.shape)


@pytest.mark.parametrize("name", ["weights/stories260K.gguf", "vocab/ggml-vocab-gpt-2.gguf"])
def test_same_as_gguf_reader(shared_data: Path, name: str) -> None:
    model = open_gguf(shared_data / name)
    peer = gguf.GGUFReader(shared_data / name)
    fields = {k: f for k, f in peer.fields.items() if not k.startswith("GGUF.")}
    assert list(model.metadata) == list(fields)
    for key, field in fields.items():
        assert model.metadata[key] == field.contents(), key
        assert type(model.metadata[key]) is type(field.contents())
    assert model.alignment == peer.alignment
    assert len(model.tensors) == len(peer.tensors)
    for ours, theirs in zip(model.tensors.values(), peer.tensors, strict=True):
        assert ours.name == theirs.name
        assert ours.shape == tuple(reversed(theirs.shape.tolist()))
        assert ours.type == theirs.tensor_type
        assert ours.offset == theirs.data_offset
        assert ours.n_bytes == theirs.n_bytes
        assert np.array_equal(read(ours), theirs.data)


def test_version_1_holds_the_same_model(shared_data: Path) -> None:
    old = open_gguf(shared_data / "weights" / "stories260K-gguf-v1.gguf")
    new = open_gguf(shared_data / "weights" / "stories260K.gguf")
    assert (old.version, new.version) == (1, 3)
    assert set(old.tensors) == set(new.tensors)
    for name, tensor in old.tensors.items():
        assert np.array_equal(read(tensor), read(new.tensor(name)))
    key = "tokenizer.ggml.tokens"
    assert len(old.get_array(key, str)) == len(new.get_array(key, str)) == 512


@pytest.mark.parametrize(
    ("name", "n_tokens", "n_merges"),
    [("llama-bpe", 128256, 280147), ("llama-spm", 32000, 0), ("qwen2", 151936, 151387)],
)
def test_real_vocabularies(shared_data: Path, name: str, n_tokens: int, n_merges: int) -> None:
    model = open_gguf(shared_data / "vocab" / f"ggml-vocab-{name}.gguf")
    assert model.array_length("tokenizer.ggml.tokens") == n_tokens
    assert len(set(model.get_array("tokenizer.ggml.tokens", str))) == n_tokens
    merges = model.get_array("tokenizer.ggml.merges", str, [])
    assert len(merges) == n_merges
    assert all(" " in merge for merge in merges)
