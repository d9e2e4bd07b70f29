"""Which type each tensor gets: recipes, patterns, and the best within a size."""

import json

import ml_dtypes
import numpy as np
import pytest
from helpers.commands import assert_one_error_line, invoke
from helpers.tiny_checkpoints import make_checkpoint
from safetensors.numpy import load_file, save_file

import q4run
from q4run.convert import convert
from q4run.convert.output.layout import METADATA_PER_PART_BYTES
from q4run.convert.tensors import OutputTensor
from q4run.convert.types import recipe
from q4run.convert.types.fit import measure_fit
from q4run.convert.types.recipe import RECIPES, named
from q4run.gguf_file import open_gguf
from q4run.gguf_file.borders import BORDER
from q4run.models.parts import Role


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return make_checkpoint("llama4_quantisable", tmp_path_factory.mktemp("recipe") / "model")


def types_of(path) -> dict[str, str]:
    return {name: tensor.type.name.lower() for name, tensor in open_gguf(path).tensors.items()}


def experts(types: dict[str, str]) -> set[str]:
    return {kind for name, kind in types.items() if name.endswith("_exps.weight")}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_pair_of_types(name, checkpoint, tmp_path):
    dense, expert, _ = RECIPES[name]
    convert(checkpoint, tmp_path / "m.gguf", recipe=name)
    types = types_of(tmp_path / "m.gguf")
    assert experts(types) == {expert}
    assert types["blk.0.attn_q.weight"] == dense
    assert {kind for name, kind in types.items() if "ffn_gate_inp" in name} == {"f32"}


def test_types_given_go_before_the_recipes(checkpoint, tmp_path):
    convert(checkpoint, tmp_path / "m.gguf", recipe="best", expert_type="q5_k")
    types = types_of(tmp_path / "m.gguf")
    assert experts(types) == {"q5_k"}
    assert types["blk.0.attn_q.weight"] == "q8_0"


@pytest.mark.parametrize(
    ("type_name", "output"),
    [("q2_k", "q6_k"), ("q4_0", "q6_k"), ("q6_k", "q6_k"), ("q8_0", "q8_0"), ("tq1_0", "q8_0")],
)
def test_the_output_matrix_is_q6_k_at_least(checkpoint, tmp_path, type_name, output):
    convert(checkpoint, tmp_path / "m.gguf", type=type_name)
    types = types_of(tmp_path / "m.gguf")
    assert types.get("output.weight", types["token_embd.weight"]) == output


def test_a_pattern_goes_before_all_but_vectors(checkpoint, tmp_path):
    patterns = [(r"ffn_down_exps", "q6_k"), (r"blk\.1\.", "q5_0"), (r"", "bf16")]
    convert(checkpoint, tmp_path / "m.gguf", type="q4_0", tensor_types=patterns)
    for name, kind in types_of(tmp_path / "m.gguf").items():
        if "norm" in name or "ffn_gate_inp" in name:
            assert kind == "f32"
        elif "ffn_down_exps" in name:
            assert kind == "q6_k"
        else:
            assert kind == ("q5_0" if name.startswith("blk.1.") else "bf16")


def size(path) -> int:
    return path.stat().st_size


def test_fit_uses_the_size_and_never_more(checkpoint, tmp_path):
    sizes = {}
    for name in ("f16", "q2_k"):
        path = tmp_path / f"{name}.gguf"
        convert(checkpoint, path, type=name)
        sizes[name] = size(path)
    losses = []
    for share in (0.15, 0.3, 0.6):
        most = int(sizes["q2_k"] + share * (sizes["f16"] - sizes["q2_k"]))
        path = tmp_path / "fit.gguf"
        convert(checkpoint, path, fit=most, force=True)
        assert 0.85 * most < size(path) <= most
        losses.append(squared_error(path, tmp_path / "f16.gguf"))
    assert losses == sorted(losses, reverse=True)
    convert(checkpoint, path, fit=2 * sizes["f16"], force=True)
    assert set(types_of(path).values()) == {"f16", "f32"}


def squared_error(path, reference) -> float:
    from q4run.kernels.formats import find_format

    total = 0.0
    for name in open_gguf(path).tensors:
        values = []
        for file in (path, reference):
            info = open_gguf(file).tensor(name)
            fmt = find_format(info.type)
            raw = np.fromfile(file, np.uint8, info.n_bytes, offset=info.offset)
            values.append(fmt.dequantize(raw.reshape(-1, fmt.row_bytes(info.shape[-1]))))
        total += float(((values[0] - values[1]) ** 2).sum() / max((values[1] ** 2).sum(), 1e-30))
    return total


def tensor_of(name: str) -> OutputTensor:
    """The same 1024 rows of 256 values, whatever the name."""
    values = np.random.default_rng(3).normal(size=(1024, 256)).astype(np.float32)
    return OutputTensor(name, values.shape, Role.MATRIX, lambda _, start, stop: values[start:stop])


@pytest.mark.parametrize("once", ["token_embd", "output"])
@pytest.mark.parametrize("n_layers", [4, 8])
def test_what_there_is_once_counts_as_much_as_all_layers(n_layers, once):
    names = [f"blk.{i}.attn_v.weight" for i in range(n_layers)]
    tensors = [tensor_of(name) for name in (*names, f"{once}.weight")]
    small, larger = (1024 * named(kind).row_bytes(256) for kind in ("q2_k", "q4_k"))
    planned, _ = measure_fit(n_layers * small + larger, tensors, {}).plan(tensors)
    bits = {one.tensor.name: one.fmt.bits_per_weight for one in planned}
    assert bits[f"{once}.weight"] > max(bits[name] for name in names)


@pytest.mark.parametrize("part", [1, 100_000, 400_000])
def test_fit_counts_the_headers_of_all_parts(part, checkpoint, tmp_path):
    convert(checkpoint, tmp_path / "q4_k.gguf", type="q4_k")
    headers = len(types_of(tmp_path / "q4_k.gguf")) * (METADATA_PER_PART_BYTES + 2 * BORDER)
    most = size(tmp_path / "q4_k.gguf") + headers
    for _ in range(3):
        summary = convert(
            checkpoint, tmp_path / "m.gguf", fit=most, split_max_size=part, force=True
        )
        written = sum(size(path) for path in summary.outputs)
        assert len(summary.outputs) > 1
        assert written == summary.size_after
        assert most - headers < written <= most
        most = written


def test_fit_with_too_little_says_the_least(checkpoint, tmp_path):
    with pytest.raises(q4run.Error, match=r"at least.*larger --fit"):
        convert(checkpoint, tmp_path / "m.gguf", fit=1000)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def ternary_checkpoint(checkpoint, tmp_path_factory):
    """The same with experts of -1/32, 0 and 1/32."""
    folder = tmp_path_factory.mktemp("ternary")
    for path in checkpoint.iterdir():
        if path.suffix == ".safetensors":
            tensors = load_file(path)
            for name, values in tensors.items():
                if ".experts." in name:
                    signs = np.sign(np.round(values.astype(np.float32) * 40))
                    tensors[name] = (signs / 32).astype(ml_dtypes.bfloat16)
            save_file(tensors, folder / path.name)
        else:
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_fit_finds_that_experts_are_ternary(ternary_checkpoint, tmp_path):
    convert(ternary_checkpoint, tmp_path / "q8.gguf", type="q8_0", expert_type="tq2_0")
    most = size(tmp_path / "q8.gguf")
    convert(ternary_checkpoint, tmp_path / "fit.gguf", fit=most)
    assert experts(types_of(tmp_path / "fit.gguf")) <= {"tq1_0", "tq2_0"}
    assert size(tmp_path / "fit.gguf") <= most
    convert(ternary_checkpoint, tmp_path / "large.gguf", fit=10 * most)
    assert experts(types_of(tmp_path / "large.gguf")) == {"tq2_0"}


@pytest.mark.parametrize("type_name", ["q8_0", "tq2_0"])
def test_what_is_said_of_ternary_weights(checkpoint, ternary_checkpoint, type_name):
    def said(folder) -> str:
        return " ".join(convert(folder, type="q8_0", expert_type=type_name, dry_run=True).notes)

    assert ("not trained ternary" in said(checkpoint)) == (type_name == "tq2_0")
    assert "not trained ternary" not in said(ternary_checkpoint)
    assert ("without loss" in said(ternary_checkpoint)) == (type_name == "q8_0")
    assert "without loss" not in said(checkpoint)


def test_the_command_takes_them_and_tells_what_stays_in_ram(checkpoint, tmp_path):
    out = tmp_path / "m.gguf"
    done = invoke("convert", checkpoint, out, "--fit", "2M", "--json", "--dry-run")
    assert done.exit_code == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["size_after"] <= 2_000_000
    assert summary["dense_bytes"] + summary["expert_bytes"] <= summary["size_after"]
    assert "always in RAM" in done.stderr
    assert not out.exists()
    done = invoke("convert", checkpoint, out, "--recipe", "small", "--tensor-type", "attn_v=q8_0")
    assert done.exit_code == 0, done.stderr
    assert types_of(out)["blk.0.attn_v.weight"] == "q8_0"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--fit", "1G", "--type", "q8_0"],
        ["--fit", "1G", "--recipe", "small"],
        ["--fit", "much"],
        ["--type", "q8_0", "--tensor-type", "attn_v"],
        ["--type", "q8_0", "--tensor-type", "=q8_0"],
    ],
)
def test_wrong_usage_is_status_2(arguments, checkpoint, tmp_path):
    result = invoke("convert", checkpoint, tmp_path / "m.gguf", *arguments)
    assert result.exit_code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["--recipe", "tasty"],
        ["--type", "q8_0", "--tensor-type", "attn_v=q9_9"],
        ["--type", "q8_0", "--tensor-type", "attn_(=q8_0"],
        ["--fit", "1k"],
    ],
)
def test_what_is_not_known_is_one_line(arguments, checkpoint, tmp_path):
    result = invoke("convert", checkpoint, tmp_path / "m.gguf", *arguments)
    assert result.exit_code == 1
    assert_one_error_line(result.stderr)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_recipe_is_answered_with_what_the_others_are_for(checkpoint):
    with pytest.raises(q4run.Error, match=r"no recipe 'tasty': choose best \(hardly any loss\), "):
        convert(checkpoint, recipe="tasty", dry_run=True)


@pytest.mark.parametrize(
    ("wanted", "fallback"),
    [
        ("q6_k", "q8_0"),
        ("q5_k", "q5_1"),
        ("q4_k", "q5_0"),
        ("q3_k", "iq4_nl"),
        ("q2_k", "iq4_nl"),
        ("iq4_xs", "iq4_nl"),
        ("tq2_0", "q4_0"),
        ("tq1_0", "q4_0"),
    ],
)
def test_rows_of_other_lengths_fall_back_as_in_llama_cpp(wanted, fallback):
    assert recipe.first_that_fits(wanted, 512).name == wanted
    assert recipe.first_that_fits(wanted, 96).name == fallback
    assert recipe.first_that_fits(wanted, 100).name == "f16"


def test_every_fallback_can_be_written():
    assert {name for names in recipe.FALLBACKS.values() for name in names} <= set(recipe.FILE_TYPES)
