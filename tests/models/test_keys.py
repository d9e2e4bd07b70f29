"""Every metadata key of llama.cpp is applied, refused by name, or told: for each family."""

from pathlib import Path
from typing import Any, ClassVar

import gguf
import pytest
from gguf import MODEL_TENSOR

from q4run import loading
from q4run.errors import UnsupportedError
from q4run.gguf_file import GGUFFile, describe_file
from q4run.models import FAMILIES, notes_on, read_config
from q4run.models.keys import _CHANGES_NOTHING, _SILENT, Decision
from q4run.models.parts import tensor_name

# Keys without which no family can be read.
LEAST: dict[str, Any] = {
    "context_length": 64,
    "embedding_length": 64,
    "block_count": 1,
    "feed_forward_length": 64,
    "attention.head_count": 4,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "expert_count": 4,
    "expert_used_count": 2,
    "expert_feed_forward_length": 32,
    "interleave_moe_layer_step": 1,
}


def keys_of(group: type) -> set[str]:
    """The keys of an architecture that gguf knows, in a class of constants and those within."""
    keys: set[str] = set()
    for name, value in vars(group).items():
        if isinstance(value, type):
            keys |= keys_of(value)
        elif not name.startswith("_") and str(value).startswith("{arch}."):
            keys |= {
                str(value).removeprefix("{arch}.").replace("{dense}", dense)
                for dense in ("dense_2", "dense_3")
            }
    return keys


KNOWN = keys_of(gguf.Keys)
assert {"logit_scale", "attention.indexer.top_k", "rope.scaling.type"} <= KNOWN


def file_of(arch: str, keys: dict[str, Any]) -> GGUFFile:
    applied = FAMILIES[arch].KEYS.applied
    least = {key: value for key, value in LEAST.items() if key in applied}
    values = {f"{arch}.{key}": value for key, value in (least | keys).items()}
    table = (tensor_name(MODEL_TENSOR.TOKEN_EMBD), (8, 64), gguf.GGMLQuantizationType.F32)
    values["general.architecture"] = arch
    return describe_file(Path("model.gguf"), values, [table])


@pytest.mark.parametrize("arch", FAMILIES)
def test_every_key_of_gguf_is_decided(arch):
    undecided = {key for key in KNOWN if FAMILIES[arch].KEYS.decide(key) is Decision.UNKNOWN}
    assert not undecided


def test_the_tables_know_no_key_that_gguf_does_not():
    assert not (_CHANGES_NOTHING.keys() | _SILENT) - KNOWN


@pytest.mark.parametrize("arch", FAMILIES)
def test_no_key_that_changes_something_passes_silently(arch):
    family = FAMILIES[arch]
    for key in sorted(KNOWN):
        file = file_of(arch, {"block_count": 100, key: 77})
        match family.KEYS.decide(key):
            case Decision.REFUSED:
                with pytest.raises(UnsupportedError, match=rf"{arch}\.{key} is 77\b"):
                    read_config(file)
            case Decision.TOLD:
                assert f"{key} (77)" in " ".join(notes_on(file))
            case Decision.APPLIED | Decision.SILENT:
                assert notes_on(file) == []


class Spy(GGUFFile):
    """A file that notes which keys are asked for."""

    asked: ClassVar[set[str]] = set()

    def _get(self, key: str, wanted: type, default: Any) -> Any:
        self.asked.add(key)
        return super()._get(key, wanted, default)

    def get_array(self, key: str, element_type: Any, default: Any = ...) -> Any:
        self.asked.add(key)
        return super().get_array(key, element_type, default)


@pytest.mark.parametrize("arch", FAMILIES)
def test_a_key_that_is_said_to_be_applied_is_read(arch):
    keys = {"rope.scaling.type": "yarn", "rope.scaling.factor": 2.0, "expert_shared_count": 1}
    file = file_of(arch, keys)
    fields = (file.path, file.parts, file.version, file.alignment, file.size)
    spy = Spy(*fields, file.metadata, file.tensors)
    spy.asked.clear()
    read_config(spy)
    asked = {key.removeprefix(f"{arch}.") for key in spy.asked}
    assert FAMILIES[arch].KEYS.applied <= asked


@pytest.mark.parametrize("arch", FAMILIES)
@pytest.mark.parametrize(
    "keys",
    [
        {"attention.scale": 0.0, "logit_scale": 1.0, "residual_scale": 0.0},
        {"final_logit_softcapping": 0.0, "attention.clamp_kqv": 0.0},
        {"attention.causal": True, "expert_group_count": 1, "expert_group_used_count": 1},
        {"attention.sliding_window": 0, "attention.sliding_window_pattern": [False]},
        {"rope.scaling.type": "none", "rope.scaling.finetuned": True},
        {"nextn_predict_layers": 0, "swiglu_clamp_exp": [0.0, 0.0], "expert_weights_scale": 1.0},
        {"vocab_size": 8, "tensor_data_layout": "Meta AI original pth"},
    ],
)
def test_values_that_change_nothing_pass_silently(arch, keys):
    file = file_of(arch, keys)
    read_config(file)
    assert notes_on(file) == []


def test_what_a_family_computes_anyway_passes_silently():
    assert notes_on(file_of("llama", {"expert_gating_func": 1, "expert_weights_norm": True})) == []
    (note,) = notes_on(file_of("llama", {"expert_gating_func": 2, "expert_weights_norm": False}))
    assert "expert_gating_func (2)" in note
    assert "expert_weights_norm" not in note  # no key at all says the same to llama.cpp
    assert notes_on(file_of("llama4", {"expert_gating_func": 2})) == []


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("attention.causal", False, "attention.causal is false"),
        ("expert_group_count", 8, "expert_group_count is 8"),
    ],
)
def test_what_llama_cpp_applies_is_refused_by_name_and_value(key, value, told):
    with pytest.raises(UnsupportedError, match=rf"model.gguf: llama\.{told}"):
        read_config(file_of("llama", {key: value}))


def test_what_llama_cpp_takes_no_notice_of_is_told_in_a_line():
    keys = {"attention.scale": 0.25, "attention.sliding_window": 4096}
    (note,) = notes_on(file_of("llama", keys))
    assert note == (
        "The file says attention.scale (0.25), attention.sliding_window (4096): llama.cpp takes"
        " no notice of that in a llama model, nor does q4run."
    )


def test_a_key_that_nobody_knows_is_told_in_a_line():
    (note,) = notes_on(file_of("llama", {"attention.wobble\n\x1b[2J": 3, "heat": [1.5] * 9}))
    assert "attention.wobble" in note
    assert "heat (9 values)" in note
    assert note.isprintable()
    (note,) = notes_on(file_of("llama", {f"strange_{i:02}": "x" * 1000 for i in range(20)}))
    assert "strange_07" in note
    assert "and 12 more" in note
    assert len(note) < 700


def test_who_runs_such_a_model_is_told():
    assert loading._notes(file_of("llama", {"logit_scale": 0.5}))[0].startswith(
        "The file says logit_scale (0.5)"
    )
