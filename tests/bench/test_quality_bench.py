"""The benchmarks of quality: what they print, and the files they make for llama.cpp."""

import re
import sys
from dataclasses import replace

import gguf
import numpy as np
import pytest
from helpers.tiny_checkpoints import make_checkpoint

from q4run.bench.measure import calibration_text, convert_speed, sensitivity
from q4run.bench.models.geometries import GEOMETRIES
from q4run.bench.peer.llama_cpp_files import (
    quantize_with_llama_cpp,
    types_of,
)
from q4run.convert import convert
from q4run.convert.calibration.imatrix import Entry, ImportanceMatrix, write_imatrix
from q4run.convert.types.fit import SENSITIVITY
from q4run.errors import Error

TEXT = "The quick brown fox jumps over the lazy dog, and the dog does not mind. " * 12


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint("llama4_quantisable", tmp_path_factory.mktemp("quality") / "model")


def test_sensitivity_has_a_row_for_each_use(checkpoint, tmp_path, capsys):
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    sensitivity.main([str(checkpoint), "-f", str(text), "--context", "32", "--chunks", "2"])
    printed = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1:] for line in printed.splitlines() if "±" in line}
    assert rows.keys() == SENSITIVITY.keys()
    assert float(rows["attn_v"][-1]) == 1
    for kl, _, _, error, _ in rows.values():
        assert float(kl) >= 0
        assert float(error) > 0


def test_bad_input_is_one_line(checkpoint, tmp_path):
    with pytest.raises(SystemExit, match=r"^error: .*absent"):
        sensitivity.main([str(checkpoint), "-f", str(tmp_path / "absent.txt")])


def test_the_calibration_text_leaves_out_what_is_measured(shared_data, tmp_path, monkeypatch):
    measured, out = tmp_path / "measured.txt", tmp_path / "out.txt"
    first = (shared_data / "text" / "sgd_dialogues.txt").read_text().split("\n", 1)[0]
    measured.write_text(first.partition(": ")[2])
    words = ["", str(out), "--data", str(shared_data / "text"), "--leave-out", str(measured)]
    monkeypatch.setattr("sys.argv", [*words, "--documents", "40"])
    calibration_text.main()
    text = out.read_text()
    assert text.count("<|begin_of_text|>") == 45
    assert re.search(r"user<\|header_end\|>\n\n\S", text)
    assert f"\n\n{measured.read_text()}<|eot|>" not in text


def test_llama_cpp_gets_the_mean_squares_of_an_importance_matrix(tmp_path):
    """And when it fails, its last words are told."""
    path = tmp_path / "imatrix.gguf"
    sums = np.array([[2, 4], [0, 0]], np.float32)
    entries = {"a": Entry(sums, np.array([2, 0], np.float32)), "b": Entry(sums, sums[0, :1])}
    write_imatrix(path, ImportanceMatrix(entries, "text", 1, 2))
    program = tmp_path / "python"
    program.write_text(
        f"#!{sys.executable}\n"
        "import json, sys, numpy\n"
        "means = numpy.load(json.load(sys.stdin)['imatrix'])\n"
        "print({name: means[name].tolist() for name in means}, file=sys.stderr)\n"
        "sys.exit(1)\n"
    )
    program.chmod(0o755)
    with pytest.raises(Error) as raised:
        quantize_with_llama_cpp(str(program), path, tmp_path / "out.gguf", "q8_0", {}, path)
    _, _, said = str(raised.value).partition("failed on ")
    assert said == f"{path}: {{'a': [[1.0, 2.0], [1.0, 1.0]], 'b': [[1.0, 2.0], [0.0, 0.0]]}}"


def test_conversion_is_timed_beside_llama_cpp(tmp_path, monkeypatch, capsys):
    """A stand-in for llama.cpp, which gives back what q4run made before."""
    small = replace(
        GEOMETRIES["small-scout"], n_embd=256, n_head=2, n_head_kv=1, n_ff=256, n_vocab=512
    )
    monkeypatch.setitem(convert_speed.GEOMETRIES, "small-scout", small)
    monkeypatch.setattr(convert_speed.compare, "check_peer", lambda python: python)
    asked = []

    def stand_in(python, source, out, type_name, types, *, threads):
        asked.append((python, type_name, set(types.values()), threads))
        convert(source, out, type=type_name)
        assert types_of(out) == types

    monkeypatch.setattr(convert_speed, "quantize_with_llama_cpp", stand_in)
    words = ["", str(tmp_path), "--types", "q8_0", "--runs", "1", "--threads", "1"]
    monkeypatch.setattr("sys.argv", [*words, "--peer-python", "other"])
    convert_speed.main()
    assert asked == [("other", "q8_0", {int(gguf.GGMLQuantizationType.Q8_0)}, 1)]
    assert re.search(r"q8_0 +llama\.cpp +[\d.]+", capsys.readouterr().out.replace("│", " "))
    assert [path.suffix for path in tmp_path.iterdir()] == [".gguf"]
