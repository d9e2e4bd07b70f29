"""Heads of keys and of values that are not of one length, through a whole model."""

from pathlib import Path

import numpy as np
import pytest
from helpers.rewriting import read_arrays, read_facts, rewrite
from helpers.tiny_checkpoints import CASES, make_checkpoint

import q4run
from q4run.convert import convert


@pytest.fixture(scope="module")
def case():
    return next(case for case in CASES if case.family == "llama" and case.config.get("head_dim"))


@pytest.fixture(scope="module")
def original(case, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("heads")
    convert(make_checkpoint(case.name, folder / "checkpoint"), folder / "model.gguf", type="f32")
    return folder / "model.gguf"


def padded(x: np.ndarray, n_head: int, dim: int) -> np.ndarray:
    """(n_head * d, n) as (n_head * dim, n), with zeros behind each head."""
    heads = x.reshape(n_head, -1, x.shape[1])
    return np.pad(heads, ((0, 0), (0, dim - heads.shape[1]), (0, 0))).reshape(-1, x.shape[1])


def lengthen(source: Path, target: Path, key_dim: int, value_dim: int) -> None:
    """The same model with zeros behind its heads, and queries that make up for the scale."""
    facts, arrays = read_facts(source), read_arrays(source)
    n_head, n_head_kv = facts["attention.head_count"], facts["attention.head_count_kv"]
    growth = np.float32((key_dim / facts["attention.key_length"]) ** 0.5)
    for name, x in arrays.items():
        if "attn_q." in name:
            arrays[name] = padded(x, n_head, key_dim) * growth
        elif "attn_k." in name:
            arrays[name] = padded(x, n_head_kv, key_dim)
        elif "attn_v." in name:
            arrays[name] = padded(x, n_head_kv, value_dim)
        elif "attn_output." in name:
            arrays[name] = padded(x.T.copy(), n_head, value_dim).T.copy()
    lengths = {"attention__key_length": key_dim, "attention__value_length": value_dim}
    rewrite(source, target, arrays, **lengths)


@pytest.mark.parametrize("more", [(8, 0), (0, 40), (56, 8)])
def test_zeros_behind_heads_change_nothing(case, original, tmp_path, more):
    with q4run.load(original, context=64, kv_type="f32") as model:
        expected = model.logits(case.token_ids)
        before = model.config.layers[0].attention
    dims = before.key_dim + more[0], before.value_dim + more[1]
    lengthen(original, tmp_path / "longer.gguf", *dims)
    with q4run.load(tmp_path / "longer.gguf", context=64, kv_type="f32") as model:
        attention = model.config.layers[0].attention
        assert (attention.key_dim, attention.value_dim) == dims
        assert attention.rope == before.rope
        logits = model.logits(case.token_ids)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
