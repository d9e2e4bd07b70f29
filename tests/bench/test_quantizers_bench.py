"""The quantisers' benchmark: small runs, beside gguf."""

import json
import sys

import pytest

from q4run.bench.measure import quantizers


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(quantizers, "_ROWS", 8)
    monkeypatch.setattr(quantizers, "_COLS", 512)
    monkeypatch.setattr(quantizers, "find_peer", lambda: ("gguf", quantizers.quantize_gguf))


def test_errors_and_speeds_are_measured_beside_the_peer(small):
    records = quantizers.measure(["q4_0", "q4_k"], rounds=1)
    assert [record["type"] for record in records] == ["q4_0"] * 4 + ["q4_k"] * 4
    for record in records:
        assert 0 < record["error"] < 0.2
        assert record["values_s"] > 0
        if record["type"] == "q4_0":
            assert record["error"] < record["peer_error"] < 0.2
        else:  # gguf cannot write it
            assert record["peer_error"] is record["peer_values_s"] is None


def test_a_table_or_json(small, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["quantizers", "--types", "q4_0", "q4_k", "--rounds", "1"])
    quantizers.main()
    table = capsys.readouterr().out
    assert "heavy tails, importance" in table
    assert "gguf" in table
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--json"])
    quantizers.main()
    assert len(json.loads(capsys.readouterr().out)) == 8
