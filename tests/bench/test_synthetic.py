"""Synthetic models: random blocks of every type, real geometries, files that others load."""

import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.quants import dequantize, quantize
from helpers.converting import check_borders

import q4run
from q4run.bench.models import synthetic
from q4run.bench.models.geometries import GEOMETRIES
from q4run.bench.models.random_blocks import TYPES, find_type, random_blocks
from q4run.bench.models.synthetic import write_model
from q4run.gguf_file import GGUFFile, TensorInfo, open_gguf
from q4run.kernels.formats import find_format_named
from q4run.models.published import GEOMETRIES as PUBLISHED
from q4run.models.shapes import Geometry, tensors_of

LLAMA4 = Geometry(
    n_layers=4, n_embd=256, n_head=4, n_head_kv=2, head_dim=64, n_ff=512, n_expert=4, n_vocab=600
)
SHAPES = {
    "llama4": LLAMA4,
    "interleaved": replace(LLAMA4, moe_step=2),
    "llama": replace(LLAMA4, architecture="llama", n_expert=6, n_expert_used=2),
    "qwen3moe": replace(LLAMA4, architecture="qwen3moe", n_expert=16, n_expert_used=4),
}
RESIDUAL_SCALE = 8**-0.5


def values_of(tensor: TensorInfo) -> np.ndarray:
    """float32, in the tensor's shape."""
    with tensor.path.open("rb") as file:
        file.seek(tensor.offset)
        raw = np.frombuffer(file.read(tensor.n_bytes), np.uint8)
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[tensor.type]
    rows = raw.reshape(-1, tensor.shape[-1] // block_size * block_bytes)
    return dequantize(rows, tensor.type).reshape(tensor.shape)


@pytest.mark.parametrize("std", [1.0, 0.03, 0.002])
@pytest.mark.parametrize("name", TYPES)
def test_blocks_have_mean_zero_and_the_deviation_asked_for(name, std):
    block_size, block_bytes = gguf.GGML_QUANT_SIZES[find_type(name)]
    n_blocks = (1 << 17) // block_size
    blocks = random_blocks(name, n_blocks, std, np.random.default_rng(1))
    assert blocks.shape == (n_blocks, block_bytes)
    assert blocks.dtype == np.uint8
    values = dequantize(blocks, find_type(name)).astype(np.float64)
    assert np.isfinite(values).all()
    assert abs(values.mean()) < 0.015 * std
    assert values.std() == pytest.approx(std, rel=0.02)
    assert block_size == 1 or len(np.unique(blocks, axis=0)) == n_blocks


@pytest.mark.parametrize("name", ["q2_k", "q4_1", "q4_k", "q5_1", "q5_k"])
def test_types_with_minima_have_no_offset_in_any_block(name):
    blocks = random_blocks(name, 200, 1.0, np.random.default_rng(2))
    values = dequantize(blocks, find_type(name)).reshape(200, -1)
    assert abs(values.mean(axis=1)).max() < 0.01


@pytest.mark.parametrize("name", ["tq1_0", "tq2_0"])
def test_ternary_blocks_are_those_that_a_quantiser_writes(name):
    blocks = random_blocks(name, 300, 1.0, np.random.default_rng(3))
    blocks[:, -2:] = np.array([1.0], np.float16).view(np.uint8)  # the scale, last in both
    values = dequantize(blocks, find_type(name))
    assert set(np.unique(values)) == {-1.0, 0.0, 1.0}
    assert np.array_equal(quantize(values, find_type(name)), blocks)


def test_q8_0_has_no_minus_128():
    blocks = random_blocks("q8_0", 3000, 1.0, np.random.default_rng(4))
    assert set(np.unique(blocks[:, 2:].view(np.int8))) == set(range(-127, 128))


def test_a_type_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(q4run.Error, match="'q9_9' can be made; choose f32, f16"):
        write_model(tmp_path / "m.gguf", LLAMA4, "q9_9")
    assert not list(tmp_path.iterdir())


def parameters(geometry: Geometry) -> float:
    """Billions of them."""
    return sum(float(np.prod(tensor.shape)) for tensor in tensors_of(geometry)) / 1e9


# As their authors say; vectors, and what predicts several tokens at once, are left out.
BILLIONS = {
    "scout": 107.77,
    "maverick": 400.71,
    "behemoth": 1990.6,
    "mixtral": 46.70,
    "small-scout": 4.50,
    "qwen3-30b-a3b": 30.53,
    "qwen3-235b-a22b": 235.09,
    "qwen3-coder-480b-a35b": 480.15,
    "qwen1.5-moe-a2.7b": 14.3,
    "qwen2-57b-a14b": 57.4,
    "gpt-oss-20b": 20.9,
    "gpt-oss-120b": 116.8,
    "glm-4.5-air": 106.8,
    "glm-4.5": 353,
    "minimax-m2": 228.7,
    "olmoe-1b-7b": 6.92,
    "dots1": 142.7,
    "hunyuan-a13b": 80.4,
    "hy3": 295,
    "ernie-4.5-21b-a3b": 21.83,
    "ling-mini-2.0": 16.26,
    "ling-flash-2.0": 102.9,
    "granite-3.1-1b-a400m": 1.335,
}


def test_the_parameters_of_every_shape_are_known():
    assert BILLIONS.keys() == PUBLISHED.keys()


@pytest.mark.parametrize("name", BILLIONS)
def test_geometries_are_those_of_the_models(name):
    assert parameters(PUBLISHED[name]) == pytest.approx(BILLIONS[name], rel=0.002)


def test_the_small_scout_is_the_issues():
    assert GEOMETRIES["small-scout"] == Geometry(12, 2048, 16, 4, 128, 3072, 16, 128256)


@pytest.fixture(scope="module", params=SHAPES)
def written(request, tmp_path_factory) -> tuple[Geometry, GGUFFile]:
    path = tmp_path_factory.mktemp("written") / "model.gguf"
    geometry = SHAPES[request.param]
    write_model(path, geometry, "q8_0", expert_type="tq2_0")
    return geometry, open_gguf(path)


def test_the_file_has_the_tensors_of_its_geometry(written):
    geometry, file = written
    assert {name: tensor.shape for name, tensor in file.tensors.items()} == {
        tensor.name: tensor.shape for tensor in tensors_of(geometry)
    }
    check_borders(file)
    last = max(file.tensors.values(), key=lambda tensor: tensor.offset)
    assert file.size - (last.offset + last.n_bytes) < 32


def test_experts_have_their_own_type_and_routers_stay_f32(written):
    _, file = written
    for name, tensor in file.tensors.items():
        if len(tensor.shape) == 1 or "ffn_gate_inp" in name:
            assert tensor.type.name == "F32", name
        else:
            assert tensor.type.name == ("TQ2_0" if "_exps" in name else "Q8_0"), name


def test_weights_have_the_size_their_purpose_asks_for(written):
    _, file = written
    for name, tensor in file.tensors.items():
        values = values_of(tensor)
        if values.ndim == 1:
            assert (values == 1).all()
            continue
        std = 1.0 if name == "token_embd.weight" else tensor.shape[-1] ** -0.5
        if "attn_output" in name or "ffn_down" in name:
            std *= RESIDUAL_SCALE
        sampling_error = 5 * values.size**-0.5
        assert values.std() == pytest.approx(std, rel=0.02 + sampling_error), name
        assert abs(values.mean()) < sampling_error * std, name


def test_rows_differ_even_where_the_random_values_are_used_again(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "_POOL_VALUES", 1 << 15)  # a fifth of the embedding
    path = tmp_path / "model.gguf"
    write_model(path, LLAMA4, "q4_0", seed=1)  # of some, chance repeats at whole rows
    rows = values_of(open_gguf(path).tensor("token_embd.weight"))
    assert len(np.unique(rows, axis=0)) > 0.9 * len(rows)


def test_the_same_arguments_give_the_same_bytes(tmp_path):
    paths = [tmp_path / f"{i}.gguf" for i in range(3)]
    for path, seed in zip(paths, (5, 5, 6), strict=True):
        write_model(path, LLAMA4, "q4_k", seed)
    first, again, other = (path.read_bytes() for path in paths)
    assert first == again
    assert first != other
    assert len(first) == len(other)


def test_rows_that_are_no_whole_blocks_are_an_error_and_no_file(tmp_path):
    with pytest.raises(q4run.Error, match=r"rows of 96 values .* not whole q4_k blocks of 256"):
        write_model(tmp_path / "m.gguf", replace(LLAMA4, n_embd=96), "q4_k")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_no_file(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(synthetic._Weights, "write", fail)
    with pytest.raises(OSError, match="No space"):
        write_model(tmp_path / "m.gguf", LLAMA4)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("n_vocab", [259, 260, 5000])
def test_a_vocabulary_of_any_size(tmp_path, n_vocab):
    path = tmp_path / "model.gguf"
    write_model(path, replace(LLAMA4, n_vocab=n_vocab))
    file = open_gguf(path)
    assert len(set(file.get_array("tokenizer.ggml.tokens", str))) == n_vocab
    assert file.tensor("output.weight").shape[0] == n_vocab


def test_a_vocabulary_too_small_is_an_error(tmp_path):
    with pytest.raises(q4run.Error, match="258 tokens is too small: give 259"):
        write_model(tmp_path / "model.gguf", replace(LLAMA4, n_vocab=258))


def test_the_vocabulary_of_another_file(tmp_path):
    """Tokens that are no UTF-8 too, and every scalar type a tokenizer has."""
    source, path = tmp_path / "vocab.gguf", tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(source, "llama")
    writer.add_tokenizer_model("gpt2")
    tokens = [b"a", b"\xff\xfe", "é".encode(), *(b"t%d" % i for i in range(300))]
    writer.add_token_list(tokens)
    writer.add_token_types([1] * len(tokens))
    writer.add_bos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_key_value("tokenizer.odd.score", 0.5, gguf.GGUFValueType.FLOAT32)
    writer.add_context_length(77)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    write_model(path, LLAMA4, vocab=source)
    theirs, ours = open_gguf(source), open_gguf(path)
    keys = {key for key in ours.metadata if key.startswith("tokenizer.")}
    assert keys == {key for key in theirs.metadata if key.startswith("tokenizer.")}
    assert len(keys) == 6
    for key in keys:
        assert ours.metadata[key] == theirs.metadata[key]
        assert type(ours.metadata[key]) is type(theirs.metadata[key])
    assert ours.tensor("token_embd.weight").shape[0] == len(tokens)
    assert ours.get_int("llama4.context_length") != 77


def test_a_real_vocabulary(shared_data, tmp_path):
    path = tmp_path / "model.gguf"
    vocab = shared_data / "vocab" / "ggml-vocab-llama-spm.gguf"
    write_model(path, LLAMA4, "q8_0", vocab=vocab)
    with q4run.load(path, context=16, threads=1) as model:
        ids = model.tokenize("Hello world")
        assert model.detokenize(ids).strip() == "Hello world"
        assert model.config.n_vocab == 32000


@pytest.mark.parametrize("shape", ["llama4", "interleaved", "llama"])
@pytest.mark.parametrize("name", TYPES)
def test_q4run_runs_it(name, shape, tmp_path):
    if find_format_named(name) is None:
        pytest.skip(f"q4run does not run {name} yet")
    path = tmp_path / "model.gguf"
    write_model(path, SHAPES[shape], name)
    with q4run.load(path, context=16, threads=1) as model:
        logits = model.logits([3, 500, 77, 400])
    assert np.isfinite(logits).all()
    # The last norm's unit values through an output matrix that keeps sizes.
    assert logits.std() == pytest.approx(1.0, abs=0.15)


def test_experts_are_used_evenly(tmp_path):
    """Half of the experts in RAM: about half of those wanted are there, if all are as likely."""
    path = tmp_path / "model.gguf"
    write_model(path, replace(LLAMA4, n_layers=8, n_expert=16, n_ff=256), "q8_0")
    with q4run.load(path, context=320, threads=1) as model:
        plan = model.plan
    half = plan.total - plan.slots // 2
    with q4run.load(path, ram_budget=half, context=320, threads=1) as model:
        share = model.plan.n_slots / model.plan.n_experts
        assert 0.3 < share < 0.7
        for i in range(300):
            model.session.step((7 + 31 * i) % 600)
        assert abs(model.stats.hit_rate - share) < 0.15


LOAD_IN_LLAMA_CPP = """
import json, sys
import llama_cpp, numpy
for path in json.load(sys.stdin):
    model = llama_cpp.Llama(path, n_ctx=16, n_threads=1, logits_all=True, verbose=False)
    model.eval([3, 500, 77, 400])
    print(float(numpy.std(model.scores[:4])))
    model.close()
"""


@pytest.mark.skipif(find_spec("llama_cpp") is None, reason="llama-cpp-python is not installed")
def test_llama_cpp_runs_every_type_and_every_form(tmp_path):
    forms = {name: (LLAMA4, name) for name in TYPES}
    forms |= {shape: (geometry, "q4_k") for shape, geometry in SHAPES.items()}
    paths = []
    for name, (geometry, type_name) in forms.items():
        paths.append(str(tmp_path / f"{name}.gguf"))
        write_model(Path(paths[-1]), geometry, type_name)
    done = subprocess.run(  # llama.cpp ends the process where it does not like a file
        [sys.executable, "-c", LOAD_IN_LLAMA_CPP],
        input=json.dumps(paths),
        capture_output=True,
        text=True,
        check=False,
    )
    deviations = dict(zip(forms, map(float, done.stdout.split()), strict=False))
    assert len(deviations) == len(forms), (deviations, done.stderr)
    assert all(0.85 < deviation < 1.15 for deviation in deviations.values()), deviations


@pytest.fixture
def tiny_geometry(monkeypatch):
    monkeypatch.setitem(GEOMETRIES, "tiny", LLAMA4)


def run_main(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["synthetic", *map(str, arguments)])
    synthetic.main()


def test_the_command(tmp_path, tiny_geometry, monkeypatch):
    path = tmp_path / "out.gguf"
    options = "--geometry tiny --layers 5 --type q6_k --expert-type q2_k --vocab-size 700 --seed 3"
    run_main(monkeypatch, path, *options.split())
    expected = tmp_path / "expected.gguf"
    geometry = replace(LLAMA4, n_layers=5, n_vocab=700)
    write_model(expected, geometry, "q6_k", 3, expert_type="q2_k")
    assert path.read_bytes() == expected.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["out.gguf", "--type", "q9_9"], "error: no random blocks of the type 'q9_9'"),
        (["nowhere/out.gguf"], "error: .*nowhere"),
        (["out.gguf", "--vocab", "absent.gguf"], "error: .*absent.gguf"),
    ],
)
def test_the_command_says_what_is_wrong(arguments, message, tmp_path, tiny_geometry, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match=message):
        run_main(monkeypatch, *arguments, "--geometry", "tiny")
    assert not list(Path().iterdir())


@pytest.mark.parametrize("option", ["--layers", "--vocab-size"])
@pytest.mark.parametrize("number", ["0", "-1", "x"])
def test_the_command_wants_numbers_above_zero(option, number, monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        run_main(monkeypatch, "out.gguf", f"{option}={number}")
    assert ended.value.code == 2
    assert f"'{number}' is not a number above 0" in capsys.readouterr().err
