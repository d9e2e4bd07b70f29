"""Bad checkpoints: each is refused with an error that names the thing at fault, and no output."""

import json
import random

import ml_dtypes
import numpy as np
import pytest
from helpers.converting import edit_json, edit_tensors, load_checkpoint, save_checkpoint
from helpers.tiny_checkpoints import make_checkpoint

from q4run.convert import convert
from q4run.convert.source.safetensors_file import read_directory
from q4run.errors import Error, FormatError, UnsupportedError

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@pytest.fixture
def llama(tmp_path):
    return make_checkpoint("llama_gqa", tmp_path / "llama")


@pytest.fixture
def llama4(tmp_path):
    return make_checkpoint("llama4_maverick", tmp_path / "llama4")


@pytest.fixture
def sharded(tmp_path):
    return make_checkpoint("mixtral_sharded", tmp_path / "sharded")


def refuse(folder, kind: type[Error], *parts: str, type_name: str = "q8_0") -> str:
    """The conversion fails with exactly this kind of error, one line that holds all parts."""
    out = folder.parent / "out"
    out.mkdir(exist_ok=True)
    with pytest.raises(Error) as error:
        convert(folder, out / "model.gguf", type=type_name)
    message = str(error.value)
    assert error.type is kind, message
    assert "\n" not in message
    for part in parts:
        assert part in message
    assert list(out.iterdir()) == []
    return message


def test_no_such_folder(tmp_path):
    refuse(tmp_path / "nowhere", Error, "nowhere", "no such folder")


def test_a_file_that_is_no_model(tmp_path):
    (tmp_path / "source.gguf").write_bytes(b"GGUF")
    refuse(tmp_path / "source.gguf", FormatError, "source.gguf")
    (tmp_path / "model.txt").write_bytes(b"weights, if you will")
    refuse(tmp_path / "model.txt", FormatError, "model.txt")
    refuse(tmp_path / "missing.gguf", Error, "missing.gguf")


def test_no_config(llama):
    (llama / "config.json").unlink()
    refuse(llama, FormatError, "config.json")


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"a": 1', "\x00", '{"a": "\ud800"}', "[" * 100_000]
)
def test_config_that_is_no_json_object(text, llama):
    (llama / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    refuse(llama, FormatError, "config.json")


@pytest.mark.parametrize(
    ("architectures", "named"),
    [(["GemmaForCausalLM"], "GemmaForCausalLM"), (None, "no architecture"), ([], "architecture")],
)
def test_unknown_architecture(architectures, named, llama):
    edit_json(llama / "config.json", architectures=architectures)
    message = refuse(llama, UnsupportedError, named)
    if architectures:
        assert "Llama4ForCausalLM" in message


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "'gelu'"),
        ({"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}, "'dynamic'"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}, "'mrope'"),
        ({"rope_parameters": {"rope_type": "proportional"}}, "'proportional'"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 1e4}}}, "by layer"),
        ({"sliding_window": 512}, "sliding_window (512)"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "gptq"),
        ({"quantization_config": {}}, "unknown"),
        (
            {"quantization_config": {"quant_method": "compressed-tensors", "format": "int"}},
            "compressed-tensors, int",
        ),
        ({"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}, "NVFP4"),
    ],
)
def test_features_the_runtime_does_not_have(changes, named, llama):
    edit_json(llama / "config.json", **changes)
    refuse(llama, UnsupportedError, "config.json", named)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"moe_layers": [0, 1]}, "moe_layers"),
        ({"interleave_moe_layer_step": 0}, "without expert layers"),
        ({"moe_layers": [], "interleave_moe_layer_step": 7}, "without expert layers"),
        ({"layer_types": ["sliding_attention"] * 6}, "sliding_attention"),
    ],
)
def test_llama4_forms_that_gguf_cannot_tell(changes, named, llama4):
    edit_json(llama4 / "config.json", **changes)
    refuse(llama4, UnsupportedError, named)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", "64"),
        ("hidden_size", 0),
        ("hidden_size", -64),
        ("hidden_size", 64.0),
        ("hidden_size", True),
        ("hidden_size", 2**40),
        ("hidden_size", None),
        ("hidden_size", 10**30),
        ("num_attention_heads", 3),
        ("num_key_value_heads", 3),
        ("head_dim", 15),
        ("rms_norm_eps", "small"),
        ("rms_norm_eps", 0),
        ("rope_theta", float("nan")),
        ("rope_theta", float("inf")),
        ("rope_scaling", "llama3"),
        ("rope_scaling", {"rope_type": "linear"}),
        ("rope_scaling", {"rope_type": "yarn", "factor": 0}),
        ("rope_scaling", {"rope_type": "longrope", "long_factor": [1.0], "short_factor": [1.0]}),
        ("rope_scaling", {"rope_type": "longrope", "long_factor": [0.0] * 8, "short_factor": 1}),
        ("partial_rotary_factor", 0.05),
        ("hidden_act", 3),
        ("vocab_size", 10**9),
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", []),
        ("architectures", "LlamaForCausalLM"),
        ("architectures", [3]),
        ("max_position_embeddings", {}),
        ("tie_word_embeddings", "yes"),
    ],
)
def test_impossible_hyperparameters(key, value, llama):
    edit_json(llama / "config.json", **{key: value})
    if key in ("num_attention_heads", "head_dim"):
        edit_json(llama / "config.json", num_key_value_heads=1)
    refuse(llama, FormatError)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"num_experts_per_tok": 9}, "num_experts_per_tok"),
        ({"no_rope_layers": [1, 0]}, "no_rope_layers"),
        ({"no_rope_layers": ["x"] * 6}, "no_rope_layers"),
        ({"layer_types": ["full_attention"]}, "layer_types"),
        ({"num_local_experts": 10**9}, "router"),
        ({"attention_chunk_size": -1}, "attention_chunk_size"),
    ],
)
def test_impossible_hyperparameters_of_llama4(changes, named, llama4):
    edit_json(llama4 / "config.json", **changes)
    refuse(llama4, FormatError, named)


def test_missing_tensors_are_named_all_at_once(llama):
    names = [f"model.layers.{layer}.self_attn.q_proj.weight" for layer in range(3)]
    edit_tensors(llama, **dict.fromkeys([*names, "lm_head.weight"]))
    refuse(llama, FormatError, "missing tensors", "lm_head.weight", names[0], "1 more")


def test_a_wrong_shape_is_told_with_both_shapes(llama):
    edit_tensors(llama, **{"model.norm.weight": np.ones(63, np.float32)})
    refuse(llama, FormatError, "model.norm.weight", "[63]", "[64]")


def test_left_over_tensors(llama):
    extra = {f"model.layers.0.adapter.{n}": np.ones(2, np.float32) for n in range(5)}
    edit_tensors(llama, **extra)
    refuse(llama, UnsupportedError, "model.layers.0.adapter.0", "2 more")


def test_layers_beyond_the_configured_ones_are_left_over(llama):
    edit_json(llama / "config.json", num_hidden_layers=2)
    refuse(llama, UnsupportedError, "model.layers.2.")


@pytest.mark.parametrize("dtype", ["F8_E4M3", "I8", "F64"])
def test_a_stored_type_that_is_not_read(dtype, llama):
    path = llama / "model.safetensors"
    size = 8 if dtype == "F64" else 1
    tensors = load_checkpoint(llama) | {"model.norm.weight": np.zeros(32 * size, BFLOAT16)}
    save_checkpoint(path, tensors)
    edit_header(path, "model.norm.weight", dtype=dtype, shape=[64])
    refuse(llama, UnsupportedError, "model.norm.weight", dtype)


def edit_header(path, name: str, **changes) -> None:
    """Changes the entry of one tensor, and nothing else, in a safetensors file."""
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header[name] |= changes
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[start:])


@pytest.mark.parametrize(
    "changes",
    [
        {"shape": [65]},
        {"shape": [-64]},
        {"shape": [64.0]},
        {"shape": "64"},
        {"shape": [2**62, 2**62]},
        {"shape": [1] * 9 + [64]},
        {"dtype": "F33"},
        {"dtype": 3},
        {"dtype": None},
        {"data_offsets": [0, 128]},
        {"data_offsets": [0, 2**62]},
        {"data_offsets": [128, 0]},
        {"data_offsets": [2**70, 2**70 + 128]},
        {"data_offsets": [True, 128]},
        {"data_offsets": [0]},
        {"data_offsets": None},
    ],
)
def test_a_header_that_contradicts_itself(changes, llama):
    edit_header(llama / "model.safetensors", "model.norm.weight", **changes)
    refuse(llama, FormatError, "model.safetensors", "tensor '")


def test_a_header_with_one_name_twice(llama):
    path = llama / "model.safetensors"
    text = (
        b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
        b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    )
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(4))
    refuse(llama, FormatError, "twice")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"1234567",
        bytes(8),
        b"\xff" * 8,
        b"\xff" * 16,
        (2).to_bytes(8, "little") + b"[]",
        (2).to_bytes(8, "little") + b"{}",
        (4).to_bytes(8, "little") + b"\xff\xfe{}",
    ],
)
def test_files_that_are_no_safetensors(data, llama):
    (llama / "model.safetensors").write_bytes(data)
    refuse(llama, FormatError)


def test_truncated_anywhere(llama):
    path = llama / "model.safetensors"
    data = path.read_bytes()
    for length in (7, 8, 100, 3000, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        refuse(llama, FormatError, "model.safetensors")
    path.write_bytes(data + b"\x00")
    refuse(llama, FormatError, "model.safetensors", "truncated or damaged")


def test_random_damage_to_the_header_never_crashes(llama):
    """Each flipped byte either does not matter or is told as a `FormatError`."""
    path = llama / "model.safetensors"
    data = path.read_bytes()
    n_header = 8 + int.from_bytes(data[:8], "little")
    numbers = random.Random(0)
    messages = []
    for _ in range(1000):
        damaged = bytearray(data)
        for _ in range(numbers.randint(1, 3)):
            damaged[numbers.randrange(n_header)] = numbers.randrange(256)
        path.write_bytes(damaged)
        try:
            read_directory(path)
        except FormatError as error:
            messages.append(str(error))
    assert len(messages) > 300
    assert all("model.safetensors" in message for message in messages)


def test_a_missing_shard_is_named(sharded):
    (sharded / "model-00002-of-00003.safetensors").unlink()
    refuse(sharded, FormatError, "model-00002-of-00003.safetensors")
    # Without the index, its number is missed.
    (sharded / "model.safetensors.index.json").unlink()
    refuse(sharded, FormatError, "set of 3 files", "2 are there")


def test_shards_without_an_index_are_enough(sharded, tmp_path):
    (sharded / "model.safetensors.index.json").unlink()
    assert convert(sharded, tmp_path / "model.gguf", type="f16").written


@pytest.mark.parametrize(
    "weight_map",
    [
        None,
        {},
        [],
        {"a": 3},
        {"a": "../other/model.safetensors"},
        {"a": "/etc/passwd"},
        {"a": ""},
        {"a": ".."},
    ],
)
def test_an_index_that_points_nowhere_sound(weight_map, sharded):
    edit_json(sharded / "model.safetensors.index.json", weight_map=weight_map)
    refuse(sharded, FormatError, "model.safetensors.index.json")


def test_one_tensor_in_two_shards(sharded):
    first, second = sorted(sharded.glob("*.safetensors"))[:2]
    second.write_bytes(first.read_bytes())
    refuse(sharded, FormatError, "is also in")


def test_pytorch_files_only(llama):
    (llama / "model.safetensors").rename(llama / "pytorch_model.bin")
    refuse(llama, UnsupportedError, "*.safetensors")
    (llama / "pytorch_model.bin").unlink()
    refuse(llama, FormatError, "*.safetensors")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(value, llama):
    name = "model.layers.1.mlp.up_proj.weight"
    weights = load_checkpoint(llama)[name].copy()
    weights[5, 7] = value
    edit_tensors(llama, **{name: weights})
    refuse(llama, FormatError, "blk.1.ffn_up.weight", "not all finite")


@pytest.mark.parametrize("type_name", ["f16", "q8_0", "q4_0"])
def test_values_too_large_for_the_type(type_name, llama, tmp_path):
    name = "model.layers.1.mlp.up_proj.weight"
    weights = load_checkpoint(llama)[name].copy()
    weights[5, 7] = -1e6
    edit_tensors(llama, **{name: weights})
    refuse(llama, Error, "blk.1.ffn_up.weight", "too large", "bf16", type_name=type_name)
    assert convert(llama, tmp_path / "model.gguf", type="bf16").written


def test_a_weight_file_that_shrinks_meanwhile(llama, tmp_path):
    path = llama / "model.safetensors"

    def truncate(done: int, total: int) -> None:
        with path.open("r+b") as file:
            file.truncate(20_000)

    with pytest.raises(FormatError, match="ends within tensor"):
        convert(llama, tmp_path / "model.gguf", type="f32", progress=truncate)
    assert not [path for path in tmp_path.iterdir() if path != llama]
