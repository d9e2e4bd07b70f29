"""Checkpoints whose weights are stored as fp8 or mxfp4: as their values in f32 would convert."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import ml_dtypes
import numpy as np
import pytest
from helpers.converting import edit_json, load_checkpoint, read_gguf, save_checkpoint
from helpers.tiny_checkpoints import make_checkpoint

from q4run.convert import convert
from q4run.errors import FormatError, UnsupportedError

E4M3, E5M2 = ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2
COMPRESSED = {"quant_method": "compressed-tensors", "format": "float-quantized"}
Arrays = dict[str, np.ndarray]
Split = Callable[[str, np.ndarray], tuple[Arrays, np.ndarray]]


def encode(matrix: np.ndarray, scale: np.ndarray, dtype=E4M3) -> tuple[np.ndarray, np.ndarray]:
    """Codes and what they stand for, scale being broadcast to the matrix."""
    codes = (matrix.astype(np.float32) / scale).astype(dtype)
    return codes, codes.astype(np.float32) * scale.astype(np.float32)


def per_tensor(name: str, matrix: np.ndarray, dtype=E4M3) -> tuple[Arrays, np.ndarray]:
    scale = np.array(np.abs(matrix.astype(np.float32)).max() / 300, np.float32)
    codes, values = encode(matrix, scale, dtype)
    base = name.removesuffix(".weight")
    extra = {f"{base}.input_scale": np.ones(1, np.float32)}
    return {name: codes, f"{base}.weight_scale": scale, **extra}, values


def per_row(name: str, matrix: np.ndarray, scale_type=ml_dtypes.bfloat16):
    scale = (np.abs(matrix.astype(np.float32)).max(axis=1, keepdims=True) / 400).astype(scale_type)
    codes, values = encode(matrix, scale.astype(np.float32))
    return {name: codes, name.removesuffix(".weight") + ".weight_scale": scale}, values


def per_row_without_an_axis(name: str, matrix: np.ndarray):
    arrays, values = per_row(name, matrix, np.float32)
    scale_name = name.removesuffix(".weight") + ".weight_scale"
    return arrays | {scale_name: arrays[scale_name][:, 0]}, values


def in_blocks(name: str, matrix: np.ndarray, block=(128, 128), scale_type=np.float32):
    rows, cols = (-(-size // edge) for size, edge in zip(matrix.shape, block, strict=True))
    scale = np.random.default_rng(rows).uniform(0.003, 0.01, (rows, cols)).astype(scale_type)
    spread = np.repeat(np.repeat(scale.astype(np.float32), block[0], 0), block[1], 1)
    codes, values = encode(matrix, spread[: matrix.shape[0], : matrix.shape[1]])
    return {name: codes, name.removesuffix(".weight") + ".weight_scale_inv": scale}, values


def is_linear(name: str) -> bool:
    return name.endswith(("_proj.weight", ".w1.weight", ".w2.weight", ".w3.weight"))


def rewrite(folder: Path, other: Path, split: Split, config: dict) -> None:
    """Makes of a folder one with split linear matrices, and of another one with their values."""
    stored: Arrays = {}
    values: Arrays = {}
    for name, array in load_checkpoint(folder).items():
        values[name] = array.astype(np.float32)
        if is_linear(name) and array.ndim == 2:
            parts, values[name] = split(name, array)
            stored |= parts
        else:
            stored[name] = array
    for target, tensors in ((folder, stored), (other, values)):
        for path in target.glob("model*"):
            path.unlink()
        save_checkpoint(target / "model.safetensors", tensors)
    edit_json(folder / "config.json", quantization_config=config)


@pytest.fixture
def pair_of(tmp_path):
    """Two copies of a case's checkpoint, of one name: to be rewritten, and for its values."""

    def make(name: str) -> tuple[Path, Path]:
        first = make_checkpoint(name, tmp_path / "stored" / name)
        return first, shutil.copytree(first, tmp_path / "values" / name)

    return make


def check_alike(folder: Path, other: Path, tmp_path: Path, *types: str) -> None:
    for type_name in types:
        convert(folder, tmp_path / "a.gguf", type=type_name, force=True)
        convert(other, tmp_path / "b.gguf", type=type_name, force=True)
        assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}


@pytest.mark.parametrize(
    ("split", "config"),
    [
        (per_tensor, {"quant_method": "fp8", "activation_scheme": "static"}),
        (lambda name, matrix: per_tensor(name, matrix, E5M2), {"quant_method": "fp8"}),
        (per_row, COMPRESSED),
        (per_row_without_an_axis, {"quant_method": "fbgemm_fp8"}),
        (in_blocks, BLOCKS),
        (
            lambda name, matrix: in_blocks(name, matrix, (32, 48)),
            {"quant_method": "fp8", "weight_block_size": [32, 48]},
        ),
        (
            lambda name, matrix: in_blocks(name, matrix, scale_type=ml_dtypes.float8_e8m0fnu),
            BLOCKS,
        ),
    ],
    ids=["tensor", "e5m2", "row", "row-flat", "block", "block-32-48", "block-e8m0"],
)
@pytest.mark.parametrize("name", ["llama_quantisable", "llama_mha_odd", "mixtral_sharded"])
def test_fp8_converts_as_its_values_do(name, split, config, pair_of, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "q4run.convert.source.fp8.PIECE_VALUES", 5000
    )  # a matrix takes several pieces
    folder, other = pair_of(name)
    rewrite(folder, other, split, config)
    check_alike(folder, other, tmp_path, "f32", "q8_0")


def test_maverick_fp8_has_its_experts_one_by_one(pair_of, tmp_path):
    folder, other = pair_of("llama4_maverick")
    edit_json(folder / "config.json", quantization_config=COMPRESSED)
    stored: Arrays = {}
    values: Arrays = {}
    for name, array in load_checkpoint(folder).items():
        stored[name], values[name] = array, array.astype(np.float32)
        if name.endswith((".experts.gate_up_proj", ".experts.down_proj")):
            base = name.rpartition(".")[0]
            del stored[name]
            for expert, matrix in enumerate(array):
                halves = [("down_proj", matrix)]
                if "gate_up" in name:
                    halves = list(
                        zip(("gate_proj", "up_proj"), np.split(matrix, 2, axis=1), strict=True)
                    )
                decoded = []
                for projection, half in halves:
                    arrays, of_half = per_row(f"{base}.{expert}.{projection}.weight", half.T)
                    stored |= arrays
                    decoded.append(of_half.T)
                values[name][expert] = np.concatenate(decoded, axis=1)
    save_checkpoint(folder / "model.safetensors", stored)
    save_checkpoint(other / "model.safetensors", values)
    check_alike(folder, other, tmp_path, "f32", "q8_0")
    assert any(".experts.7.up_proj.weight_scale" in name for name in stored)


@pytest.mark.parametrize("form", ["tensor", "column"])
def test_stacks_of_experts_in_fp8(form, pair_of, tmp_path, monkeypatch):
    """Input-major as in bf16, so that a scale for each output is one for each column."""
    monkeypatch.setattr("q4run.convert.tensors.BAND_BYTES", 4 * 128 * 5)
    folder, other = pair_of("llama4_maverick")
    edit_json(
        folder / "config.json",
        quantization_config={"quant_method": "modelopt", "quant_algo": "FP8"},
    )
    stored: Arrays = {}
    values: Arrays = {}
    for name, array in load_checkpoint(folder).items():
        stored[name], values[name] = array, array.astype(np.float32)
        if name.endswith((".experts.gate_up_proj", ".experts.down_proj")):
            axis = 1 if form == "column" else None
            scale = np.abs(values[name]).max(axis=axis, keepdims=True) / np.float32(400)
            stored[name], values[name] = encode(array, scale)
            stored[f"{name}_weight_scale" if form == "tensor" else f"{name}_scale"] = scale
            stored[f"{name}_input_scale"] = np.ones((), np.float32)
    save_checkpoint(folder / "model.safetensors", stored)
    save_checkpoint(other / "model.safetensors", values)
    check_alike(folder, other, tmp_path, "f32", "q4_0")


Q = "model.layers.1.self_attn.q_proj"


def refuse(folder: Path, tmp_path: Path, kind: type, *parts: str, type_name: str = "q8_0") -> None:
    with pytest.raises(kind) as error:
        convert(folder, tmp_path / "model.gguf", type=type_name)
    assert error.type is kind, error.value
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.parametrize(
    "scale",
    [
        np.ones((63, 1), np.float32),
        np.ones((2,), np.float32),
        np.ones((1, 2, 1), np.float32),
        np.ones((0,), np.float32),
        np.ones((2, 2), np.float32),
    ],
    ids=lambda scale: "x".join(map(str, scale.shape)),
)
def test_scales_of_a_wrong_shape(scale, pair_of, tmp_path):
    folder, other = pair_of("llama_gqa")
    rewrite(folder, other, per_row, COMPRESSED)
    tensors = load_checkpoint(folder) | {f"{Q}.weight_scale": scale}
    save_checkpoint(folder / "model.safetensors", tensors)
    refuse(folder, tmp_path, FormatError, f"{Q}.weight_scale", str(list(scale.shape)), "[64, 64]")


def test_scales_that_are_missing(pair_of, tmp_path):
    folder, other = pair_of("llama_gqa")
    rewrite(folder, other, per_row, COMPRESSED)
    tensors = load_checkpoint(folder)
    del tensors[f"{Q}.weight_scale"]
    save_checkpoint(folder / "model.safetensors", tensors)
    refuse(folder, tmp_path, FormatError, f"{Q}.weight", "its scales are missing")


def test_scales_of_a_type_that_is_not_read(pair_of, tmp_path):
    folder, other = pair_of("llama_gqa")
    rewrite(folder, other, per_row, COMPRESSED)
    tensors = load_checkpoint(folder) | {f"{Q}.weight_scale": np.ones((64, 1), np.uint8)}
    save_checkpoint(folder / "model.safetensors", tensors)
    refuse(folder, tmp_path, UnsupportedError, f"{Q}.weight_scale", "U8")


@pytest.mark.parametrize("change", ["code", "scale", "infinite scale"])
def test_numbers_that_are_none(change, pair_of, tmp_path):
    folder, other = pair_of("llama_gqa")
    rewrite(folder, other, per_row, COMPRESSED)
    tensors = load_checkpoint(folder)
    codes, scales = tensors[f"{Q}.weight"].copy(), tensors[f"{Q}.weight_scale"].copy()
    if change == "code":
        codes.view(np.uint8)[3, 5] = 0x7F
    else:
        scales[3] = np.nan if change == "scale" else np.inf
    tensors |= {f"{Q}.weight": codes, f"{Q}.weight_scale": scales}
    save_checkpoint(folder / "model.safetensors", tensors)
    refuse(folder, tmp_path, FormatError, "blk.1.attn_q.weight", "not all finite")


def test_block_sizes_that_make_no_sense(pair_of, tmp_path):
    folder, _ = pair_of("llama_gqa")
    for sizes in ([128], [0, 128], [128, 128, 128]):
        edit_json(
            folder / "config.json",
            quantization_config={"quant_method": "fp8", "weight_block_size": sizes},
        )
        refuse(folder, tmp_path, FormatError, "weight_block_size")


def mxfp4_of(matrix: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Packed bytes, scale bytes and values of random MXFP4 of a matrix's shape, by definition."""
    shape = (*matrix.shape[:-1], matrix.shape[-1] // 32)
    codes = rng.integers(0, 16, (*shape, 32), np.uint8)
    scales = rng.integers(118, 126, shape, np.uint8)
    table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    magnitudes = table[codes & 7] * np.float32(2) ** (scales.astype(np.float32)[..., None] - 127)
    # GGUF's table has one zero: minus zero becomes it.
    values = np.where(codes & 8, -magnitudes, magnitudes) + np.float32(0)
    values = values.astype(np.float32).reshape(matrix.shape)
    packed = codes[..., 0::2] | codes[..., 1::2] << 4
    return packed, scales, values


def rewrite_mixtral_as_mxfp4(folder: Path, other: Path, form: str) -> Arrays:
    """Experts as gpt-oss stacks them, or every matrix as compressed-tensors packs it."""
    rng = np.random.default_rng(0)
    stored = dict(load_checkpoint(folder))
    values = {name: array.astype(np.float32) for name, array in stored.items()}
    if form == "packed":
        for name in [name for name in stored if is_linear(name) and stored[name].ndim == 2]:
            packed, scales, values[name] = mxfp4_of(stored.pop(name), rng)
            base = name.removesuffix(".weight")
            stored[f"{base}.weight_packed"] = packed.reshape(len(packed), -1)
            stored[f"{base}.weight_scale"] = scales
        config = {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"}
    else:
        for layer in range(3):
            old, new = f"model.layers.{layer}.block_sparse_moe", f"model.layers.{layer}.mlp"
            stored[f"{new}.gate.weight"] = stored.pop(f"{old}.gate.weight")
            w1, w2, w3 = (
                np.array([stored.pop(f"{old}.experts.{e}.{w}.weight") for e in range(4)])
                for w in ("w1", "w2", "w3")
            )
            for name, stack in (
                ("gate_up_proj", np.concatenate([w1, w3], axis=1)),
                ("down_proj", w2),
            ):
                packed, scales, decoded = mxfp4_of(stack, rng)
                stored[f"{new}.experts.{name}_blocks"] = packed
                stored[f"{new}.experts.{name}_scales"] = scales
                for expert, matrix in enumerate(decoded):
                    where = f"{old}.experts.{expert}"
                    if name == "down_proj":
                        values[f"{where}.w2.weight"] = matrix
                    else:
                        first, second = np.split(matrix, 2)
                        values |= {f"{where}.w1.weight": first, f"{where}.w3.weight": second}
        config = {"quant_method": "mxfp4"}
    save_checkpoint(folder / "model.safetensors", stored)
    save_checkpoint(other / "model.safetensors", values)
    edit_json(folder / "config.json", quantization_config=config)
    return stored


@pytest.mark.parametrize("form", ["stacked", "packed"])
def test_mxfp4_converts_as_its_values_do(form, pair_of, tmp_path):
    folder, other = pair_of("mixtral_top_2")
    rewrite_mixtral_as_mxfp4(folder, other, form)
    check_alike(folder, other, tmp_path, "f32", "q8_0")


@pytest.mark.parametrize("form", ["stacked", "packed"])
def test_mxfp4_stays_mxfp4_without_loss(form, pair_of, tmp_path):
    folder, other = pair_of("mixtral_top_2")
    rewrite_mixtral_as_mxfp4(folder, other, form)
    summary = convert(folder, tmp_path / "kept.gguf", type="f32", expert_type="mxfp4")
    assert any("quantised already" in note for note in summary.notes)
    convert(other, tmp_path / "values.gguf", type="f32")
    _, kept = read_gguf(tmp_path / "kept.gguf")
    _, values = read_gguf(tmp_path / "values.gguf")
    experts = [name for name in kept if "_exps" in name]
    assert len(experts) == 9
    for name in experts:
        assert kept[name].tensor_type.name == "MXFP4"
        decoded = gguf.quants.dequantize(kept[name].data, kept[name].tensor_type)
        assert np.array_equal(decoded.reshape(-1), values[name].data.reshape(-1)), name


def test_llama4_experts_in_mxfp4(pair_of, tmp_path):
    folder, other = pair_of("llama4_maverick")
    rng = np.random.default_rng(1)
    stored = dict(load_checkpoint(folder))
    values = {name: array.astype(np.float32) for name, array in stored.items()}
    for name in list(stored):
        if name.endswith((".experts.gate_up_proj", ".experts.down_proj")):
            stack = stored.pop(name).swapaxes(1, 2)
            stored[f"{name}_blocks"], stored[f"{name}_scales"], decoded = mxfp4_of(stack, rng)
            values[name] = np.ascontiguousarray(decoded.swapaxes(1, 2))
    save_checkpoint(folder / "model.safetensors", stored)
    save_checkpoint(other / "model.safetensors", values)
    edit_json(folder / "config.json", quantization_config={"quant_method": "mxfp4"})
    check_alike(folder, other, tmp_path, "f32", "q8_0")


def test_mxfp4_that_makes_no_sense(pair_of, tmp_path):
    folder, other = pair_of("mixtral_top_2")
    stored = rewrite_mixtral_as_mxfp4(folder, other, "stacked")
    base = "model.layers.1.mlp.experts.down_proj"
    blocks, scales = stored[f"{base}_blocks"], stored[f"{base}_scales"]
    no_number = scales.copy()
    no_number[2, 7, 1] = 255
    for changes, parts in (
        ({f"{base}_scales": no_number}, ("no number", f"{base}_scales")),
        ({f"{base}_scales": scales[:3]}, ("does not fit its scales'", f"{base}_blocks")),
        ({f"{base}_blocks": blocks[..., :8]}, ("does not fit its scales'",)),
        ({f"{base}_scales": scales.astype(np.float32)}, ("F32", "MXFP4 has bytes")),
        (
            {f"{base}_blocks": blocks[:, :32], f"{base}_scales": scales[:, :32]},
            ("config.json asks for",),
        ),
    ):
        save_checkpoint(folder / "model.safetensors", stored | changes)
        refuse(folder, tmp_path, FormatError, *parts, type_name="mxfp4")
    assert json.loads((folder / "config.json").read_text())["quantization_config"]
