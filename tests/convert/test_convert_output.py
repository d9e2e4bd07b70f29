"""What a conversion leaves on disk: the whole output or nothing, whatever happens."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.converting import (
    check_borders,
    edit_tensors,
    load_checkpoint,
    read_gguf,
    save_sparse_checkpoint,
)
from helpers.tiny_checkpoints import make_checkpoint

from q4run.convert import convert
from q4run.errors import Error, FormatError
from q4run.gguf_file import open_gguf

COMMAND = [sys.executable, "-m", "q4run", "convert"]


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return make_checkpoint("llama_gqa", tmp_path_factory.mktemp("checkpoint") / "llama")


@pytest.fixture
def damaged(tmp_path_factory):
    """A checkpoint that fails at its last tensor: all before it is written by then."""
    folder = make_checkpoint("llama_gqa", tmp_path_factory.mktemp("checkpoint") / "damaged")
    name = "model.layers.2.mlp.down_proj.weight"
    weights = load_checkpoint(folder)[name].copy()
    weights[-1, -1] = np.nan
    edit_tensors(folder, **{name: weights})
    return folder


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A checkpoint of 450 MB that takes no disk space and a while to convert."""
    folder = make_checkpoint("llama4_qk_norm", tmp_path_factory.mktemp("checkpoint") / "large")
    config = json.loads((folder / "config.json").read_text())
    config |= {"num_hidden_layers": 1, "hidden_size": 1024, "intermediate_size": 2304}
    config |= {"num_local_experts": 32, "moe_layers": [0], "no_rope_layers": [1]}
    (folder / "config.json").write_text(json.dumps(config))
    base = "model.layers.0"
    shapes: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (320, 1024),
        "lm_head.weight": (320, 1024),
        "model.norm.weight": (1024,),
        f"{base}.input_layernorm.weight": (1024,),
        f"{base}.post_attention_layernorm.weight": (1024,),
        f"{base}.self_attn.q_proj.weight": (64, 1024),
        f"{base}.self_attn.k_proj.weight": (32, 1024),
        f"{base}.self_attn.v_proj.weight": (32, 1024),
        f"{base}.self_attn.o_proj.weight": (1024, 64),
        f"{base}.feed_forward.router.weight": (32, 1024),
        f"{base}.feed_forward.experts.gate_up_proj": (32, 1024, 2 * 2304),
        f"{base}.feed_forward.experts.down_proj": (32, 2304, 1024),
        f"{base}.feed_forward.shared_expert.gate_proj.weight": (2304, 1024),
        f"{base}.feed_forward.shared_expert.up_proj.weight": (2304, 1024),
        f"{base}.feed_forward.shared_expert.down_proj.weight": (1024, 2304),
    }
    save_sparse_checkpoint(folder / "model.safetensors", shapes)
    return folder


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_existing_output_is_refused_without_force(llama, tmp_path):
    out = tmp_path / "model.gguf"
    out.write_bytes(b"precious")
    with pytest.raises(Error, match=r"model\.gguf: exists already.*--force"):
        convert(llama, out, type="f32")
    assert out.read_bytes() == b"precious"
    convert(llama, out, type="f32", force=True)
    assert out.read_bytes()[:4] == b"GGUF"
    assert names_in(tmp_path) == ["model.gguf"]


def test_the_old_file_survives_a_failed_run(damaged, tmp_path):
    out = tmp_path / "model.gguf"
    out.write_bytes(b"precious")
    with pytest.raises(FormatError):
        convert(damaged, out, type="f32", force=True)
    assert out.read_bytes() == b"precious"
    assert names_in(tmp_path) == ["model.gguf"]


def test_no_part_remains_of_a_failed_split(damaged, tmp_path):
    with pytest.raises(FormatError):
        convert(damaged, tmp_path / "model.gguf", type="f32", split_max_size=100_000)
    assert names_in(tmp_path) == []


def test_the_output_appears_only_at_the_end(llama, tmp_path):
    seen = []

    def look(done: int, total: int) -> None:
        seen.append((done, total, (tmp_path / "model.gguf").exists()))

    convert(llama, tmp_path / "model.gguf", type="f32", progress=look)
    done = [step[0] for step in seen]
    assert done == sorted(done)
    assert done[-1] == seen[0][1] == (tmp_path / "model.gguf").stat().st_size
    assert not any(exists for _, _, exists in seen)


def test_a_failing_progress_callback_leaves_nothing(llama, tmp_path):
    def stop(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(llama, tmp_path / "model.gguf", type="f32", progress=stop)
    assert names_in(tmp_path) == []


def test_a_dry_run_writes_nothing_and_knows_the_size(llama, tmp_path):
    plan = convert(llama, tmp_path / "model.gguf", type="q4_0", dry_run=True)
    assert names_in(tmp_path) == []
    assert not plan.written
    done = convert(llama, tmp_path / "model.gguf", type="q4_0")
    assert plan.size_after == done.size_after == (tmp_path / "model.gguf").stat().st_size
    assert plan.counts == done.counts


def test_the_default_output(llama, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    convert(llama, type="f16")
    convert(llama, type="q8_0", expert_type="q4_0")
    assert names_in(tmp_path) == ["llama-f16.gguf", "llama-q8_0-q4_0.gguf"]


def test_targets_that_cannot_be_written(llama, tmp_path):
    with pytest.raises(Error, match="no such folder"):
        convert(llama, tmp_path / "missing" / "model.gguf", type="f32")
    with pytest.raises(Error, match="not a plain file"):
        convert(llama, tmp_path, type="f32", force=True)
    assert names_in(tmp_path) == []


def test_too_little_disk_space_is_told_before_a_byte_is_written(llama, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 100_000})
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with pytest.raises(Error, match=r"the output takes 5\d\d kB, but only 100 kB are free"):
        convert(llama, tmp_path / "model.gguf", type="f32")
    assert names_in(tmp_path) == []


def limit_file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))


@pytest.mark.parametrize("options", [[], ["--split-max-size", "150k"]])
def test_a_disk_that_fills_up(options, llama, tmp_path):
    """The kernel refuses files above a limit, as it refuses to write to a full disk."""
    result = subprocess.run(
        [*COMMAND, llama, tmp_path / "model.gguf", "--type", "f32", *options],
        capture_output=True,
        text=True,
        preexec_fn=limit_file_size,
        timeout=120,
    )
    if options:  # every part is below the limit
        assert result.returncode == 0
        return
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert "the disk filled up" in result.stderr
    assert result.stderr.count("\n") == 1
    assert names_in(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 128 + signal.SIGTERM)]
)
def test_an_interrupted_conversion_leaves_nothing(number, status, large, tmp_path):
    process = subprocess.Popen(
        [*COMMAND, large, tmp_path / "model.gguf", "--type", "tq1_0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not any(path.stat().st_size for path in tmp_path.iterdir()):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == status
    assert (stdout, stderr) == ("", "")
    assert names_in(tmp_path) == []


MEMORY_PROGRAM = """
import sys, psutil
from q4run.convert import convert
from q4run.machine.memory import peak_rss
held = psutil.Process().memory_info().rss
limit = held + 130 * 10**6  # of which compiled code takes 50
convert(sys.argv[1], sys.argv[2], type="bf16", max_ram=limit)
print(peak_rss() - held, limit - held)
"""


def test_memory_stays_below_the_limit_on_a_larger_checkpoint(large, llama, tmp_path):
    # What this compiles, the program loads: compiling takes more memory than it may.
    convert(llama, tmp_path / "compiled.gguf", type="bf16")
    result = subprocess.run(
        [sys.executable, "-c", MEMORY_PROGRAM, large, tmp_path / "model.gguf"],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    taken, allowed = map(int, result.stdout.split())
    assert taken < allowed < (large / "model.safetensors").stat().st_size // 3
    (tmp_path / "model.gguf").unlink()


def test_split_files_hold_what_one_file_holds(llama, tmp_path):
    convert(llama, tmp_path / "one.gguf", type="f32")
    summary = convert(llama, tmp_path / "many.gguf", type="f32", split_max_size=150_000)
    n_parts = len(summary.outputs)
    assert n_parts > 3
    assert [path.name for path in summary.outputs] == [
        f"many-{number:05}-of-{n_parts:05}.gguf" for number in range(1, n_parts + 1)
    ]
    assert all(path.stat().st_size <= 150_000 for path in summary.outputs)
    assert sum(path.stat().st_size for path in summary.outputs) == summary.size_after
    assert summary.notes == []

    values, tensors = read_gguf(tmp_path / "one.gguf")
    split_values, split_tensors = read_gguf(*summary.outputs)
    assert tensors.keys() == split_tensors.keys()
    for name, tensor in tensors.items():
        assert tensor.data.tobytes() == split_tensors[name].data.tobytes()
    assert split_values["split.count"] == n_parts
    assert split_values["split.tensors.count"] == len(tensors)
    file_fields = {"GGUF.tensor_count", "GGUF.kv_count"}
    assert (
        values.keys() - file_fields
        == {key for key in split_values if not key.startswith("split.")} - file_fields
    )
    for number, path in enumerate(summary.outputs):
        part, _ = read_gguf(path)
        assert part["split.no"] == number
    opened = open_gguf(summary.outputs[0])
    check_borders(opened)
    assert len(opened.parts) == n_parts
    assert set(opened.tensors) == set(tensors)


def test_a_tensor_larger_than_a_part_is_told(llama, tmp_path):
    summary = convert(llama, tmp_path / "model.gguf", type="f32", split_max_size=50_000)
    assert any("larger than --split-max-size" in note for note in summary.notes)


def test_a_split_that_fits_into_one_file_is_one_file(llama, tmp_path):
    summary = convert(llama, tmp_path / "model.gguf", type="f32", split_max_size=10**9)
    assert names_in(tmp_path) == ["model.gguf"]
    assert "split.count" not in read_gguf(summary.outputs[0])[0]


def test_an_existing_part_is_refused_too(llama, tmp_path):
    first = convert(llama, tmp_path / "model.gguf", type="f32", split_max_size=150_000)
    for path in first.outputs[:-1]:
        path.unlink()
    before = first.outputs[-1].read_bytes()
    with pytest.raises(Error, match="exists already"):
        convert(llama, tmp_path / "model.gguf", type="f32", split_max_size=150_000)
    assert first.outputs[-1].read_bytes() == before
    assert names_in(tmp_path) == [first.outputs[-1].name]


def test_new_files_have_the_usual_permissions(llama, tmp_path):
    convert(llama, tmp_path / "model.gguf", type="f32")
    (tmp_path / "other").write_bytes(b"")
    assert os.stat(tmp_path / "model.gguf").st_mode == os.stat(tmp_path / "other").st_mode


def test_command_line_prints_a_table_and_nothing_to_standard_output(llama, tmp_path):
    result = subprocess.run(
        [*COMMAND, llama, tmp_path / "model.gguf", "--type", "q8_0", "--expert-type", "q4_0"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0
    assert result.stdout == ""
    assert "bits per weight" in result.stderr
    assert "token embedding" in result.stderr


def test_command_line_json_is_one_object(llama, tmp_path):
    out = tmp_path / "model.gguf"
    result = subprocess.run(
        [*COMMAND, llama, out, "--type", "tq2_0", "--dry-run", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0
    report = json.loads(result.stdout)
    assert report["outputs"] == [str(out)]
    assert report["written"] is False
    assert report["notes"]
    assert "would write" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["--type", "q9_9"], 1, "error: the type 'q9_9' is not supported"),
        ([], 2, "--type"),
        (["--type", "f32", "--max-ram", "lots"], 2, "'lots' is not a size"),
        (["--type", "f32", "--split-max-size", "50%"], 2, "'50%' is not a size"),
        (["--type", "f32", "--threads", "0"], 2, "--threads"),
        (["--type", "f32", "--threads", "99999"], 1, "99999 threads cannot be had"),
        (["--type", "f32", "--max-ram", "1M"], 1, "allow it --max-ram"),
    ],
)
def test_command_line_errors(arguments, status, text, llama, tmp_path):
    result = subprocess.run(
        [*COMMAND, llama, tmp_path / "model.gguf", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == status
    assert text in result.stderr
    assert result.stdout == ""
    assert names_in(tmp_path) == []
