"""Perplexity and divergence: against float64 over the logits, and llama-perplexity's figure."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers.chat_models import make_chat_model
from helpers.commands import assert_one_error_line, invoke

import q4run
from q4run.convert import convert
from q4run.generation.perplexity import log_softmax, measure
from q4run.gguf_file import open_gguf
from q4run.text.windows import cut_windows

CONTEXT = 24
TEXT = "<|header_start|>user<|header_end|>\n\nhello there, how are you?<|eot|> " * 12


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """A model, the same with a disturbed output matrix, and a text."""
    folder = tmp_path_factory.mktemp("perplexity")
    text = folder / "text.txt"
    text.write_text(TEXT)
    path = make_chat_model(folder)
    other = Path(shutil.copy(path, folder / "other.gguf"))
    output = open_gguf(other).tensor("output.weight")
    rows = np.memmap(other, np.float32, "r+", offset=output.offset, shape=tuple(output.shape))
    rows += np.random.default_rng(6).normal(0, rows.std(), rows.shape)
    rows.flush()
    return path, other, text


def expected(model: q4run.Model, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What each counted token was given, float64 (tokens, n_vocab) logarithms, and the tokens."""
    rows, targets = [], []
    for window in windows.tolist():
        first = len(window) // 2
        logits = model.logits(window).astype(np.float64)[first:-1]
        shifted = logits - logits.max(axis=1, keepdims=True)
        rows.append(shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True)))
        targets += window[first + 1 :]
    return np.concatenate(rows), np.array(targets)


def test_windows_are_cut_as_llama_perplexity_cuts_them(paths):
    with q4run.load(paths[0], context=CONTEXT) as model:
        ids = model.tokenize(TEXT, special=True)
        windows = cut_windows(model.tokenizer, ids, CONTEXT)
        assert windows.shape == (len(ids) // CONTEXT, CONTEXT)
        assert len(windows) > 3
        for i, window in enumerate(windows.tolist()):
            assert window[0] == model.tokenizer.bos_id
            assert window[1:] == ids[i * CONTEXT + 1 : (i + 1) * CONTEXT]
        assert np.array_equal(cut_windows(model.tokenizer, ids, CONTEXT, 2), windows[:2])
        assert len(cut_windows(model.tokenizer, ids[:CONTEXT], CONTEXT)) == 1
        for too_few in (ids[: CONTEXT - 1], []):
            with pytest.raises(q4run.Error, match=r"the text has .* less than one window of 24"):
                cut_windows(model.tokenizer, too_few, CONTEXT)


def test_windows_that_predict_nothing_are_refused(paths):
    with q4run.load(paths[0]) as model:
        windows = cut_windows(model.tokenizer, model.tokenize(TEXT), 3)
        with pytest.raises(q4run.Error, match="3 tokens predict nothing"):
            measure(model.session, windows)


@pytest.mark.parametrize("n_context", [CONTEXT, 23, 4])
def test_perplexity_is_the_exponential_of_the_mean_loss(paths, n_context):
    with q4run.load(paths[0], context=n_context) as model:
        windows = cut_windows(model.tokenizer, model.tokenize(TEXT, special=True), n_context)
        report = measure(model.session, windows)
        logs, targets = expected(model, windows)
    losses = -logs[np.arange(len(targets)), targets]
    assert report.tokens == len(targets)
    assert report.perplexity.value == pytest.approx(np.exp(losses.mean()))
    error = losses.std(ddof=1) / np.sqrt(len(losses)) * np.exp(losses.mean())
    assert report.perplexity.stderr == pytest.approx(error)
    assert (report.ratio, report.kl, report.kl_p99, report.top1_agreement) == (None,) * 4


def test_divergence_is_from_the_base_to_the_model(paths):
    with q4run.load(paths[0], context=CONTEXT) as model, q4run.load(paths[1]) as base:
        windows = cut_windows(model.tokenizer, model.tokenize(TEXT, special=True), CONTEXT)
        report = measure(model.session, windows, base.session)
        ours, targets = expected(model, windows)
        theirs, _ = expected(base, windows)
    divergence = (np.exp(theirs) * (theirs - ours)).sum(axis=1)
    agrees = ours.argmax(axis=1) == theirs.argmax(axis=1)
    at = np.arange(len(targets)), targets
    assert divergence.min() > 0
    assert report.kl.value == pytest.approx(divergence.mean())
    assert report.kl_p99 == pytest.approx(np.quantile(divergence, 0.99))
    assert report.top1_agreement.value == pytest.approx(agrees.mean())
    assert report.base_perplexity.value == pytest.approx(np.exp(-theirs[at].mean()))
    assert report.ratio.value == pytest.approx(np.exp((theirs[at] - ours[at]).mean()))


def test_a_model_is_no_distance_from_itself(paths):
    with q4run.load(paths[0]) as model, q4run.load(paths[0]) as same:
        windows = cut_windows(model.tokenizer, model.tokenize(TEXT, special=True), CONTEXT)
        report = measure(model.session, windows, same.session)
    assert (report.ratio.value, report.kl.value, report.top1_agreement.value) == (1, 0, 1)


def test_log_softmax_stands_large_logits():
    logits = np.array([[1e4, 1e4, -1e30]], np.float32)
    np.testing.assert_allclose(log_softmax(logits)[0, :2], -np.log(2))
    assert log_softmax(logits)[0, 2] == pytest.approx(-1e30)


def test_the_command_writes_the_agreed_keys(paths):
    model, base, text = paths
    arguments = [model, "-f", text, "--context", CONTEXT, "--threads", 1, "--json"]
    alone = json.loads(invoke("perplexity", *arguments).stdout)
    assert {"tokens", "ppl", "ppl_stderr"} <= alone.keys()
    assert [alone[key] for key in ("kl_mean", "kl_p99", "top1_agreement")] == [None] * 3
    assert alone["tokens"] == alone["chunks"] * (CONTEXT // 2 - 1)
    both = json.loads(invoke("perplexity", *arguments, "--base", base, "--chunks", 2).stdout)
    assert both["kl_mean"] > 0
    assert both["kl_p99"] > both["kl_mean"]
    assert 0 <= both["top1_agreement"] <= 1
    assert both["chunks"] == 2


def test_a_budget_is_shared_and_changes_nothing(paths):
    model, base, text = paths
    arguments = ["perplexity", model, "-f", text, "--base", base, "--context", CONTEXT]
    streamed = invoke(*arguments, "--ram-budget", "4M")
    assert streamed.exit_code == 0, streamed.stderr
    assert streamed.stdout == invoke(*arguments).stdout


def test_plain_reads_control_tokens_as_text(paths):
    model, _, text = paths
    arguments = ["perplexity", model, "-f", text, "--context", CONTEXT, "--json"]
    special, plain = (
        json.loads(invoke(*arguments, kind).stdout) for kind in ("--special", "--plain")
    )
    assert plain["tokens"] > special["tokens"]


def test_bad_input_is_one_line(paths, tmp_path, shared_data):
    model, _, text = paths
    short, binary = tmp_path / "short.txt", tmp_path / "binary.txt"
    short.write_text("too short")
    binary.write_bytes(b"\xff\xfe\0")
    stories = shared_data / "weights" / "stories260K.gguf"
    for arguments in (
        [model, "-f", short],
        [model, "-f", binary],
        [model, "-f", tmp_path / "absent.txt"],
        [model, "-f", tmp_path],
        [tmp_path / "absent.gguf", "-f", text],
        [model, "-f", text, "--context", 16, "--base", stories],
    ):
        result = invoke("perplexity", *arguments)
        assert result.exit_code == 1, arguments
        assert result.stdout == ""
        assert_one_error_line("error: " + result.stderr.partition("error: ")[2])


def test_the_figure_is_llama_perplexitys(shared_data, tmp_path):
    """llama.cpp gives 9.161 for these weights in f16; it rounds activations to that, too."""
    checkpoint = shared_data / "weights" / "tiny-llama4"
    path = tmp_path / "model.gguf"
    convert(checkpoint, path, type="f16")
    with q4run.load(path, context=512) as model:
        ids = model.tokenize((checkpoint / "valid.txt").read_text(), special=True)
        report = measure(model.session, cut_windows(model.tokenizer, ids, 512))
    assert report.perplexity.value == pytest.approx(9.161, abs=0.02)
