"""``convert --imatrix``: what an importance matrix does to a conversion, and what is refused."""

from types import SimpleNamespace

import numpy as np
import pytest
from helpers.commands import assert_one_error_line, invoke
from helpers.converting import read_gguf
from helpers.tiny_checkpoints import make_checkpoint

from q4run.convert import convert
from q4run.convert.calibration.imatrix import (
    Entry,
    ImportanceMatrix,
    read_imatrix,
    write_imatrix,
)
from q4run.convert.output.stream import quantize_rows
from q4run.convert.tensors import OutputTensor, PlannedTensor
from q4run.convert.types.importance import add_importance, importance_by_name
from q4run.errors import FormatError
from q4run.kernels.formats import find_format_named
from q4run.models.parts import Role


def planned(name: str, shape: tuple[int, ...], role: Role, type_name: str) -> PlannedTensor:
    fmt = find_format_named(type_name)
    assert fmt is not None
    read = lambda matrix, start, stop: np.zeros((stop - start, shape[-1]), np.float32)  # noqa: E731
    return PlannedTensor(OutputTensor(name, shape, role, read), fmt)


EXPERTS = planned("blk.0.ffn_up_exps.weight", (3, 4, 32), Role.EXPERT, "q4_0")
QUERY = planned("blk.0.attn_q.weight", (8, 32), Role.MATRIX, "q8_0")
OUTPUT = planned("output.weight", (8, 32), Role.OUTPUT, "q8_0")
OTHERS = [
    planned("blk.0.attn_norm.weight", (32,), Role.NORM, "f32"),
    planned("token_embd.weight", (8, 32), Role.EMBEDDING, "q8_0"),
]


def matrix_of(**entries: tuple[np.ndarray, list[float]]) -> ImportanceMatrix:
    names = {"experts": EXPERTS.tensor.name, "query": QUERY.tensor.name}
    made = {
        names.get(key, key): Entry(sums.astype(np.float32), np.array(counts, np.float32))
        for key, (sums, counts) in entries.items()
    }
    return ImportanceMatrix(made, "text.txt", 3, 512)


def with_importance(
    tensors: list[PlannedTensor], imatrix: ImportanceMatrix
) -> tuple[list[PlannedTensor], list[str]]:
    known = importance_by_name([planned.tensor for planned in tensors], imatrix, "f")
    return add_importance(tensors, known, "f")


def test_importance_is_the_mean_square_of_each_expert():
    sums = np.arange(96.0).reshape(3, 32) + 1
    query = np.full((1, 32), 8.0)
    imatrix = matrix_of(experts=(sums, [2, 4, 8]), query=(query, [4]))
    (experts, attention, *others), notes = with_importance([EXPERTS, QUERY, *OTHERS], imatrix)
    assert experts.importance is not None
    assert attention.importance is not None
    assert experts.importance.dtype == np.float32
    assert np.array_equal(experts.importance, (sums / [[2], [4], [8]]).astype(np.float32))
    assert np.array_equal(attention.importance, np.full((1, 32), 2.0, np.float32))
    assert all(other.importance is None for other in others)
    assert notes == []


def test_an_expert_without_tokens_gets_the_average_of_the_others():
    sums = np.stack([np.full(32, 4.0), np.zeros(32), np.full(32, 24.0)])
    (experts, _), notes = with_importance([EXPERTS, QUERY], matrix_of(experts=(sums, [4, 0, 4])))
    assert experts.importance is not None
    assert experts.importance[1].tolist() == [3.5] * 32
    assert len(notes) == 2
    assert "f says nothing of blk.0.attn_q.weight: all" in notes[0]
    assert "1 expert matrices met no token" in notes[1]


def test_where_no_expert_met_a_token_all_columns_count_alike():
    (experts,), _ = with_importance([EXPERTS], matrix_of(experts=(np.zeros((3, 32)), [0, 0, 0])))
    assert experts.importance is not None
    assert (experts.importance == 1).all()


def test_the_older_form_has_one_count_for_all_experts():
    sums = np.arange(96.0)[None]
    (experts,), _ = with_importance([EXPERTS], matrix_of(experts=(sums, [2])))
    assert experts.importance is not None
    assert np.array_equal(experts.importance, (sums / 2).reshape(3, 32).astype(np.float32))


@pytest.mark.parametrize(
    "imatrix",
    [
        matrix_of(query=(np.ones((1, 64)), [1])),
        matrix_of(experts=(np.ones((2, 32)), [1, 1])),
        matrix_of(experts=(np.ones((6, 16)), [1] * 6)),
        ImportanceMatrix(
            {"blk.9.attn_q.weight": Entry(np.ones((1, 32)), np.ones(1))}, "text.txt", 1, 8
        ),
    ],
)
def test_a_matrix_of_another_model_is_refused(imatrix):
    with pytest.raises(FormatError, match="is of another model"):
        with_importance([EXPERTS, QUERY], imatrix)


def test_rows_are_quantised_with_the_importance_of_their_matrix():
    heard = []
    fmt = SimpleNamespace(quantize=lambda values, importance: heard.append(importance))
    importance = np.arange(6, dtype=np.float32).reshape(3, 2)
    quantize_rows(
        SimpleNamespace(fmt=fmt, importance=importance, calibration=None), 1, np.zeros((4, 2))
    )
    quantize_rows(SimpleNamespace(fmt=fmt, importance=None, calibration=None), 1, np.zeros((4, 2)))
    assert heard[0].tolist() == [2.0, 3.0]
    assert heard[1] is None


def test_a_conversion_with_a_matrix_that_q4run_made(tmp_path):
    folder = make_checkpoint("llama4_quantisable", tmp_path / "checkpoint")
    convert(folder, tmp_path / "f32.gguf", type="f32")
    text = tmp_path / "text.txt"
    text.write_text("Once upon a time there was a fox. " * 60)
    imatrix = tmp_path / "imatrix.gguf"
    arguments = [tmp_path / "f32.gguf", "-f", text, "-o", imatrix, "--context", "32"]
    assert invoke("imatrix", *arguments).exit_code == 0
    out = tmp_path / "out.gguf"
    result = invoke("convert", folder, out, "--type", "q4_0", "--imatrix", imatrix)
    assert result.exit_code == 0, result.stderr
    values, _ = read_gguf(out)
    statistics = read_imatrix(imatrix)
    assert values["quantize.imatrix.file"] == str(imatrix)
    assert values["quantize.imatrix.dataset"] == str(text)
    assert values["quantize.imatrix.entries_count"] == len(statistics.entries)
    assert values["quantize.imatrix.chunks_count"] == statistics.n_chunks

    write_imatrix(imatrix, matrix_of(query=(np.ones((1, 32)), [1])))
    result = invoke("convert", folder, tmp_path / "no.gguf", "--type", "q4_0", "--imatrix", imatrix)
    assert result.exit_code == 1
    assert_one_error_line(result.stderr)
    assert not (tmp_path / "no.gguf").exists()
