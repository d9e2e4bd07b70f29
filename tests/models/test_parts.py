"""What is declared of a model is what the converter writes and what the runtime reads."""

from dataclasses import replace

import gguf
import pytest
from gguf import MODEL_TENSOR
from helpers.tiny_cases import CASES
from helpers.tiny_checkpoints import make_checkpoint
from helpers.transformers_cases import MADE_CASES

from q4run.bench.models.synthetic import write_model
from q4run.convert import convert
from q4run.convert.source.source import open_source
from q4run.errors import UnsupportedError
from q4run.gguf_file import GGUFFile, open_gguf
from q4run.layers.decoder import check_all_declared
from q4run.models import FAMILIES, read_config
from q4run.models.names import role_of
from q4run.models.parts import Attention, QKNorm, tensor_name
from q4run.models.published import GEOMETRIES
from q4run.models.rope import Rope
from q4run.models.shapes import config_of, tensors_of

# Their checkpoints come with code of their own, which transformers does not have.
RUN_ONLY = {"bailingmoe2"}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_converter_writes_what_the_config_declares(case, tmp_path):
    checkpoint = make_checkpoint(case.name, tmp_path / "checkpoint")
    convert(checkpoint, tmp_path / "model.gguf", type="f32")
    file = open_gguf(tmp_path / "model.gguf")
    declared = read_config(file).tensors
    assert {name: tensor.shape for name, tensor in file.tensors.items()} == {
        name: tensor.shape for name, tensor in declared.items()
    }
    written = {tensor.name: tensor.role for tensor in open_source(checkpoint).tensors}
    assert written == {name: tensor.role for name, tensor in declared.items()}


def test_every_family_is_converted(tmp_path):
    architectures = {case.architecture for case in MADE_CASES}
    for case in CASES:
        checkpoint = make_checkpoint(case.name, tmp_path / case.name)
        architectures.add(open_source(checkpoint).architecture)
    assert architectures == set(FAMILIES) - RUN_ONLY


# One of each architecture.
SHAPES = {g.architecture: name for name, g in GEOMETRIES.items() if g.architecture in FAMILIES}


@pytest.mark.parametrize("name", SHAPES.values())
def test_a_geometry_has_the_tensors_that_its_family_declares(name, tmp_path):
    published = GEOMETRIES[name]
    widths = {"shared_width": 64} if published.shared_width else {}
    widths |= {"dense_width": 96} if published.dense_width else {}
    sizes = {"n_layers": 2, "n_embd": 64, "n_ff": 64, "n_vocab": 300, "head_dim": 32}
    counts = {"n_expert": 8, "n_expert_used": min(published.n_expert_used, 3)}
    counts["n_leading_dense"] = min(published.n_leading_dense, 1)
    small = replace(published, **sizes, **counts, **widths)
    path = tmp_path / "model.gguf"
    write_model(path, small, "q8_0")
    file = open_gguf(path)
    config = read_config(file)
    assert {t.name: (t.shape, t.role) for t in tensors_of(small)} == {
        t.name: (t.shape, t.role) for t in config.tensors.values()
    }
    assert [layer.attention.kept(4096) for layer in config.layers] == [
        layer.attention.kept(4096) for layer in config_of(small).layers
    ]


@pytest.mark.parametrize("name", GEOMETRIES)
def test_roles_by_name_are_those_that_are_declared(name):
    for tensor in tensors_of(GEOMETRIES[name]):
        assert role_of(tensor.name, len(tensor.shape)) is tensor.role


def test_a_tensor_that_no_part_declares_is_refused(tmp_path):
    path = tmp_path / "model.gguf"
    checkpoint = make_checkpoint(CASES[0].name, tmp_path / "checkpoint")
    convert(checkpoint, path, type="f32")
    file = open_gguf(path)
    config = read_config(file)
    check_all_declared(file, config)
    n_layers = len(config.layers)
    stray = tensor_name(MODEL_TENSOR.ATTN_Q, n_layers)
    tensors = {**file.tensors, stray: file.tensors[tensor_name(MODEL_TENSOR.ATTN_Q, 0)]}
    file = GGUFFile(
        file.path, file.parts, file.version, file.alignment, file.size, file.metadata, tensors
    )
    with pytest.raises(UnsupportedError, match=f"tensor {stray}"):
        check_all_declared(file, config)


def test_weights_of_the_qk_norm_are_declared_with_it():
    attention = Attention(4, 2, 16, 16, Rope(16, 1e4))
    plain = attention.tensors(64, 3)
    assert [tensor.name for tensor in plain] == [
        f"blk.3.attn_{name}.weight" for name in ("norm", "q", "k", "v", "output")
    ]
    weighted = Attention(4, 2, 16, 16, Rope(16, 1e4), qk_norm=QKNorm.WEIGHTED).tensors(64, 3)
    assert [(tensor.name, tensor.shape) for tensor in weighted[len(plain) :]] == [
        ("blk.3.attn_q_norm.weight", (16,)),
        ("blk.3.attn_k_norm.weight", (16,)),
    ]


def test_key_and_value_heads_may_differ():
    tensors = {t.kind: t.shape for t in Attention(6, 2, 16, 24).tensors(64, 0)}
    assert tensors[MODEL_TENSOR.ATTN_Q] == (96, 64)
    assert tensors[MODEL_TENSOR.ATTN_K] == (32, 64)
    assert tensors[MODEL_TENSOR.ATTN_V] == (48, 64)
    assert tensors[MODEL_TENSOR.ATTN_OUT] == (64, 144)


def test_names_are_those_of_gguf():
    for kind, name in gguf.TENSOR_NAMES.items():
        assert tensor_name(kind, 7) == name.replace("{bid}", "7") + ".weight"
