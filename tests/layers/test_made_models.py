"""Logits of tiny random models of each family against transformers, all in float32."""

import numpy as np
import pytest
from helpers.tiny_tokenizer import VOCAB_SIZE, write_tokenizer
from helpers.transformers_cases import MADE_CASES, N_TOKENS, logits_of, make_model

import q4run
from q4run.budget import least_budget
from q4run.convert import convert
from q4run.convert.calibration.arrays import Arrays
from q4run.convert.calibration.forward import Forward
from q4run.convert.calibration.weights import FileWeights
from q4run.convert.source.source import open_source
from q4run.experts.layout import read_layout
from q4run.gguf_file import open_gguf
from q4run.models import read_config

TOLERANCE = 1e-4  # largest error over largest logit


# Of positions at which llama.cpp must hold the same token for the best, and how many there are.
AGREEMENT, N_POSITIONS = 0.99, 300
EACH_CASE = pytest.mark.parametrize("case", MADE_CASES, ids=lambda case: case.name)


def make(case, folder):
    """A random model of the case, as transformers has it; its checkpoint and GGUF in ``folder``."""
    model = make_model(case)
    model.save_pretrained(folder)
    write_tokenizer("llama", folder)
    convert(folder, folder / "model.gguf", type="f32")
    return model, folder / "model.gguf"


def some_ids(n):
    return np.random.default_rng(0).integers(0, VOCAB_SIZE, n).tolist()


@pytest.mark.reference
@EACH_CASE
def test_logits_match_transformers(case, tmp_path):
    model, path = make(case, tmp_path)
    ids = some_ids(N_TOKENS)
    reference = logits_of(model, ids)
    file = open_gguf(path)
    assert file.architecture == case.architecture
    declared = read_config(file)
    assert {name: tensor.shape for name, tensor in file.tensors.items()} == {
        name: tensor.shape for name, tensor in declared.tensors.items()
    }
    with q4run.load(path, context=64, kv_type="f32") as loaded:
        together = loaded.logits(ids)
        loaded.session.clear()
        loaded.session.feed(ids[:1])
        alone = np.array([loaded.session.step(token) for token in ids[1:]])
    assert error_of(together, reference) < TOLERANCE
    assert np.array_equal(together[1:], alone)
    assert error_of(pass_of(path, ids, tmp_path), reference) < TOLERANCE
    if declared.experts:
        with q4run.load(path, context=64, kv_type="f32", ram_budget=least(file, declared)) as few:
            assert not few.plan.all_resident
            assert np.array_equal(few.logits(ids), together)


@pytest.mark.reference
@EACH_CASE
def test_llama_cpp_computes_the_same_unless_a_note_says_otherwise(case, tmp_path):
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    _, path = make(case, tmp_path)
    notes = " ".join(open_source(tmp_path).notes)
    settings: dict = {"n_ctx": 512, "n_threads": 2, "logits_all": True, "verbose": False}
    f32 = llama_cpp.GGML_TYPE_F32
    if "llama.cpp does not load" in notes:
        with pytest.raises(ValueError, match="Failed to load"):
            llama_cpp.Llama(str(path), **settings)
        return
    peer = llama_cpp.Llama(str(path), type_k=f32, type_v=f32, **settings)
    ids = some_ids(N_POSITIONS)
    peer.eval(ids)
    with q4run.load(path, context=512, kv_type="f32") as loaded:
        ours = loaded.logits(ids)
    same = ours.argmax(axis=1) == peer.scores[:N_POSITIONS].argmax(axis=1)
    assert (same.mean() >= AGREEMENT) == ("llama.cpp ignores" not in notes)


def error_of(logits, reference):
    """The largest error over the largest logit."""
    return np.abs(logits - reference).max() / np.abs(reference).max()


def pass_of(path, ids, folder):
    """The logits by the pass that calibration makes."""
    file = open_gguf(path)
    config, windows = read_config(file), np.array([ids], np.int32)
    forward = Forward(config, FileWeights(file), windows, Arrays(2**30, folder))
    for layer in range(len(config.layers)):
        forward.run_layer(layer, lambda *_: None, lambda _: None)
    return forward.logits(0)


def least(file, config):
    """The budget with which one expert at a time fits."""
    layout = read_layout(file, config)
    return least_budget(file, config, layout, context=64, kv_type="f32")
