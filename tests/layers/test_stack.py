"""Embedding, stack and head, each on its own: what enters need not be tokens."""

import numpy as np
import pytest
from helpers.tiny_checkpoints import CASES, make_checkpoint

from q4run.cache.keys_values import KVCache
from q4run.convert import convert
from q4run.disk.methods.pread import Pread
from q4run.errors import Error
from q4run.experts.layout import read_layout
from q4run.experts.store import ExpertStore
from q4run.gguf_file import open_gguf
from q4run.layers.decoder import Transformer
from q4run.models import read_config
from q4run.weights import EmbeddingTable


@pytest.fixture(scope="module")
def case():
    return next(case for case in CASES if case.family == "llama4")


@pytest.fixture(scope="module")
def path(case, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stack")
    checkpoint = make_checkpoint(case.name, folder / "checkpoint")
    convert(checkpoint, folder / "model.gguf", type="f32")
    return folder / "model.gguf"


@pytest.fixture(scope="module")
def transformer(path):
    file = open_gguf(path)
    config = read_config(file)
    layout = read_layout(file, config)
    store = ExpertStore(layout, layout.n_experts, Pread(file.parts))
    transformer = Transformer(file, config, store, n_batch=16, threads=1)
    yield transformer
    transformer.close()
    store.close()


def test_vectors_enter_in_place_of_embeddings(case, path, transformer):
    config = transformer.config
    table = EmbeddingTable(open_gguf(path), config.embedding.tensors(config.n_embd)[0])
    vectors = table.rows(case.token_ids)
    table.close()
    before = vectors.copy()
    of_vectors = transformer.forward(vectors, KVCache(config, 64, "f32"))
    of_ids = transformer.forward(case.token_ids, KVCache(config, 64, "f32"))
    np.testing.assert_array_equal(of_vectors, of_ids)
    np.testing.assert_array_equal(vectors, before)


def test_vectors_follow_tokens_and_tokens_vectors(case, path, transformer):
    config, ids = transformer.config, case.token_ids
    table = EmbeddingTable(open_gguf(path), config.embedding.tensors(config.n_embd)[0])
    cache = KVCache(config, 64, "f32")
    transformer.forward(ids[:5], cache)
    transformer.forward(table.rows(ids[5:9]), cache)
    last = transformer.forward(ids[9:12], cache)
    table.close()
    expected = transformer.forward(ids[:12], KVCache(config, 64, "f32"))
    np.testing.assert_array_equal(last, expected)


def test_vectors_of_another_width_are_refused(transformer):
    cache = KVCache(transformer.config, 64, "f32")
    with pytest.raises(Error, match=r"\(3, 7\)"):
        transformer.forward(np.zeros((3, 7), np.float32), cache)
    with pytest.raises(Error, match="empty"):
        transformer.forward(np.zeros((0, transformer.config.n_embd), np.float32), cache)
    assert cache.length == 0
