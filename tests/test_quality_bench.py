"""The benchmarks of quality: what they print, and the files they make for llama.cpp."""

import re

import gguf
import numpy as np
import pytest
from tiny_checkpoints import make_checkpoint

from q4run.bench import calibration_text, sensitivity
from q4run.bench.llama_cpp_files import types_of, with_default_alignment
from q4run.convert import convert
from q4run.convert.fit import SENSITIVITY

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


def test_a_copy_with_the_default_alignment_holds_the_same(checkpoint, tmp_path):
    path, copy = tmp_path / "model.gguf", tmp_path / "copy.gguf"
    convert(checkpoint, path, type="q8_0")
    with_default_alignment(path, copy)
    before, after = gguf.GGUFReader(path), gguf.GGUFReader(copy)
    assert after.alignment == 32
    keys = {key for key in before.fields if not key.startswith("GGUF.")}
    assert {key for key in after.fields if not key.startswith("GGUF.")} == keys - {
        "general.alignment"
    }
    for one, other in zip(before.tensors, after.tensors, strict=True):
        assert (one.name, one.tensor_type) == (other.name, other.tensor_type)
        np.testing.assert_array_equal(one.data, other.data)
    assert types_of(path) == types_of(copy)
    assert set(types_of(path).values()) == {int(gguf.GGMLQuantizationType.Q8_0)}


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
