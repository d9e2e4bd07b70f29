"""Conversion of whole checkpoints: names, shapes, values, types and keys of what is written."""

import json
import shutil
import tracemalloc

import numpy as np
import pytest
from helpers.converting import (
    check_borders,
    edit_json,
    load_checkpoint,
    read_gguf,
    save_checkpoint,
    values_of,
)
from helpers.tiny_checkpoints import CASES, Case, case_named, make_checkpoint

from q4run.convert import convert
from q4run.convert.output import stream
from q4run.errors import BudgetError, UnsupportedError
from q4run.gguf_file import open_gguf
from q4run.kernels.formats import all_formats, find_format_named

QUANTISABLE = ["llama4_quantisable", "llama_quantisable", "mixtral_quantisable"]
TYPES = ["f32", "f16", "bf16", "q8_0", "q4_0", "tq1_0", "tq2_0"]


@pytest.fixture(scope="module")
def checkpoint_of(tmp_path_factory):
    """The checkpoint folder of a case, made once."""
    made = {}

    def make(name: str):
        if name not in made:
            made[name] = make_checkpoint(name, tmp_path_factory.mktemp("checkpoint") / name)
        return made[name]

    return make


@pytest.fixture
def own_checkpoint_of(checkpoint_of, tmp_path):
    """A copy of a case's checkpoint that the test may change."""

    def make(name: str):
        return shutil.copytree(checkpoint_of(name), tmp_path / name)

    return make


def rope_pairs(matrix: np.ndarray, head_dim: int) -> np.ndarray:
    """Rows i and i + head_dim/2 of every head become neighbours: written out row by row."""
    rows = []
    for head in range(0, len(matrix), head_dim):
        for i in range(head_dim // 2):
            rows += [matrix[head + i], matrix[head + i + head_dim // 2]]
    return np.array(rows)


def expected_tensors(case: Case, stored: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the f32 file must hold, from the checkpoint's arrays (rope_freqs apart)."""
    prefix = "language_model." if case.conditional else ""
    hf = {name.removeprefix(prefix): array.astype(np.float32) for name, array in stored.items()}
    config = case.text_config
    head_dim = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    result = {
        "token_embd.weight": hf["model.embed_tokens.weight"],
        "output_norm.weight": hf["model.norm.weight"],
    }
    if not config["tie_word_embeddings"]:
        result["output.weight"] = hf["lm_head.weight"]
    for layer in range(config["num_hidden_layers"]):
        base, block = f"model.layers.{layer}", f"blk.{layer}"
        result[f"{block}.attn_norm.weight"] = hf[f"{base}.input_layernorm.weight"]
        result[f"{block}.ffn_norm.weight"] = hf[f"{base}.post_attention_layernorm.weight"]
        for letter in "qkvo":
            name = "attn_output" if letter == "o" else f"attn_{letter}"
            matrix = hf[f"{base}.self_attn.{letter}_proj.weight"]
            if letter in "qk" and case.family != "llama4":
                matrix = rope_pairs(matrix, head_dim)
            result[f"{block}.{name}.weight"] = matrix
        result |= expected_ffn(case, hf, layer)
    return result


def expected_ffn(case: Case, hf: dict[str, np.ndarray], layer: int) -> dict[str, np.ndarray]:
    block = f"blk.{layer}"
    if case.family == "llama":
        base = f"model.layers.{layer}.mlp"
        return {
            f"{block}.ffn_{part}.weight": hf[f"{base}.{part}_proj.weight"]
            for part in ("gate", "up", "down")
        }
    if case.family == "mixtral":
        base = f"model.layers.{layer}.block_sparse_moe"
        experts = range(case.text_config["num_local_experts"])
        return {f"{block}.ffn_gate_inp.weight": hf[f"{base}.gate.weight"]} | {
            f"{block}.ffn_{part}_exps.weight": np.array(
                [hf[f"{base}.experts.{expert}.{matrix}.weight"] for expert in experts]
            )
            for part, matrix in (("gate", "w1"), ("up", "w3"), ("down", "w2"))
        }
    base = f"model.layers.{layer}.feed_forward"
    if f"{base}.router.weight" not in hf:
        return {
            f"{block}.ffn_{part}.weight": hf[f"{base}.{part}_proj.weight"]
            for part in ("gate", "up", "down")
        }
    gate_up, down = hf[f"{base}.experts.gate_up_proj"], hf[f"{base}.experts.down_proj"]
    n_ff = gate_up.shape[2] // 2
    return {
        f"{block}.ffn_gate_inp.weight": hf[f"{base}.router.weight"],
        f"{block}.ffn_gate_exps.weight": np.array([expert[:, :n_ff].T for expert in gate_up]),
        f"{block}.ffn_up_exps.weight": np.array([expert[:, n_ff:].T for expert in gate_up]),
        f"{block}.ffn_down_exps.weight": np.array([expert.T for expert in down]),
    } | {
        f"{block}.ffn_{part}_shexp.weight": hf[f"{base}.shared_expert.{part}_proj.weight"]
        for part in ("gate", "up", "down")
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_f32_holds_the_checkpoints_values_exactly(case, checkpoint_of, tmp_path):
    folder = checkpoint_of(case.name)
    convert(folder, tmp_path / "model.gguf", type="f32")
    _, tensors = read_gguf(tmp_path / "model.gguf")
    tensors.pop("rope_freqs.weight", None)
    expected = expected_tensors(case, load_checkpoint(folder))
    assert tensors.keys() == expected.keys()
    for name, array in expected.items():
        assert np.array_equal(values_of(tensors[name]), array), name


def test_one_slice_of_the_trained_model(shared_data, tmp_path):
    folder = shared_data / "weights" / "tiny-llama4"
    convert(folder, tmp_path / "tiny.gguf", type="bf16")
    values, tensors = read_gguf(tmp_path / "tiny.gguf")
    stored = load_checkpoint(folder)["model.layers.2.feed_forward.experts.gate_up_proj"]
    written = values_of(tensors["blk.2.ffn_up_exps.weight"])
    assert np.array_equal(written[3], stored[3, :, 256:].T.astype(np.float32))
    assert values["general.architecture"] == "llama4"
    assert not [key for key in values if key.startswith("llama4.attention.chunk")]
    assert values["tokenizer.ggml.eos_token_id"] == values["tokenizer.ggml.eot_token_id"] == 4093
    assert values["tokenizer.ggml.eom_token_id"] == 4092


@pytest.mark.parametrize("name", QUANTISABLE)
@pytest.mark.parametrize("type_name", TYPES)
def test_every_type_is_what_its_codec_makes_of_the_whole_tensor(
    type_name, name, checkpoint_of, tmp_path
):
    case = case_named(name)
    summary = convert(checkpoint_of(name), tmp_path / "model.gguf", type=type_name)
    values, tensors = read_gguf(tmp_path / "model.gguf")
    expected = expected_tensors(case, load_checkpoint(checkpoint_of(name)))
    ternary = type_name.startswith("tq")
    for tensor_name, array in expected.items():
        always_f32 = array.ndim == 1 or "ffn_gate_inp" in tensor_name
        wanted = "f32" if always_f32 else type_name
        if ternary and tensor_name in ("token_embd.weight", "output.weight"):
            wanted = "q8_0"
        output = "output.weight" if "output.weight" in expected else "token_embd.weight"
        if type_name == "q4_0" and tensor_name == output:
            wanted = "q6_k"
        tensor = tensors[tensor_name]
        assert tensor.tensor_type.name.lower() == wanted, tensor_name
        raw = find_format_named(wanted).quantize(array)
        assert tensor.data.tobytes() == raw.tobytes(), tensor_name
    assert values["general.quantization_version"] == 2
    assert ("ternary" in " ".join(summary.notes)) == ternary


def test_expert_type_is_for_the_routed_experts_only(checkpoint_of, tmp_path):
    summary = convert(
        checkpoint_of("llama4_quantisable"),
        tmp_path / "model.gguf",
        type="q8_0",
        expert_type="q4_0",
    )
    values, tensors = read_gguf(tmp_path / "model.gguf")
    types = {name: tensor.tensor_type.name for name, tensor in tensors.items()}
    assert types["blk.1.ffn_up_exps.weight"] == types["blk.1.ffn_down_exps.weight"] == "Q4_0"
    assert types["blk.1.ffn_up_shexp.weight"] == types["token_embd.weight"] == "Q8_0"
    assert types["blk.1.ffn_gate_inp.weight"] == types["blk.0.attn_norm.weight"] == "F32"
    by_use = {count.use: count.type for count in summary.counts}
    assert by_use["routed experts"] == "q4_0"
    assert by_use["matrix"] == "q8_0"
    assert values["general.file_type"] == 7  # most weights of this one are outside the experts


def test_rows_that_fit_no_block_fall_back(checkpoint_of, tmp_path):
    summary = convert(checkpoint_of("llama_mha_odd"), tmp_path / "model.gguf", type="tq1_0")
    _, tensors = read_gguf(tmp_path / "model.gguf")
    assert tensors["blk.0.attn_q.weight"].tensor_type.name == "Q4_0"  # 64 values: no 256
    assert tensors["blk.0.ffn_down.weight"].tensor_type.name == "F16"  # 44 values: no 32 either
    assert tensors["token_embd.weight"].tensor_type.name == "Q8_0"
    notes = " ".join(summary.notes)
    assert "q4_0 instead of tq1_0, because rows of 64 values" in notes
    assert "f16 instead of tq1_0, because rows of 44 values" in notes
    ternary_only = expected_tensors(
        case_named("llama_mha_odd"), load_checkpoint(checkpoint_of("llama_mha_odd"))
    )["blk.0.ffn_down.weight"]
    assert np.allclose(values_of(tensors["blk.0.ffn_down.weight"]), ternary_only, rtol=1e-3)


def test_whole_pages_begin_on_borders(checkpoint_of, tmp_path):
    summary = convert(checkpoint_of("llama_gqa"), tmp_path / "model.gguf", type="q4_0")
    values, _ = read_gguf(tmp_path / "model.gguf")
    assert not values["q4run.padding"].strip(" ")
    check_borders(open_gguf(tmp_path / "model.gguf"))
    assert (tmp_path / "model.gguf").stat().st_size == summary.size_after


def test_keys_of_llama4(checkpoint_of, tmp_path):
    convert(checkpoint_of("llama4_maverick"), tmp_path / "model.gguf", type="f32")
    values, _ = read_gguf(tmp_path / "model.gguf")
    ours = {key: value for key, value in values.items() if key.startswith("llama4.")}
    assert ours == {
        "llama4.block_count": 6,
        "llama4.context_length": 1024,
        "llama4.embedding_length": 64,
        "llama4.feed_forward_length": 96,
        "llama4.expert_feed_forward_length": 64,
        "llama4.vocab_size": 320,
        "llama4.attention.head_count": 4,
        "llama4.attention.head_count_kv": 2,
        "llama4.attention.key_length": 16,
        "llama4.attention.value_length": 16,
        "llama4.attention.layer_norm_rms_epsilon": pytest.approx(1e-5),
        "llama4.rope.dimension_count": 16,
        "llama4.rope.freq_base": 10000.0,
        "llama4.expert_count": 8,
        "llama4.expert_used_count": 1,
        "llama4.interleave_moe_layer_step": 2,
        "llama4.attention.chunk_size": 12,
        "llama4.attention.temperature_length": 4,
        "llama4.attention.temperature_scale": pytest.approx(0.3),
        "llama4.attention.qk_norm": False,
    }


def test_keys_of_mixtral(checkpoint_of, tmp_path):
    convert(checkpoint_of("mixtral_top_2"), tmp_path / "model.gguf", type="f32")
    values, _ = read_gguf(tmp_path / "model.gguf")
    assert values["general.architecture"] == "llama"
    assert (values["llama.expert_count"], values["llama.expert_used_count"]) == (4, 2)
    assert values["llama.feed_forward_length"] == 96
    assert values["llama.rope.dimension_count"] == 16


DEFAULTS = {"attention_chunk_size": 8192, "floor_scale": 8192, "attn_scale": 0.1}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, {}),
        ({"no_rope_layers": []}, {}),
        ({"layer_types": ["chunked_attention"] * 3 + ["full_attention", "chunked_attention"]}, {}),
        ({"attention_chunk_size": 0}, {"chunk_size": 0}),
        (
            {"attn_temperature_tuning": False},
            {"temperature_length": 8192, "temperature_scale": 0.0},
        ),
        ({"attn_temperature_tuning": 4}, {}),  # as Scout's first config.json has it
        ({"floor_scale": 16}, {"temperature_length": 16, "temperature_scale": pytest.approx(0.1)}),
        ({"use_qk_norm": False}, {"qk_norm": False}),
        ({"no_rope_layers": [1, 0, 1, 0, 1]}, {"no_rope_layers": [1, 0, 1, 0, 1]}),
        (
            {"no_rope_layer_interval": 2},
            {"no_rope_layers": [1, 0, 1, 0, 1]},
        ),
        ({"layer_types": ["full_attention"] * 5}, {"layer_chunked": [0] * 5}),
    ],
)
def test_own_keys_only_where_llama_cpp_assumes_otherwise(
    changes, expected, own_checkpoint_of, tmp_path
):
    folder = own_checkpoint_of("llama4_qk_norm")
    edit_json(folder / "config.json", **(DEFAULTS | changes))
    summary = convert(folder, tmp_path / "model.gguf", type="f32")
    values, _ = read_gguf(tmp_path / "model.gguf")
    standard = {"head_count", "head_count_kv", "key_length", "value_length"}
    own = {
        key.removeprefix("llama4.attention."): value
        for key, value in values.items()
        if key.startswith("llama4.attention.")
    }
    own = {key: own[key] for key in own.keys() - standard - {"layer_norm_rms_epsilon"}}
    assert own == expected
    assert any("llama.cpp ignores" in note for note in summary.notes) == bool(expected)


def llama3_factor(frequency: float, rope: dict) -> float:
    """What Llama 3.1 divides a frequency by, after its description."""
    wavelength = 2 * np.pi / frequency
    context = rope["original_max_position_embeddings"]
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    if wavelength < context / high:
        return 1.0
    if wavelength > context / low:
        return rope["factor"]
    share = (context / wavelength - low) / (high - low)
    return 1 / ((1 - share) / rope["factor"] + share)


@pytest.mark.parametrize("name", ["llama4_scout", "llama_rope_scaling"])
@pytest.mark.parametrize("new_form", [False, True])
def test_rope_factors(name, new_form, own_checkpoint_of, tmp_path):
    folder = own_checkpoint_of(name)
    config = case_named(name).text_config
    rope = config["rope_scaling"]
    if new_form:
        edit_json(
            folder / "config.json",
            rope_scaling=None,
            rope_theta=None,
            rope_parameters=rope | {"rope_theta": config["rope_theta"]},
        )
    convert(folder, tmp_path / "model.gguf", type="q4_0")
    values, tensors = read_gguf(tmp_path / "model.gguf")
    head_dim = config["head_dim"]
    expected = [
        llama3_factor(config["rope_theta"] ** (-i / head_dim), rope) for i in range(0, head_dim, 2)
    ]
    factors = values_of(tensors["rope_freqs.weight"])
    assert factors.shape == (head_dim // 2,)
    assert np.allclose(factors, expected, rtol=1e-5)
    assert len(set(np.round(factors, 3))) > 1
    assert tensors["rope_freqs.weight"].tensor_type.name == "F32"
    assert values[f"{values['general.architecture']}.rope.freq_base"] == config["rope_theta"]


def test_no_rope_factors_without_scaling(checkpoint_of, tmp_path):
    convert(checkpoint_of("llama4_no_qk_norm"), tmp_path / "model.gguf", type="f32")
    values, tensors = read_gguf(tmp_path / "model.gguf")
    assert "rope_freqs.weight" not in tensors
    assert values["llama4.rope.freq_base"] == 500000.0


def test_vision_is_left_out_and_told(checkpoint_of, tmp_path):
    summary = convert(checkpoint_of("llama4_conditional"), tmp_path / "model.gguf", type="f32")
    assert any("3 vision tensors were left out" in note for note in summary.notes)


def test_shards_make_the_same_file(checkpoint_of, own_checkpoint_of, tmp_path):
    sharded = checkpoint_of("mixtral_sharded")
    single = own_checkpoint_of("mixtral_sharded")
    tensors = load_checkpoint(sharded)
    for path in single.glob("model*"):
        path.unlink()
    save_checkpoint(single / "model.safetensors", tensors)
    convert(sharded, tmp_path / "sharded.gguf", type="q4_0")
    convert(single, tmp_path / "single.gguf", type="q4_0")
    assert (tmp_path / "sharded.gguf").read_bytes() == (tmp_path / "single.gguf").read_bytes()


def test_stacked_experts_of_transformers_5_make_the_same_file(
    checkpoint_of, own_checkpoint_of, tmp_path
):
    stacked = own_checkpoint_of("mixtral_top_2")
    tensors = load_checkpoint(stacked)
    for layer in range(3):
        old, new = f"model.layers.{layer}.block_sparse_moe", f"model.layers.{layer}.mlp"
        tensors[f"{new}.gate.weight"] = tensors.pop(f"{old}.gate.weight")
        w1, w2, w3 = (
            [tensors.pop(f"{old}.experts.{expert}.{matrix}.weight") for expert in range(4)]
            for matrix in ("w1", "w2", "w3")
        )
        tensors[f"{new}.experts.gate_up_proj"] = np.concatenate([w1, w3], axis=1)
        tensors[f"{new}.experts.down_proj"] = np.array(w2)
    save_checkpoint(stacked / "model.safetensors", tensors)
    convert(checkpoint_of("mixtral_top_2"), tmp_path / "separate.gguf", type="q8_0")
    convert(stacked, tmp_path / "stacked.gguf", type="q8_0")
    assert (tmp_path / "separate.gguf").read_bytes() == (tmp_path / "stacked.gguf").read_bytes()


@pytest.mark.parametrize("n_threads", [1, 5])
@pytest.mark.parametrize("name", ["llama4_quantisable", "mixtral_sharded", "llama_mha_odd"])
def test_small_blocks_and_any_threads_make_the_same_file(
    name, n_threads, checkpoint_of, tmp_path, monkeypatch
):
    convert(checkpoint_of(name), tmp_path / "whole.gguf", type="q8_0")
    # A few rows at a time, that do not divide the matrices evenly; heads are cut through.
    plan = stream.BlockPlan(block_values=3 * 256, read_values=7 * 256, n_threads=n_threads)
    monkeypatch.setattr("q4run.convert.pipeline.plan_blocks", lambda *_: plan)
    monkeypatch.setattr("q4run.convert.tensors.BAND_BYTES", 4 * 512 * 5)
    convert(checkpoint_of(name), tmp_path / "parts.gguf", type="q8_0")
    assert (tmp_path / "whole.gguf").read_bytes() == (tmp_path / "parts.gguf").read_bytes()


@pytest.mark.parametrize(
    "fmt", [fmt for fmt in all_formats() if fmt.can_quantize], ids=lambda fmt: fmt.name
)
def test_codecs_keep_within_the_memory_reckoned_for_them(fmt):
    values = np.random.default_rng(0).standard_normal((256, 1024)).astype(np.float32)
    fmt.quantize(values[:1])
    tracemalloc.start()
    fmt.quantize(values)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (peak + values.nbytes) / values.size <= stream.QUANTIZE_BYTES_PER_VALUE


def test_block_plans_fit_the_memory_they_are_given(checkpoint_of, tmp_path, monkeypatch):
    # What a process holds differs from run to run, and grows while it plans.
    held = iter(range(100_000_000, 110_000_000, 1_500_000))
    for module in ("pipeline", "output.memory"):
        monkeypatch.setattr(f"q4run.convert.{module}.held_memory", lambda: next(held))
    with pytest.raises(BudgetError, match=r"allow it --max-ram (\d+)M") as error:
        convert(checkpoint_of("llama4_scout"), tmp_path / "model.gguf", type="f32", max_ram=10**6)
    assert not list(tmp_path.glob("*.gguf"))
    least = int(str(error.value).rsplit(" ", 1)[1].removesuffix("M"))
    summary = convert(
        checkpoint_of("llama4_scout"), tmp_path / "model.gguf", type="f32", max_ram=least * 10**6
    )
    assert summary.written


def test_tied_embeddings_have_no_output_matrix(own_checkpoint_of, tmp_path):
    folder = own_checkpoint_of("llama_tied")
    convert(folder, tmp_path / "without.gguf", type="f32")
    tensors = load_checkpoint(folder)
    # Some checkpoints hold the matrix a second time.
    save_checkpoint(
        folder / "model.safetensors",
        tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]},
    )
    convert(folder, tmp_path / "with.gguf", type="f32")
    assert (tmp_path / "without.gguf").read_bytes() == (tmp_path / "with.gguf").read_bytes()
    assert "output.weight" not in read_gguf(tmp_path / "with.gguf")[1]


def test_stored_frequencies_are_ignored(own_checkpoint_of, tmp_path):
    folder = own_checkpoint_of("llama_gqa")
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    save_checkpoint(
        folder / "model.safetensors", load_checkpoint(folder) | {name: np.ones(8, np.float32)}
    )
    assert convert(folder, tmp_path / "model.gguf", type="f32").notes == []


@pytest.mark.parametrize("window", [None, 1024, 4096])
def test_a_sliding_window_that_never_acts_is_fine(window, own_checkpoint_of, tmp_path):
    folder = own_checkpoint_of("llama_gqa")
    edit_json(folder / "config.json", architectures=["MistralForCausalLM"], sliding_window=window)
    assert convert(folder, tmp_path / "model.gguf", type="f32").written


def test_the_name_of_a_hub_cache_is_the_repositorys(own_checkpoint_of, tmp_path):
    folder = tmp_path / "models--someone--A-Model" / "snapshots" / ("0" * 40)
    shutil.copytree(own_checkpoint_of("llama_gqa"), folder)
    convert(folder, tmp_path / "model.gguf", type="f32")
    assert read_gguf(tmp_path / "model.gguf")[0]["general.name"] == "A-Model"


def test_summary_adds_up(checkpoint_of, tmp_path):
    folder = checkpoint_of("mixtral_quantisable")
    summary = convert(folder, tmp_path / "model.gguf", type="q8_0", expert_type="q4_0")
    _, tensors = read_gguf(tmp_path / "model.gguf")
    assert summary.n_tensors == len(tensors)
    assert summary.n_values == sum(int(tensor.n_elements) for tensor in tensors.values())
    n_bytes = sum(int(tensor.n_bytes) for tensor in tensors.values())
    assert summary.bits_per_weight == pytest.approx(8 * n_bytes / summary.n_values)
    assert summary.size_before == (folder / "model.safetensors").stat().st_size
    assert json.loads(json.dumps(summary.as_dict()))["bits_per_weight"] == summary.bits_per_weight


def test_an_unknown_type_is_named(checkpoint_of, tmp_path):
    with pytest.raises(UnsupportedError, match=r"'q9_9' is not supported \(known: f32, "):
        convert(checkpoint_of("llama_gqa"), tmp_path / "model.gguf", type="q9_9")
    with pytest.raises(UnsupportedError, match="'int4'"):
        convert(checkpoint_of("llama_gqa"), tmp_path / "m.gguf", type="f16", expert_type="int4")
