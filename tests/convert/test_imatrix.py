"""Calibration's forward pass, the importance matrices made of it, and their files."""

import json
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from helpers.commands import assert_one_error_line, invoke
from helpers.tiny_checkpoints import CASES, make_checkpoint
from reference import numpy_forward

from q4run.convert import convert
from q4run.convert.calibration.arrays import Arrays
from q4run.convert.calibration.collect import make_imatrix
from q4run.convert.calibration.forward import Forward
from q4run.convert.calibration.imatrix import (
    Entry,
    ImportanceMatrix,
    read_imatrix,
    write_imatrix,
)
from q4run.convert.calibration.room import working_bytes
from q4run.convert.calibration.weights import FileWeights
from q4run.convert.calibration.windows import read_windows
from q4run.errors import BudgetError, Error, FormatError
from q4run.gguf_file import open_gguf
from q4run.models import read_config
from q4run.text.tokenizer import load_tokenizer

REFERENCE = Path(__file__).parents[1] / "reference"
RECORDED = ["llama4_scout", "llama4_maverick", "llama4_top_2", "llama_mha_odd", "mixtral_top_2"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Makes a case's checkpoint folder and f32 GGUF, once each."""
    made: dict[str, tuple[Path, Path]] = {}

    def make(name: str) -> tuple[Path, Path]:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            checkpoint = make_checkpoint(name, folder / "checkpoint")
            convert(checkpoint, folder / "model.gguf", type="f32")
            made[name] = checkpoint, folder / "model.gguf"
        return made[name]

    return make


def forward_of(path: Path, windows: np.ndarray, folder: Path, ram: int = 2**30) -> Forward:
    file = open_gguf(path)
    config = read_config(file)
    return Forward(config, FileWeights(file), windows, Arrays(ram, folder))


def run(forward: Forward, path: Path, observe=lambda *arguments: None) -> None:
    for i in range(len(read_config(open_gguf(path)).layers)):
        forward.run_layer(i, observe, lambda n_tokens: None)


@pytest.mark.parametrize("ram", [2**30, 0], ids=["in RAM", "on disk"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_pass_gives_the_logits_of_transformers(case, ram, models, tmp_path):
    _, path = models(case.name)
    ids = np.array(case.token_ids, np.int32)
    forward = forward_of(path, np.stack([ids[::-1], ids]), tmp_path, ram)
    run(forward, path)
    with np.load(REFERENCE / "logits.npz") as stored:
        expected = stored[case.name]
    assert np.abs(forward.logits(1) - expected).max() < 1e-4 * np.abs(expected).max()
    assert list(tmp_path.iterdir()) == []


class Recorded(np.ndarray):
    """A weight that notes what it is multiplied with, under its name and matrix."""

    key: tuple[str, int]
    inputs: dict

    def __array_finalize__(self, source):
        self.key = getattr(source, "key", ("", 0))
        self.inputs = getattr(source, "inputs", {})

    def __getitem__(self, index):
        part = super().__getitem__(index)
        if isinstance(index, int) and part.ndim == 2:
            part.key = (self.key[0], index)
        return part

    def __array_ufunc__(self, ufunc, method, *inputs, **options):
        plain = [np.asarray(value) for value in inputs]
        if ufunc is np.matmul:
            self.inputs[self.key] = plain[0]
        return getattr(ufunc, method)(*plain, **options)


def recorded_inputs(checkpoint: Path, ids: list[int]) -> dict[tuple[str, int], np.ndarray]:
    """What each matrix of the checkpoint multiplies, by the independent float64 pass."""
    config, weights = numpy_forward.load_checkpoint(checkpoint)
    inputs: dict[tuple[str, int], np.ndarray] = {}
    recorded = {}
    for name, values in weights.items():
        recorded[name] = values.view(Recorded)
        recorded[name].key, recorded[name].inputs = (name, 0), inputs
    numpy_forward.forward(config, recorded, ids)
    return inputs


def checkpoint_key(tensor: str, matrix: int, n_layer_parts: dict[str, str]) -> tuple[str, int]:
    """Where the checkpoint has the matrix of a GGUF tensor."""
    _, layer, part, _ = tensor.split(".")
    name, index = n_layer_parts[part], matrix
    if "{expert}" in name:
        name, index = name.format(expert=matrix), 0
    return f"model.layers.{layer}.{name}", index


ATTENTION = {f"attn_{part}": f"self_attn.{part}_proj.weight" for part in "qkv"}
ATTENTION["attn_output"] = "self_attn.o_proj.weight"
LLAMA4 = ATTENTION | {
    "ffn_gate_inp": "feed_forward.router.weight",
    "ffn_gate_exps": "feed_forward.experts.gate_up_proj",
    "ffn_up_exps": "feed_forward.experts.gate_up_proj",
    "ffn_down_exps": "feed_forward.experts.down_proj",
}
LLAMA = ATTENTION | {"ffn_gate_inp": "block_sparse_moe.gate.weight"}
for part, number in (("gate", 1), ("up", 3), ("down", 2)):
    LLAMA[f"ffn_{part}"] = f"mlp.{part}_proj.weight"
    LLAMA[f"ffn_{part}_exps"] = f"block_sparse_moe.experts.{{expert}}.w{number}.weight"
    LLAMA4[f"ffn_{part}"] = f"feed_forward.{part}_proj.weight"
    LLAMA4[f"ffn_{part}_shexp"] = f"feed_forward.shared_expert.{part}_proj.weight"


@pytest.mark.parametrize("name", RECORDED)
def test_the_observer_hears_what_every_matrix_multiplies(name, models, tmp_path):
    checkpoint, path = models(name)
    case = next(case for case in CASES if case.name == name)
    expected = recorded_inputs(checkpoint, case.token_ids)
    heard: dict[tuple[str, int], list[np.ndarray]] = {}

    def observe(names, matrix, tokens, inputs):
        assert len(tokens) == len(inputs)
        for tensor in names:
            heard.setdefault((tensor, matrix), []).append(inputs.copy())

    forward = forward_of(path, np.array([case.token_ids], np.int32), tmp_path)
    run(forward, path, observe)
    forward.run_head(observe)
    parts = LLAMA4 if case.family == "llama4" else LLAMA
    seen = {("lm_head.weight", 0)}
    for (tensor, matrix), batches in heard.items():
        key = ("lm_head.weight", 0)
        if tensor != "output.weight":
            key = checkpoint_key(tensor, matrix, parts)
        inputs = np.concatenate(batches)
        assert inputs.shape == expected[key].shape
        assert np.abs(inputs - expected[key]).max() < 1e-4 * np.abs(expected[key]).max()
        seen.add(key)
    reached = {key for key, inputs in expected.items() if len(inputs)}
    assert seen == reached


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("Once upon a time there was a fox. " * 60)
    return path


@pytest.mark.parametrize("name", ["llama4_scout", "mixtral_top_2", "llama_tied"])
def test_the_file_has_the_form_that_llama_cpp_writes(name, models, text, tmp_path):
    _, path = models(name)
    out = tmp_path / "out.gguf"
    collected = make_imatrix(path, text, out, context=32, chunks=3)
    reader = gguf.GGUFReader(out)
    values = {key: field.contents() for key, field in reader.fields.items()}
    assert values["general.type"] == "imatrix"
    assert "general.architecture" not in values
    assert values["imatrix.datasets"] == [str(text)]
    assert (values["imatrix.chunk_count"], values["imatrix.chunk_size"]) == (3, 32)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == 2 * collected.n_entries
    assert list(tensors) == sorted(tensors, key=lambda key: key.rpartition(".")[0])
    config = read_config(open_gguf(path))
    for key, shape in {"attn_q": (1, config.n_embd), "attn_output": (1, 64)}.items():
        assert tensors[f"blk.1.{key}.weight.in_sum2"].data.shape == shape
        assert tensors[f"blk.1.{key}.weight.counts"].data.tolist() == [[96.0]]
    moe = config.layers[1].experts
    if moe is not None:
        for key, width in {"gate": config.n_embd, "up": config.n_embd, "down": moe.n_ff}.items():
            sums = tensors[f"blk.1.ffn_{key}_exps.weight.in_sum2"]
            counts = tensors[f"blk.1.ffn_{key}_exps.weight.counts"]
            assert sums.data.shape == (moe.n_expert, width)
            assert counts.data.shape == (moe.n_expert, 1)
            assert counts.data.sum() == 96 * moe.n_expert_used
            assert ((sums.data.max(axis=1) > 0) == (counts.data[:, 0] > 0)).all()
    assert ("output.weight.in_sum2" in tensors) == (not config.tied_embeddings)
    assert not any("gate_inp" in key or "token_embd" in key for key in tensors)
    again = read_imatrix(out)
    assert (again.text, again.n_chunks, again.chunk_size) == (str(text), 3, 32)
    entry = again.entries["blk.1.attn_q.weight"]
    assert np.array_equal(entry.sums, tensors["blk.1.attn_q.weight.in_sum2"].data)
    assert entry.counts.tolist() == [96.0]


def test_windows_begin_with_bos_and_read_control_tokens(models, tmp_path):
    tokenizer = load_tokenizer(open_gguf(models("llama4_scout")[1]).metadata)
    path = tmp_path / "text.txt"
    path.write_text("<|begin_of_text|>" + "<|eot|>hello " * 20)
    ids = tokenizer.encode(path.read_text(), special=True)
    windows = read_windows(path, tokenizer, 10)
    assert windows.shape == (len(ids) // 10, 10)
    assert set(windows[:, 0]) == {tokenizer.bos_id}
    assert windows[:, 1:].tolist() == [ids[i + 1 : i + 10] for i in range(0, windows.size, 10)]
    assert len(read_windows(path, tokenizer, 10, 2)) == 2
    with pytest.raises(Error, match="less than one window of 9999"):
        read_windows(path, tokenizer, 9999)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(Error, match="UTF-8"):
        read_windows(path, tokenizer, 10)


def test_it_keeps_to_the_budget_or_says_what_it_needs(models, text, tmp_path):
    path = models("llama4_scout")[1]
    least = working_bytes(read_config(open_gguf(path)), 32)
    out = tmp_path / "out.gguf"
    with pytest.raises(BudgetError, match="allow at least --ram-budget"):
        make_imatrix(path, text, out, context=32, ram_budget=least // 2)
    assert not out.exists()
    make_imatrix(path, text, out, context=32, ram_budget=2 * least)


def test_ctrl_c_leaves_nothing_behind(models, text, tmp_path):
    out = tmp_path / "folder" / "out.gguf"
    out.parent.mkdir()

    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        make_imatrix(models("llama4_scout")[1], text, out, context=32, progress=interrupt)
    assert list(out.parent.iterdir()) == []


def test_progress_reaches_its_end(models, text, tmp_path):
    heard: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        heard.append((done, total))

    for name in ("llama4_top_2", "llama_gqa"):
        heard.clear()
        make_imatrix(models(name)[1], text, tmp_path / "out.gguf", context=32, progress=progress)
        assert heard == sorted(heard)
        assert heard[-1][0] == heard[-1][1]


def test_the_command_prints_one_json_object(models, text, tmp_path):
    out = tmp_path / "out.gguf"
    result = invoke(
        "imatrix", models("llama4_scout")[1], "-f", text, "-o", out, "--context", 16, "--json"
    )
    assert result.exit_code == 0, result.stderr
    figures = json.loads(result.stdout)
    assert figures["out"] == str(out)
    assert figures["n_tokens"] == 16 * figures["n_chunks"] > 0
    assert figures["n_experts"] == 5 * 16
    assert out.exists()


def test_errors_are_one_line(models, text, tmp_path):
    model = models("llama4_scout")[1]
    for arguments in (
        (model, "-f", tmp_path / "none.txt", "-o", tmp_path / "out.gguf"),
        (tmp_path / "none.gguf", "-f", text, "-o", tmp_path / "out.gguf"),
        (model, "-f", text, "-o", tmp_path / "none" / "out.gguf"),
        (model, "-f", text, "-o", tmp_path),
    ):
        result = invoke("imatrix", *arguments)
        assert result.exit_code == 1
        assert_one_error_line(result.stderr)


ENTRIES = {
    "blk.0.a.weight": Entry(np.array([[1.0, 2.0]], np.float32), np.array([4.0], np.float32)),
    "blk.0.b.weight": Entry(np.ones((3, 2), np.float32), np.array([1.0, 0.0, 2.0], np.float32)),
}


def old_form(n_calls: int = 4, tail: bool = True) -> bytes:
    """The older file of the same statistics; its values are mean squares times calls."""
    data = struct.pack("<i", len(ENTRIES))
    for name, entry in ENTRIES.items():
        values = entry.sums.reshape(-1)
        data += struct.pack("<i", len(name)) + name.encode()
        data += struct.pack("<ii", n_calls, len(values)) + values.astype("<f4").tobytes()
    return data + (struct.pack("<ii", 7, 8) + b"text.txt" if tail else b"")


def test_the_older_form_is_read(tmp_path):
    path = tmp_path / "old.dat"
    path.write_bytes(old_form())
    imatrix = read_imatrix(path)
    assert (imatrix.text, imatrix.n_chunks, imatrix.chunk_size) == ("text.txt", 7, 0)
    assert imatrix.entries["blk.0.a.weight"].sums.tolist() == [[1.0, 2.0]]
    assert imatrix.entries["blk.0.b.weight"].sums.shape == (1, 6)
    assert imatrix.entries["blk.0.b.weight"].counts.tolist() == [4.0]
    path.write_bytes(old_form(tail=False))
    assert len(read_imatrix(path).entries) == 2


def test_every_cut_of_the_older_form_is_refused(tmp_path):
    path = tmp_path / "old.dat"
    whole = old_form()
    n_entries_end = len(old_form(tail=False))
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        if length == n_entries_end:
            continue
        with pytest.raises(FormatError):
            read_imatrix(path)


@pytest.mark.parametrize("claim", [-1, 2**31 - 1, 1000])
def test_hostile_counts_of_the_older_form_are_refused(claim, tmp_path):
    path = tmp_path / "old.dat"
    for offset in (0, 4, 26):
        data = bytearray(old_form())
        data[offset : offset + 4] = struct.pack("<i", claim)
        path.write_bytes(data)
        with pytest.raises(FormatError):
            read_imatrix(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -1.0])
@pytest.mark.parametrize("where", ["sums", "counts"])
def test_impossible_numbers_are_refused(where, value, tmp_path):
    sums, counts = np.ones((2, 3), np.float32), np.ones(2, np.float32)
    (sums if where == "sums" else counts).reshape(-1)[1] = value
    path = tmp_path / "imatrix.gguf"
    write_imatrix(path, ImportanceMatrix({"x.weight": Entry(sums, counts)}, "t", 1, 8))
    with pytest.raises(FormatError, match=r"x\.weight"):
        read_imatrix(path)


def test_files_that_do_not_fit_together_are_refused(models, tmp_path):
    path = tmp_path / "imatrix.gguf"
    with pytest.raises(FormatError, match="not an importance matrix"):
        read_imatrix(models("llama_gqa")[1])
    write_imatrix(path, ImportanceMatrix({}, "t", 1, 8))
    with pytest.raises(FormatError, match="holds no importance matrix"):
        read_imatrix(path)
    entry = Entry(np.ones((3, 2), np.float32), np.ones(2, np.float32))
    write_imatrix(path, ImportanceMatrix({"x": entry}, "t", 1, 8))
    with pytest.raises(FormatError, match="3 rows of sums but 2 counts"):
        read_imatrix(path)
    with pytest.raises(Error, match="cannot be read"):
        read_imatrix(tmp_path / "none.gguf")
