"""`q4run inspect` and the summary behind it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import typer
from gguf import GGMLQuantizationType as Type
from gguf import GGUFValueType
from helpers.gguf_builder import Builder, rich_file
from typer.testing import CliRunner

from q4run.box import MODEL
from q4run.cli.inspect import inspect
from q4run.errors import FormatError
from q4run.gguf_file import open_gguf
from q4run.inspection.model import summarize
from q4run.models.names import tensor_class

V3 = Builder()


def app_of(verb: Any) -> typer.Typer:
    app = typer.Typer()
    app.command()(verb)
    return app


def invoke(*arguments: str) -> str:
    result = CliRunner().invoke(app_of(inspect), list(arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def real(key: str, value: float) -> bytes:
    """A metadata entry of type f32."""
    return V3.entry(key, GGUFValueType.FLOAT32, V3.scalar(GGUFValueType.FLOAT32, value))


def moe_file() -> bytes:
    """The header of a one-layer Llama 4 with four experts, and zeros for its data."""
    entries = [
        V3.text("general.architecture", "llama4"),
        V3.text("general.name", "Tiny [bold]Scout[/bold]"),
        V3.number("general.file_type", 36),
        V3.number("llama4.block_count", 1),
        V3.number("llama4.embedding_length", 256),
        V3.number("llama4.context_length", 10485760),
        V3.number("llama4.expert_count", 4),
        V3.number("llama4.expert_used_count", 1),
        V3.text("tokenizer.ggml.model", "gpt2"),
        V3.text("tokenizer.ggml.pre", "llama4"),
        V3.array_of("tokenizer.ggml.tokens", GGUFValueType.STRING, ["a", "b", "c"]),
        V3.text("tokenizer.chat_template", "{{ messages }}"),
    ]
    shapes = {
        "token_embd.weight": ([256, 3], Type.Q8_0, 816),
        "blk.0.attn_q.weight": ([256, 256], Type.Q8_0, 69632),
        "blk.0.attn_norm.weight": ([256], Type.F32, 1024),
        "blk.0.ffn_gate_inp.weight": ([256, 4], Type.F32, 4096),
        "blk.0.ffn_up_exps.weight": ([256, 32, 4], Type.Q4_0, 18432),
        "blk.0.ffn_down_exps.weight": ([32, 256, 4], Type.Q8_0, 34816),
        "blk.0.ffn_up_shexp.weight": ([256, 32], Type.F16, 16384),
        "output.weight": ([256, 3], Type.BF16, 1536),
    }
    tensors, offset = [], 0
    for name, (ne, kind, n_bytes) in shapes.items():
        tensors.append(V3.tensor(name, ne, kind, offset))
        offset += -(-n_bytes // 32) * 32
    return V3.file(entries, tensors, bytes(offset))


@pytest.fixture
def moe_path(tmp_path: Path) -> Path:
    path = tmp_path / "moe.gguf"
    path.write_bytes(moe_file())
    return path


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("token_embd.weight", "embedding"),
        ("token_embd_norm.weight", "norms"),
        ("output.weight", "output"),
        ("output_norm.weight", "norms"),
        ("rope_freqs.weight", "other"),
        ("blk.0.attn_norm.weight", "norms"),
        ("blk.11.attn_q_norm.weight", "norms"),
        ("blk.0.attn_norm_2.bias", "norms"),
        ("blk.0.post_attention_norm.weight", "norms"),
        ("blk.0.attn_qkv.bias", "attention"),
        ("blk.0.attn_output.weight", "attention"),
        ("blk.0.attn_sinks.weight", "attention"),
        ("blk.0.attn_kv_a_mqa.weight", "attention"),
        ("blk.0.ffn_gate_inp.weight", "router"),
        ("blk.0.exp_probs_b.bias", "router"),
        ("blk.0.ffn_gate_inp_shexp.weight", "shared experts"),
        ("blk.0.ffn_down_shexp.weight", "shared experts"),
        ("blk.47.ffn_gate_exps.weight", "experts"),
        ("blk.0.ffn_gate_up_exps.weight", "experts"),
        ("blk.0.ffn_gate.7.weight", "experts"),
        ("blk.0.ffn_gate.weight", "dense ffn"),
        ("blk.0.ffn_sub_norm.weight", "norms"),
        ("v.patch_embd.weight", "other"),
        ("", "other"),
        ("blk.0.\n", "other"),
    ],
)
def test_tensor_class(name: str, label: str) -> None:
    assert tensor_class(name) == label


def test_summary_of_a_mixture_of_experts(moe_path: Path) -> None:
    summary = summarize(open_gguf(moe_path))
    routed = 2 * 4 * 256 * 32
    resident = 2 * 768 + 65536 + 256 + 1024 + 8192
    n_bytes = 816 + 69632 + 1024 + 4096 + 18432 + 34816 + 16384 + 1536
    classes = summary.pop("classes")
    assert summary == {
        "path": str(moe_path),
        "parts": [str(moe_path)],
        "size": moe_path.stat().st_size,
        "gguf_version": 3,
        "alignment": 32,
        "architecture": "llama4",
        "supported": True,
        "name": "Tiny [bold]Scout[/bold]",
        "file_type": {"number": 36, "name": "tq1_0"},
        "block_count": 1,
        "embedding_length": 256,
        "context_length": 10485760,
        "attention": None,
        "experts": {"count": 4, "used": 1},
        "imatrix": None,
        "calibration": None,
        "tokenizer": {
            "model": "gpt2",
            "pre": "llama4",
            "vocab_size": 3,
            "chat_template": True,
        },
        "tensor_count": 8,
        "parameters": routed + resident,
        "bytes": n_bytes,
        "bits_per_weight": 8 * n_bytes / (routed + resident),
        "types": {"q8_0": 3, "q4_0": 1, "f16": 1, "f32": 2, "bf16": 1},
        "active_parameters": routed // 4 + resident,
    }
    assert list(classes) == [
        "embedding",
        "norms",
        "attention",
        "router",
        "shared experts",
        "experts",
        "output",
    ]
    assert classes["experts"] == {
        "tensor_count": 2,
        "parameters": routed,
        "bytes": 53248,
        "bits_per_weight": 6.5,
        "types": {"q8_0": 1, "q4_0": 1},
    }
    assert classes["router"]["bits_per_weight"] == 32.0


def test_summary_lists_tensors_when_asked(moe_path: Path) -> None:
    summary = summarize(open_gguf(moe_path), list_tensors=True)
    experts = next(t for t in summary["tensors"] if t["name"] == "blk.0.ffn_up_exps.weight")
    assert experts["shape"] == [4, 32, 256]
    assert (experts["class"], experts["type"], experts["bytes"]) == ("experts", "q4_0", 18432)
    assert experts["part"] == "moe.gguf"
    assert experts["offset"] % 32 == 0
    assert len(summary["tensors"]) == 8


@pytest.mark.parametrize("used", [None, 5])
def test_active_parameters_unknown(tmp_path: Path, used: int | None) -> None:
    entries = [V3.text("general.architecture", "a"), V3.number("a.expert_count", 4)]
    if used is not None:
        entries.append(V3.number("a.expert_used_count", used))
    path = tmp_path / "model.gguf"
    path.write_bytes(V3.file(entries, [V3.tensor("t", [8], 0, 0)], bytes(32)))
    assert summarize(open_gguf(path))["active_parameters"] is None
    invoke(str(path))


def test_odd_metadata_is_shown_as_not_given(tmp_path: Path) -> None:
    entries = [
        V3.number("general.architecture", 5),
        V3.number("general.name", 7),
        V3.text("None.block_count", "many"),
    ]
    path = tmp_path / "model.gguf"
    path.write_bytes(V3.file(entries))
    summary = summarize(open_gguf(path))
    assert summary["architecture"] is summary["name"] is summary["block_count"] is None
    assert summary["tokenizer"] is summary["experts"] is summary["bits_per_weight"] is None
    assert "not given" in invoke(str(path))


def write(path: Path, entries: list[bytes], names: tuple[str, ...] = ("t",)) -> Path:
    """A file with these metadata entries, and a small tensor for each name."""
    tensors = [V3.tensor(name, [8], 0, 32 * index) for index, name in enumerate(names)]
    path.write_bytes(V3.file(entries, tensors, bytes(32 * len(names))))
    return path


def words(text: str) -> str:
    return " ".join(text.split())


def test_how_the_model_in_the_box_attends() -> None:
    attention = summarize(open_gguf(MODEL))["attention"]
    assert attention == {
        "heads": 8,
        "kv_heads": 4,
        "head_dim": 32,
        "rope_base": 10000.0,
        "rope_dim": 32,
        "rope_scaling": None,
        "rope_factors": False,
        "layers": 6,
        "rope_layers": 5,
        "chunked_layers": 5,
        "chunk_size": 8192,
        "sliding_window": None,
    }
    text = words(invoke())
    assert "8 heads of 32, 4 of keys and values" in text
    assert "RoPE of base 10,000, none in 1 of 6 layers (NoPE), 5 see chunks of 8,192" in text
    assert "file type tq2_0" in text


def test_attention_by_the_keys_of_a_family_that_q4run_does_not_know(tmp_path: Path) -> None:
    entries = [
        V3.text("general.architecture", "newmoe"),
        V3.number("newmoe.embedding_length", 512),
        V3.number("newmoe.attention.head_count", 8),
        V3.number("newmoe.attention.head_count_kv", 2),
        V3.number("newmoe.attention.sliding_window", 4096),
        V3.number("newmoe.rope.dimension_count", 32),
        real("newmoe.rope.freq_base", 1e6),
        V3.text("newmoe.rope.scaling.type", "yarn"),
        real("newmoe.rope.scaling.factor", 4.0),
        V3.number("newmoe.rope.scaling.original_context_length", 32768),
    ]
    path = write(tmp_path / "model.gguf", entries, ("rope_freqs.weight",))
    summary = summarize(open_gguf(path))
    assert summary["supported"] is False
    assert summary["attention"]["head_dim"] == 64
    assert summary["attention"]["rope_scaling"] == {
        "type": "yarn",
        "factor": 4.0,
        "original_context_length": 32768,
    }
    text = words(invoke(str(path)))
    assert "newmoe (q4run cannot run it yet)" in text
    assert "8 heads of 64, 2 of keys and values" in text
    assert (
        "RoPE of base 1,000,000 over 32 values of a head, scaled by 4 (yarn),"
        " a factor for each frequency, a window of 4,096 tokens" in text
    )


def test_scaling_under_its_old_name_and_factors_for_two_contexts(tmp_path: Path) -> None:
    entries = [V3.text("general.architecture", "newmoe"), real("newmoe.rope.scale_linear", 8.0)]
    path = write(tmp_path / "model.gguf", entries, ("rope_factors_long.weight",))
    attention = summarize(open_gguf(path))["attention"]
    assert attention["rope_scaling"] == {
        "type": "linear",
        "factor": 8.0,
        "original_context_length": None,
    }
    assert attention["rope_factors"] is True


def test_odd_attention_keys_are_left_out(tmp_path: Path) -> None:
    entries = [
        V3.text("general.architecture", "llama"),
        V3.number("llama.embedding_length", 512),
        V3.number("llama.attention.head_count", 0),
        V3.array_of("llama.attention.head_count_kv", GGUFValueType.UINT32, [1, 2]),
        real("llama.rope.freq_base", float("nan")),
        V3.text("llama.rope.scaling.type", "\x1b[2J" + "x" * 500),
        V3.text("llama.rope.scaling.factor", "much"),
    ]
    path = write(tmp_path / "model.gguf", entries)
    attention = summarize(open_gguf(path))["attention"]
    assert attention["kv_heads"] is attention["head_dim"] is attention["rope_base"] is None
    text = invoke(str(path))
    assert "\x1b" not in text
    assert "x" * 200 not in text


@pytest.mark.parametrize(
    ("number", "name"),
    [(0, "f32"), (1, "f16"), (15, "q4_k_m"), (37, "tq2_0"), (999, None)],
)
def test_file_types_have_their_names(tmp_path: Path, number: int, name: str | None) -> None:
    path = write(tmp_path / "model.gguf", [V3.number("general.file_type", number)])
    assert summarize(open_gguf(path))["file_type"] == {"number": number, "name": name}
    assert f"file type {name or 'number 999'}" in words(invoke(str(path)))


def test_what_a_model_was_quantised_with(tmp_path: Path) -> None:
    entries = [
        V3.text("quantize.imatrix.file", "imatrix.gguf"),
        V3.text("quantize.imatrix.dataset", "wiki.txt"),
        V3.number("quantize.imatrix.entries_count", 1234, GGUFValueType.INT32),
        V3.number("quantize.imatrix.chunks_count", 80, GGUFValueType.INT32),
        V3.text("quantize.calibration.dataset", "talk.txt"),
        V3.number("quantize.calibration.chunks_count", 7, GGUFValueType.INT32),
        V3.number("quantize.calibration.tokens", 5),
    ]
    path = write(tmp_path / "model.gguf", entries)
    summary = summarize(open_gguf(path))
    assert summary["imatrix"] == {
        "file": "imatrix.gguf",
        "dataset": "wiki.txt",
        "entries_count": 1234,
        "chunks_count": 80,
    }
    assert summary["calibration"] == {"dataset": "talk.txt", "chunks_count": 7, "tokens": None}
    text = words(invoke(str(path)))
    assert "imatrix imatrix.gguf, of wiki.txt, 1,234 matrices, 80 chunks" in text
    assert "calibrated talk.txt, 7 chunks" in text


def test_without_a_model_it_is_the_one_in_the_box() -> None:
    assert json.loads(invoke("--json"))["name"] == "tiny-llama4"
    result = CliRunner().invoke(app_of(inspect), [])
    assert "No MODEL named" in result.stderr
    assert "No MODEL named" not in result.stdout


def test_json_is_one_object(moe_path: Path) -> None:
    shown = json.loads(invoke(str(moe_path), "--json"))
    assert shown == summarize(open_gguf(moe_path))
    listed = json.loads(invoke(str(moe_path), "--json", "--tensors"))
    assert listed == summarize(open_gguf(moe_path), list_tensors=True)


def test_text_for_people(moe_path: Path) -> None:
    text = invoke(str(moe_path))
    for expected in (
        str(moe_path),
        "llama4",
        "Tiny [bold]Scout[/bold]",
        "10,485,760 tokens",
        "4, 1 used per token",
        "142.1 k, 92.9 k active per token",
        "gpt2 (llama4), 3 tokens, with chat template",
        "GGUF version 3, alignment 32",
        "q8_0 (1), q4_0 (1)",
        "6.50",
    ):
        assert expected in text
    assert "\x1b" not in text
    assert "blk.0" not in text
    listing = invoke(str(moe_path), "--tensors")
    assert "blk.0.ffn_up_exps.weight" in listing
    assert "4 × 32 × 256" in listing


def test_names_from_the_file_cannot_drive_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    entries = [V3.text("general.name", b"\x1b[2J\xff"), V3.text("tokenizer.ggml.model", "\x1b]0;x")]
    tensors = [V3.tensor("\x1b[31m[red]t" + "u" * 60000, [8], 0, 0)]
    path.write_bytes(V3.file(entries, tensors, bytes(32)))
    text = invoke(str(path), "--tensors")
    assert "\x1b" not in text
    assert "[31m[red]tuuu" in text
    assert len(text) < 10000
    assert json.loads(invoke(str(path), "--json"))["name"] == "\x1b[2J\udcff"


def test_every_value_type_and_no_tensors(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(rich_file(1))
    assert "GGUF version 1" in invoke(str(path), "--tensors")
    path.write_bytes(V3.header())
    assert "no tensors" in invoke(str(path))
    assert json.loads(invoke(str(path), "--json", "--tensors"))["tensors"] == []


def test_errors_are_left_to_the_caller(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"")
    with pytest.raises(FormatError, match="empty"):
        invoke(str(path))


def split_part(index: int, tensor: bytes, size: int) -> tuple[bytes, int]:
    """The header of one part of two, and the size its file is to have."""
    entries = [
        V3.number("split.no", index, GGUFValueType.UINT16),
        V3.number("split.count", 2, GGUFValueType.UINT16),
        V3.number("split.tensors.count", 2, GGUFValueType.INT32),
        V3.text("general.architecture", "llama4"),
    ]
    content = V3.file(entries, [tensor])
    return content, len(content) + size


def test_reads_headers_only_of_a_200_gb_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_bytes = 100 * 10**9 // 4096 * 4096
    paths = []
    for index in range(2):
        tensor = V3.tensor(f"blk.{index}.ffn_up_exps.weight", [4096, n_bytes // 4096], Type.I8, 0)
        content, size = split_part(index, tensor, n_bytes)
        path = tmp_path / f"big-0000{index + 1}-of-00002.gguf"
        path.write_bytes(content)
        try:
            with path.open("r+b") as file:
                file.truncate(size)
        except OSError:
            pytest.skip("this file system has no sparse files of 100 GB")
        paths.append(path)
    read = count_reads(monkeypatch)
    summary = summarize(open_gguf(paths[0]))
    assert summary["parameters"] == summary["bytes"] == 2 * n_bytes
    assert summary["size"] > 199 * 10**9
    assert len(summary["parts"]) == 2
    assert 0 < sum(read) <= 4 << 20
    text = invoke(str(paths[0]), "--tensors")
    assert "200.0 GB in 2 parts" in text
    assert paths[1].name in text


def count_reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collects how many bytes each read of an opened file returns."""
    sizes: list[int] = []
    original = Path.open

    def counting_open(path: Path, *arguments: Any, **options: Any) -> Any:
        file = original(path, *arguments, **options)
        read = file.read

        class Counting:
            def read(self, size: int = -1) -> bytes:
                data: bytes = read(size)
                sizes.append(len(data))
                return data

            def __enter__(self) -> Counting:
                return self

            def __exit__(self, *_: object) -> None:
                file.close()

        return Counting()

    monkeypatch.setattr(Path, "open", counting_open)
    return sizes
