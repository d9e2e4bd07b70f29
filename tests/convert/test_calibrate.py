"""``convert --calibrate``: hessians of what matrices multiply, and conversions made with them."""

import numpy as np
import pytest
from helpers.commands import assert_one_error_line, invoke
from helpers.converting import read_gguf
from helpers.tiny_checkpoints import make_checkpoint

import q4run
from q4run.convert import convert
from q4run.convert.calibration.arrays import Arrays
from q4run.convert.calibration.calibration import Calibration
from q4run.convert.calibration.compensation import DAMPING, prepare_inputs
from q4run.convert.calibration.forward import Forward
from q4run.convert.calibration.weights import FileWeights
from q4run.errors import BudgetError, Error
from q4run.gguf_file import open_gguf
from q4run.models import read_config
from q4run.models.names import role_of
from q4run.models.parts import Role

WORDS = "Once upon a time there was a fox who asked the raven for its cheese and thanked it. "


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """Enough for a few windows, not the same over and over."""
    words, random = WORDS.split(), np.random.default_rng(0)
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(random.choice(words, 1500)))
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Makes a case's checkpoint folder and f32 GGUF, once each."""
    made: dict = {}

    def make(name: str):
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            checkpoint = make_checkpoint(name, folder / "checkpoint")
            convert(checkpoint, folder / "model.gguf", type="f32")
            made[name] = checkpoint, folder / "model.gguf"
        return made[name]

    return make


def some_windows(path, n_windows: int = 3, context: int = 40) -> np.ndarray:
    n_vocab = read_config(open_gguf(path)).n_vocab
    return np.random.default_rng(5).integers(0, n_vocab, (n_windows, context)).astype(np.int32)


@pytest.mark.parametrize("room", [2**31, 0], ids=["in RAM", "on disk"])
@pytest.mark.parametrize("name", ["llama4_top_2", "mixtral_top_2", "llama4_maverick"])
def test_hessians_are_of_each_matrix_own_inputs(name, room, models, tmp_path, monkeypatch):
    path = models(name)[1]
    file = open_gguf(path)
    config, weights, windows = read_config(file), FileWeights(file), some_windows(path)
    heard: dict[tuple[str, int], list[np.ndarray]] = {}

    def observe(names, matrix, tokens, inputs):
        for tensor in names:
            heard.setdefault((tensor, matrix), []).append(inputs.astype(np.float64))

    forward = Forward(config, weights, windows, Arrays(2**30, tmp_path))
    calibration = Calibration(config, weights, windows, tmp_path / "out.gguf")
    module = "q4run.convert.calibration.calibration"
    monkeypatch.setattr(f"{module}._least_bytes", lambda config, context: 0)
    calibration.start(room)
    for i in range(len(config.layers)):
        heard.clear()
        forward.run_layer(i, observe, lambda n_tokens: None)
        for tensor in [name for name in file.tensors if name.startswith(f"blk.{i}.")]:
            shape = file.tensors[tensor].shape
            if len(shape) == 1 or "gate_inp" in tensor:
                continue
            calibration._advance_to(tensor)
            n_matrices = shape[0] if len(shape) == 3 else 1
            everyone = np.concatenate(
                [x for (name, _), batches in heard.items() if name == tensor for x in batches]
            )
            for matrix in range(n_matrices):
                found = calibration._inputs_of(tensor, matrix, shape[-1])
                own = np.concatenate([np.zeros((0, shape[-1])), *heard.get((tensor, matrix), [])])
                expected = own.T @ own
                weight = shape[-1] / 4 if len(shape) == 3 else 0
                expected += weight * everyone.T @ everyone / len(everyone)
                expected /= len(own) + weight
                damped = prepare_inputs(expected.astype(np.float32)).hessian
                assert np.abs(found.hessian - damped).max() < 1e-5 * np.abs(damped).max()
    assert list(tmp_path.iterdir()) == []


def test_an_unreached_expert_takes_the_average(models, tmp_path):
    path = models("llama4_scout")[1]  # sixteen experts, eight tokens
    file = open_gguf(path)
    config, windows = read_config(file), some_windows(path, 1, 8)
    calibration = Calibration(config, FileWeights(file), windows, tmp_path / "out.gguf")
    calibration.start(2**31)
    name = "blk.0.ffn_down_exps.weight"
    calibration._advance_to(name)
    kept = calibration._kept[name]
    n_cols = file.tensors[name].shape[-1]
    unreached = next(i for i in range(16) if i not in kept.parts)
    inputs = kept.inputs[: kept.n_rows].astype(np.float64)
    average = inputs.T @ inputs / len(inputs)
    average += DAMPING * np.diag(average).mean() * np.eye(n_cols)
    found = calibration._inputs_of(name, unreached, n_cols)
    assert np.abs(found.hessian - average).max() < 1e-5 * np.abs(average).max()
    assert calibration.n_unreached == 1


def kl_divergence(logits: np.ndarray, other: np.ndarray) -> float:
    def log_softmax(x):
        x = x.astype(np.float64) - x.max(axis=1, keepdims=True)
        return x - np.log(np.exp(x).sum(axis=1, keepdims=True))

    first, second = log_softmax(logits), log_softmax(other)
    return float((np.exp(first) * (first - second)).sum(axis=1).mean())


@pytest.mark.parametrize(
    ("name", "types"),
    [
        ("llama4_quantisable", ("q4_0", "q4_0")),
        pytest.param("llama4_quantisable", ("q8_0", "tq2_0"), marks=pytest.mark.exhaustive),
        ("mixtral_quantisable", ("q4_k", "q4_k")),
        pytest.param("llama_quantisable", ("q4_0", "q4_0"), marks=pytest.mark.exhaustive),
    ],
)
def test_a_calibrated_model_is_nearer_to_the_source(name, types, models, text, tmp_path):
    checkpoint, path = models(name)
    logits = {}
    options = {"type": types[0], "expert_type": types[1]}
    convert(checkpoint, tmp_path / "plain.gguf", **options)
    summary = convert(checkpoint, tmp_path / "calibrated.gguf", calibrate=text, **options)
    for file in (path, tmp_path / "plain.gguf", tmp_path / "calibrated.gguf"):
        with q4run.load(file, context=256, threads=1) as model:
            ids = model.tokenize(text.read_text())[:200]
            logits[file.stem] = model.logits(ids)
    plain = kl_divergence(logits["model"], logits["plain"])
    calibrated = kl_divergence(logits["model"], logits["calibrated"])
    assert calibrated < 0.7 * plain

    assert any(f"in {types[1]}: " in note and "squared error" in note for note in summary.notes)
    assert any("not ternary" in note for note in summary.notes) == ("tq2_0" in types)
    values, tensors = read_gguf(tmp_path / "calibrated.gguf")
    _, plain_tensors = read_gguf(tmp_path / "plain.gguf")
    assert {t.name: t.tensor_type for t in tensors.values()} == {
        t.name: t.tensor_type for t in plain_tensors.values()
    }
    assert values["quantize.calibration.dataset"] == str(text)
    names = list(tensors)
    if "output.weight" in tensors:  # after all that is calibrated
        after = names[names.index("output.weight") + 1 :]
        roles = {role_of(name, len(tensors[name].shape)) for name in after}
        assert roles <= {Role.NORM, Role.ROUTER, Role.ROPE_FACTORS, Role.EMBEDDING}


def test_it_is_the_same_file_each_time_and_in_parts(models, text, tmp_path):
    checkpoint, _ = models("llama4_quantisable")
    options = {"type": "q4_0", "calibrate": text, "calibrate_chunks": 1}
    convert(checkpoint, tmp_path / "a.gguf", **options)
    convert(checkpoint, tmp_path / "b.gguf", **options)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    summary = convert(checkpoint, tmp_path / "c.gguf", split_max_size=200_000, **options)
    _, whole = read_gguf(tmp_path / "a.gguf")
    _, parts = read_gguf(*summary.outputs)
    assert len(summary.outputs) > 1
    for name, tensor in whole.items():
        assert np.array_equal(tensor.data, parts[name].data)


def test_ctrl_c_and_errors_leave_nothing_behind(models, text, tmp_path):
    checkpoint, _ = models("llama4_quantisable")
    out = tmp_path / "folder" / "out.gguf"
    out.parent.mkdir()

    def interrupt(done: int, total: int) -> None:
        if done > total // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert(checkpoint, out, type="q4_0", calibrate=text, progress=interrupt)
    with pytest.raises(BudgetError, match="--max-ram"):
        convert(checkpoint, out, type="q4_0", calibrate=text, max_ram=400_000_000)
    short = tmp_path / "short.txt"
    short.write_text("hello")
    with pytest.raises(Error, match="less than one window"):
        convert(checkpoint, out, type="q4_0", calibrate=short)
    result = invoke(
        "convert", checkpoint, out, "--type", "q4_0", "--calibrate", tmp_path / "none.txt"
    )
    assert result.exit_code == 1
    assert_one_error_line(result.stderr)
    assert list(out.parent.iterdir()) == []
