"""Keys and values beyond what a kind holds: what is advised works."""

from pathlib import Path

import numpy as np
import pytest
from helpers.chat_models import make_chat_model
from helpers.tiny_checkpoints import make_checkpoint

import q4run
from q4run.convert import convert
from q4run.errors import Error
from q4run.generation.perplexity import measure
from q4run.gguf_file import open_gguf


@pytest.fixture(scope="module", params=["attn_k", "attn_v"])
def large(request, tmp_path_factory) -> Path:
    """A model whose keys or values are far beyond f16, and q8_0's scale."""
    folder = tmp_path_factory.mktemp(request.param)
    path = folder / "model.gguf"
    convert(make_checkpoint("llama_gqa", folder / "checkpoint"), path, type="f32")
    tensor = open_gguf(path).tensor(f"blk.0.{request.param}.weight")
    rows = np.memmap(path, np.float32, "r+", offset=tensor.offset, shape=tuple(tensor.shape))
    rows *= 1e12
    rows.flush()
    return path


def answer(path: Path, kv_type: str) -> str:
    with q4run.load(path, context=128, threads=1, kv_type=kv_type) as model:
        return "".join(model.generate("in the end", 4))


@pytest.mark.parametrize("kv_type", ["f16", "q8_0"])
def test_a_larger_kind_is_advised_and_works(large, kv_type):
    with pytest.raises(Error, match=f"than --kv-type {kv_type} holds: give --kv-type f32"):
        answer(large, kv_type)
    assert answer(large, "f32")
    windows = np.arange(16, dtype=np.int32).reshape(2, 8)
    with (
        q4run.load(large, context=128, threads=1, kv_type=kv_type) as model,
        pytest.raises(Error, match="give --kv-type f32"),
    ):
        measure(model.session, windows)
    with q4run.load(large, context=128, threads=1, kv_type="f32") as model:
        assert measure(model.session, windows).tokens


def test_a_damaged_file_is_called_so(tmp_path):
    path = make_chat_model(tmp_path)
    tensor = open_gguf(path).tensor("output_norm.weight")
    np.memmap(path, np.float32, "r+", offset=tensor.offset, shape=tuple(tensor.shape))[:] = np.nan
    for kv_type in ("f16", "f32"):
        with pytest.raises(Error, match="the model file is damaged"):
            answer(path, kv_type)
