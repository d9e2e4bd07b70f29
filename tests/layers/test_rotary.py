"""RoPE and its scalings, from config.json and from GGUF keys, against transformers."""

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from helpers.rope_cases import MODELS, PUBLISHED, make_scaled_checkpoint
from helpers.tiny_cases import case_named

import q4run
from q4run.convert import convert
from q4run.convert.calibration.attention import _rotate
from q4run.convert.config import Config
from q4run.convert.families.rope import read_rope as read_config_rope
from q4run.errors import FormatError, UnsupportedError
from q4run.gguf_file import GGUFFile, describe_file
from q4run.layers.rotary import RotaryEmbedding, temperatures
from q4run.models.parts import Temperature, Tensor, rope_tensors
from q4run.models.rope import Rope, RopeForm
from q4run.models.rope_keys import RopeDefaults, read_rope

REFERENCE = Path(__file__).parents[1] / "reference" / "rope.npz"
POSITIONS = [0, 1, 9, 30, 55]  # as in make_rope.py
TOLERANCE = 1e-4  # largest error over largest logit
HEAD_DIM, CONTEXT = 16, 4096


@pytest.fixture(scope="module")
def stored() -> dict[str, np.ndarray]:
    with np.load(REFERENCE) as file:
        return dict(file)


@pytest.fixture(scope="module")
def file_of(tmp_path_factory):
    """Makes the f32 GGUF of one of the models, once each."""
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            folder = tmp_path_factory.mktemp("rope")
            checkpoint = make_scaled_checkpoint(name, folder / "checkpoint")
            made[name] = folder / "model.gguf"
            convert(checkpoint, made[name], type="f32")
        return made[name]

    return make


def error_of(logits: np.ndarray, reference: np.ndarray) -> float:
    return float(np.abs(logits - reference).max() / np.abs(reference).max())


def test_every_case_is_stored_and_no_other(stored):
    assert sorted(stored) == sorted([*MODELS, *PUBLISHED])


@pytest.mark.parametrize("name", MODELS)
def test_logits_match_transformers(name, file_of, stored):
    ids = case_named(MODELS[name][0]).token_ids
    with q4run.load(file_of(name), context=64, kv_type="f32") as model:
        logits = model.logits(ids)
        model.session.clear()
        model.session.feed(ids[:-1])
        last = model.session.step(ids[-1])
    assert error_of(logits[POSITIONS], stored[name]) < TOLERANCE
    assert np.array_equal(last, logits[-1])


@pytest.mark.reference
@pytest.mark.parametrize("name", ["yarn, multipliers", "longrope, long"])
def test_transformers_still_computes_the_stored_logits(
    name: str, stored: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("transformers", reason="transformers comes with the [reference] extra")
    from reference import make_rope

    assert tuple(POSITIONS) == make_rope.POSITIONS
    assert error_of(make_rope.logits_of(name, tmp_path), stored[name]) < 1e-5


def file_with(
    keys: dict[str, Any], kinds: tuple[gguf.MODEL_TENSOR, ...] = (), dim: int = HEAD_DIM
) -> GGUFFile:
    """A file of the architecture llama that is not there, with so much of RoPE."""
    rope = Rope(dim, 10000.0, factors=kinds)
    tensors = [(t.name, t.shape, gguf.GGMLQuantizationType.F32) for t in rope_tensors(rope)]
    values = {"general.architecture": "llama", "llama.context_length": CONTEXT}
    values |= {f"llama.rope.{key}": value for key, value in keys.items()}
    return describe_file(Path("model.gguf"), values, tensors)


def rotation_of(
    rope: Rope, factors: dict[Any, np.ndarray], context: int = CONTEXT
) -> tuple[np.ndarray, np.ndarray]:
    """The frequencies and the magnitudes of a rotation, as the angles of token 1 tell them."""

    def read_vector(tensor: Tensor) -> np.ndarray:
        return factors[tensor.kind]

    positions = RotaryEmbedding([rope], read_vector, "model.gguf")(1, 1, context)
    cos, sin = (part[0].astype(np.float64) for part in positions.rotation(rope))
    return np.arctan2(sin, cos), np.hypot(sin, cos)


def scaled(keys: dict[str, Any], **defaults: Any) -> tuple[np.ndarray, np.ndarray]:
    return rotation_of(read_rope(file_with(keys), HEAD_DIM, RopeDefaults(**defaults)), {})


PLAIN = 10000.0 ** -(np.arange(0, HEAD_DIM, 2) / HEAD_DIM)


@pytest.mark.parametrize("name", PUBLISHED)
def test_frequencies_of_published_settings_match_transformers(name, stored):
    head_dim, changes, context = PUBLISHED[name]
    source = read_config_rope(Config(changes, "config.json"), head_dim, 10000.0)
    metadata = gguf.GGUFWriter(None, "llama")
    source.add_keys(metadata)
    prefix = "llama.rope."
    keys = {
        key.removeprefix(prefix): np.float32(entry.value).item()
        if isinstance(entry.value, float)
        else entry.value
        for key, entry in metadata.kv_data[0].items()
        if key.startswith(prefix)
    }
    file = file_with(keys, source.rope.factors, source.rope.dim)
    rope = read_rope(file, head_dim, RopeDefaults())
    assert rope.dim == source.rope.dim
    frequencies, magnitudes = rotation_of(rope, source.factors, context)
    *expected, magnitude = stored[name]
    np.testing.assert_allclose(frequencies, expected, rtol=1e-6)
    np.testing.assert_allclose(magnitudes, magnitude, rtol=1e-6)


@pytest.mark.parametrize(
    ("keys", "factor", "magnitude"),
    [
        ({}, 1, 1),
        ({"scaling.factor": 8.0}, 8, 1),  # linear where no type is told
        ({"scale_linear": 8.0}, 8, 1),
        ({"scale_linear": 8.0, "scaling.factor": 2.0}, 2, 1),
        ({"scale_linear": 8.0, "scaling.factor": 0.0}, 1, 1),
        ({"scaling.type": "linear", "scaling.factor": 8.0}, 8, 1),
        ({"scaling.type": "linear", "scaling.factor": 0.0}, 1, 1),
        ({"scaling.type": "linear", "scaling.factor": 2.0, "scaling.attn_factor": 1.2}, 2, 1.2),
        ({"scaling.type": "none", "scaling.factor": 8.0}, 1, 1),
        # A share of 0 leaves YaRN's factor for all frequencies, and cos and sin as they are.
        (
            {"scaling.type": "yarn", "scaling.factor": 8.0, "scaling.yarn_ext_factor": 0.0},
            8,
            1,
        ),
    ],
)
def test_keys_that_scale_all_frequencies_alike(keys, factor, magnitude):
    frequencies, magnitudes = scaled(keys)
    np.testing.assert_allclose(frequencies, PLAIN / factor, rtol=1e-6)
    np.testing.assert_allclose(magnitudes, magnitude, rtol=1e-6)


YARN = {"scaling.type": "yarn", "scaling.factor": 8.0, "scaling.original_context_length": 512}


@pytest.mark.parametrize(
    ("keys", "magnitude"),
    [
        ({}, 1 + 0.1 * math.log(8)),
        ({"scaling.attn_factor": 0.5}, 0.5 * (1 + 0.1 * math.log(8))),
        ({"scaling.yarn_log_multiplier": 1.0}, 1),
        (
            {"scaling.yarn_log_multiplier": 0.5},
            (1 + 0.1 * math.log(8)) / (1 + 0.05 * math.log(8)),
        ),
        ({"scaling.yarn_attn_factor": 0.7, "scaling.yarn_log_multiplier": 0.5}, 0.7),
        ({"scaling.factor": 0.5}, 1),
    ],
)
def test_magnitudes_of_yarn(keys, magnitude):
    np.testing.assert_allclose(scaled(YARN | keys)[1], magnitude, rtol=1e-6)


def test_the_ramp_of_yarn():
    frequencies, _ = scaled(YARN)
    shares = PLAIN / frequencies
    assert shares[0] == pytest.approx(1)
    assert shares[-1] == pytest.approx(8)
    assert np.all(np.diff(shares) >= -1e-6)
    # The ends move with the numbers of turns, with the original context, and off whole pairs.
    for keys in (
        {"scaling.yarn_beta_fast": 4.0},
        {"scaling.yarn_beta_slow": 4.0},
        {"scaling.original_context_length": 64},
        {"scaling.yarn_truncate": False},
        {"scaling.yarn_ext_factor": 0.5},
    ):
        assert not np.allclose(scaled(YARN | keys)[0], frequencies, rtol=1e-3), keys
    whole = scaled(YARN | {"scaling.yarn_truncate": True}, yarn_truncate=False)[0]
    np.testing.assert_array_equal(whole, frequencies)
    untold = {key: value for key, value in YARN.items() if "original" not in key}
    told = YARN | {"scaling.original_context_length": CONTEXT}
    np.testing.assert_array_equal(scaled(untold)[0], scaled(told)[0])


def test_factors_of_frequencies_are_scaled_with_them():
    factors = np.linspace(1, 3, HEAD_DIM // 2, dtype=np.float32)
    file = file_with({"scaling.factor": 2.0}, (gguf.MODEL_TENSOR.ROPE_FREQS,))
    rope = read_rope(file, HEAD_DIM, RopeDefaults())
    frequencies, _ = rotation_of(rope, {gguf.MODEL_TENSOR.ROPE_FREQS: factors})
    np.testing.assert_allclose(frequencies, PLAIN / factors / 2, rtol=1e-6)


@pytest.mark.parametrize("bad", [0, -1, math.nan, math.inf])
def test_factors_that_divide_nothing_are_refused(bad):
    kind = gguf.MODEL_TENSOR.ROPE_FREQS
    rope = read_rope(file_with({}, (kind,)), HEAD_DIM, RopeDefaults())
    factors = np.ones(HEAD_DIM // 2, np.float32)
    factors[3] = bad
    with pytest.raises(FormatError, match=r"model.gguf: rope_freqs.weight"):
        rotation_of(rope, {kind: factors})


def test_the_context_chooses_between_long_and_short_factors(file_of):
    """Also where the tokens themselves would fit: the cache holds keys of one rotation."""
    ids = case_named("llama_gqa").token_ids[:20]
    logits = []
    for context in (32, 33, 64):
        with q4run.load(file_of("longrope, long"), context=context, kv_type="f32") as model:
            logits.append(model.logits(ids))
    assert not np.allclose(logits[0], logits[1], atol=0.1)
    np.testing.assert_array_equal(logits[1], logits[2])


@pytest.mark.parametrize(
    ("keys", "kind", "told"),
    [
        ({"scaling.type": "dynamic"}, UnsupportedError, "'dynamic'"),
        ({"scaling.type": "longrope"}, FormatError, "long and short factors"),
        ({"scaling.factor": -2.0}, FormatError, "scaling.factor is -2"),
        ({"scaling.factor": math.nan}, FormatError, "scaling.factor is nan"),
        ({"scale_linear": math.inf}, FormatError, "scale_linear is inf"),
        ({"scaling.attn_factor": 0.0}, FormatError, "scaling.attn_factor is 0"),
        (YARN | {"scaling.original_context_length": 0}, FormatError, "original_context_length"),
        (YARN | {"scaling.yarn_beta_fast": 0.0}, FormatError, "yarn_beta_fast is 0"),
        (YARN | {"freq_base": 1.0}, FormatError, "freq_base above 1"),
        ({"freq_base": 0.0}, FormatError, "freq_base is 0"),
        ({"dimension_count": 7}, FormatError, "7 of 16"),
        ({"dimension_count": 18}, FormatError, "18 of 16"),
    ],
)
def test_keys_that_cannot_be(keys, kind, told):
    with pytest.raises(kind, match=told):
        read_rope(file_with(keys), HEAD_DIM, RopeDefaults())


def test_a_part_of_a_head_is_rotated():
    rope = read_rope(file_with({"dimension_count": 8}), HEAD_DIM, RopeDefaults())
    frequencies, _ = rotation_of(rope, {})
    np.testing.assert_allclose(frequencies, 10000.0 ** -(np.arange(0, 8, 2) / 8), rtol=1e-6)


@pytest.mark.parametrize("form", RopeForm)
def test_calibration_rotates_both_forms(form):
    rope = Rope(8, 10000.0, form)
    x = np.random.default_rng(1).standard_normal((5, 2, HEAD_DIM)).astype(np.float32)
    angles = RotaryEmbedding([rope], lambda tensor: np.empty(0), "")(0, 5, 64).rotation(rope)
    pairs = [(i, i + 4) if form is RopeForm.NEOX else (2 * i, 2 * i + 1) for i in range(4)]
    expected = x.astype(np.complex128)
    for pair, (first, second) in enumerate(pairs):
        turn = np.exp(1j * np.arange(5) * 10000.0 ** (-2 * pair / 8))
        turned = (x[..., first] + 1j * x[..., second]) * turn[:, None]
        expected[..., first], expected[..., second] = turned.real, turned.imag
    np.testing.assert_allclose(_rotate(x, rope, angles), expected.real, atol=1e-6)


def test_the_converter_tells_which_keys_llama_cpp_ignores(tmp_path):
    notes = {}
    for name in ("yarn", "yarn, attention factor", "yarn, not truncated", "linear"):
        checkpoint = make_scaled_checkpoint(name, tmp_path / name)
        summary = convert(checkpoint, tmp_path / "model.gguf", type="f32", force=True)
        notes[name] = [note for note in summary.notes if "llama.cpp ignores" in note]
    assert notes["yarn"] == notes["linear"] == []
    assert "yarn_beta_fast, rope.scaling.yarn_beta_slow:" in notes["yarn, attention factor"][0]
    assert "rope.scaling.yarn_truncate:" in notes["yarn, not truncated"][0]


@pytest.mark.parametrize("offset", [0, 1])
def test_queries_grow_with_position(offset):
    factors = temperatures(Temperature(4, 0.5, offset), 2, 8)
    expected = [1 + 0.5 * math.log(1 + (p + offset) // 4) for p in range(2, 10)]
    np.testing.assert_allclose(factors, expected, rtol=1e-6)
