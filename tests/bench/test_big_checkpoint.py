"""The synthetic checkpoint and the measurement of big conversions, at a size for tests."""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.converting import load_checkpoint

from q4run.bench.measure import big_checkpoint
from q4run.bench.models import checkpoints
from q4run.bench.models.geometries import GEOMETRIES
from q4run.convert import convert

SMALL = replace(GEOMETRIES["scout"], n_embd=256, n_head=4, n_head_kv=2, head_dim=64, n_ff=256)


@pytest.fixture(autouse=True)
def small_geometry(monkeypatch):
    monkeypatch.setitem(GEOMETRIES, "scout", replace(SMALL, n_vocab=512))
    monkeypatch.setattr(checkpoints, "POOL_VALUES", 1 << 14)
    monkeypatch.setattr(checkpoints, "SHARD_BYTES", 3_000_000)


def test_the_checkpoint_has_the_size_asked_for_and_converts(tmp_path):
    written = checkpoints.write_checkpoint(tmp_path / "a", 20_000_000)
    shards = sorted((tmp_path / "a").glob("*.safetensors"))
    on_disk = sum(path.stat().st_size for path in shards)
    one_more_expert = 4 * 2 * 3 * 256 * 256
    assert 20_000_000 - one_more_expert - 10_000 < written <= 20_000_000
    assert written < on_disk < written + 10_000 * len(shards)
    assert len(shards) > 3
    tensors = load_checkpoint(tmp_path / "a")
    stack = tensors["model.layers.3.feed_forward.experts.down_proj"]
    assert stack.astype(float).std() == pytest.approx(0.02, rel=0.05)
    summary = convert(tmp_path / "a", tmp_path / "model.gguf", type="q4_0")
    assert summary.size_before == on_disk
    assert summary.architecture == "llama4"


def test_the_same_seed_gives_the_same_bytes(tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        checkpoints.write_checkpoint(tmp_path / name, 8_000_000, seed)
    shards = [sorted((tmp_path / name).glob("*.safetensors"))[0].read_bytes() for name in "abc"]
    assert shards[0] == shards[1] != shards[2]


def test_the_measurement_end_to_end(tmp_path, capsys, monkeypatch):
    folder, stored = tmp_path / "folder", tmp_path / "stored.json"
    arguments = [str(folder), "--size", "30M", "--max-ram", "1G", "--stops", "2"]
    arguments += ["--json", str(stored)]
    monkeypatch.setattr(sys, "argv", ["big_checkpoint", *arguments])
    with pytest.raises(SystemExit) as ended:
        big_checkpoint.main()
    printed = capsys.readouterr().out
    assert ended.value.code == 0, printed
    assert "the same bytes" in printed
    assert printed.count("to the end") >= 2
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint"]
    content = json.loads(stored.read_text())
    assert content["same_bytes"]
    assert content["checkpoint_bytes"] == pytest.approx(30e6, rel=0.1)
    assert len(content["runs"]) == 4
    assert all(0 < run["peak"] < 1.15e9 for run in content["runs"])
    assert str(tmp_path) not in stored.read_text()


def test_a_run_that_ends_before_its_stop_is_followed_by_a_whole_one(tmp_path, monkeypatch):
    def convert(source: Path, out: Path, *_: object) -> big_checkpoint.Run:
        assert not out.exists()
        out.write_bytes(b"all of it")
        return big_checkpoint.Run("to the end", 1.0, 1, 0, 9)

    monkeypatch.setattr(big_checkpoint, "convert", convert)
    monkeypatch.setattr(big_checkpoint, "_prepare", lambda *_: 100)
    monkeypatch.setattr(big_checkpoint, "_planned_size", lambda *_: 9)
    arguments = argparse.Namespace(
        folder=tmp_path, size=100, type="q8_0", stops=2, seed=0, max_ram=10**9, json=None
    )
    assert big_checkpoint.run(arguments)


def test_too_little_disk_space_is_told_first(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 10**6}))
    monkeypatch.setattr(sys, "argv", ["big_checkpoint", str(tmp_path), "--size", "30M"])
    with pytest.raises(SystemExit, match="make room, or give a smaller --size"):
        big_checkpoint.main()
