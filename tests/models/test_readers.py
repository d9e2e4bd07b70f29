"""Readers of what some families have: routers, shared experts, windows, blocks that do not run."""

from pathlib import Path
from typing import Any

import pytest
from gguf import MODEL_TENSOR, GGMLQuantizationType

from q4run.errors import FormatError, UnsupportedError
from q4run.gguf_file import GGUFFile, describe_file
from q4run.layers.decoder import check_all_declared
from q4run.models import hy_v3, read_config
from q4run.models.config import n_layers, read_attention, read_experts, read_n_ff
from q4run.models.parts import (
    BARE,
    BIAS,
    WEIGHT,
    Experts,
    QKNorm,
    Router,
    Scores,
    SharedExpert,
    tensor_name,
)
from q4run.models.readers import (
    read_moe,
    read_qk_norm,
    read_router,
    read_shared,
    read_soft_cap,
    read_window,
    read_window_pattern,
)
from q4run.models.rope_keys import NEOX

KEYS: dict[str, Any] = {
    "context_length": 64,
    "embedding_length": 64,
    "block_count": 4,
    "feed_forward_length": 96,
    "attention.head_count": 4,
    "attention.layer_norm_rms_epsilon": 1e-5,
    "expert_count": 8,
    "expert_used_count": 2,
}


def file_of(tensors: dict[str, tuple[int, ...]] | None = None, **keys: Any) -> GGUFFile:
    """A file that says these keys (a dot is written as two underscores)."""
    named = {key.replace("__", "."): value for key, value in keys.items()}
    values = {f"llama.{key}": value for key, value in (KEYS | named).items()}
    values["general.architecture"] = "llama"
    shapes = {tensor_name(MODEL_TENSOR.TOKEN_EMBD): (8, 64)} | (tensors or {})
    described = [(name, shape, GGMLQuantizationType.F32) for name, shape in shapes.items()]
    return describe_file(Path("model.gguf"), values, described)


def layer_tensor(kind: MODEL_TENSOR, suffix: str = WEIGHT, shape: tuple[int, ...] = (8,)) -> dict:
    return {tensor_name(kind, 0, suffix): shape}


def test_a_router_is_the_familys_where_the_file_is_silent():
    default = Router(Scores.SIGMOID, renormalise=False, scale=2.5)
    assert read_router(file_of(), default) == default


def test_a_router_is_as_the_file_says():
    tensors = layer_tensor(MODEL_TENSOR.FFN_GATE_INP, BIAS)
    tensors |= layer_tensor(MODEL_TENSOR.FFN_EXP_PROBS_B, BIAS)
    file = file_of(
        tensors,
        expert_gating_func=3,
        expert_weights_norm=True,
        expert_weights_scale=0.5,
        expert_group_count=4,
        expert_group_used_count=2,
    )
    assert read_router(file, Router(renormalise=False)) == Router(
        Scores.CHOSEN_SOFTMAX, True, 0.5, True, True, 4, 2
    )


def test_a_weight_scale_of_0_is_1():
    assert read_router(file_of(expert_weights_scale=0.0), Router()).scale == 1


def test_routers_that_cannot_be_are_refused():
    with pytest.raises(UnsupportedError, match=r"expert_gating_func is 4.*known: 1, 2, 3"):
        read_router(file_of(expert_gating_func=4), Router())
    with pytest.raises(FormatError, match="5 of 4 groups"):
        read_router(file_of(expert_group_count=4, expert_group_used_count=5), Router())
    for n_group, used in ((3, 2), (8, 2)):
        with pytest.raises(FormatError, match=f"{used} of {n_group} groups"):
            read_experts(file_of(), 32, Router(n_group=n_group, n_group_used=used))


def test_the_shared_experts_matrices_tell_its_width():
    assert read_shared(file_of(), 32) is None
    assert read_shared(file_of(expert_shared_count=2), 32) == SharedExpert(64)
    assert read_shared(file_of(expert_shared_feed_forward_length=80), 32) == SharedExpert(80)
    tensors = layer_tensor(MODEL_TENSOR.FFN_UP_SHEXP, shape=(48, 64))
    tensors |= layer_tensor(MODEL_TENSOR.FFN_GATE_INP_SHEXP, shape=(64,))
    assert read_shared(file_of(tensors, expert_shared_count=2), 32) == SharedExpert(48, True)


def test_a_shared_experts_width_has_a_bound():
    attention = read_attention(file_of(), NEOX)
    keys = ("expert_shared_count", "expert_shared_feed_forward_length", "feed_forward_length")
    for key in keys:
        with pytest.raises(FormatError, match=f"{key} is {2**40}"):
            read_moe(file_of(**{key: 2**40}), attention, Router())


def test_hy_v3_is_dense_before_the_first_router():
    shape = (8, 64)
    routers = {tensor_name(MODEL_TENSOR.FFN_GATE_INP, layer): shape for layer in (1, 2)}
    layers = hy_v3.read_config(file_of(routers, block_count=3)).layers
    assert [isinstance(layer.feed_forward, Experts) for layer in layers] == [False, True, True]
    layers = hy_v3.read_config(file_of(routers, block_count=3, leading_dense_block_count=2)).layers
    assert [isinstance(layer.feed_forward, Experts) for layer in layers] == [False, False, True]


def test_windows():
    assert read_window(file_of()) is None
    assert read_window(file_of(attention__sliding_window=0)) is None
    assert read_window(file_of(attention__sliding_window=128)) == 128
    assert read_window_pattern(file_of(), 4, 2) == [True, False, True, False]
    file = file_of(attention__sliding_window_pattern=3)
    assert read_window_pattern(file, 4, 2) == [True, True, False, True]
    assert read_window_pattern(file_of(), 4, 0) == [True] * 4
    pattern = [False, True, True, False]
    file = file_of(attention__sliding_window_pattern=pattern)
    assert read_window_pattern(file, 4, 2) == pattern
    with pytest.raises(FormatError, match="3 entries for 4 layers"):
        read_window_pattern(file_of(attention__sliding_window_pattern=pattern[1:]), 4, 2)


def test_a_list_has_a_number_for_each_layer():
    file = file_of(attention__head_count=[4, 8, 4, 8], feed_forward_length=[96, 0, 64, 32])
    assert [read_attention(file, layer=i).n_head for i in range(4)] == [4, 8, 4, 8]
    assert read_n_ff(file, "feed_forward_length", layer=2) == 64
    with pytest.raises(FormatError, match="feed_forward_length is 0 in layer 1"):
        read_n_ff(file, "feed_forward_length", layer=1)
    with pytest.raises(UnsupportedError, match="head_count differs from layer to layer"):
        read_attention(file)
    assert read_n_ff(file_of(feed_forward_length=[96] * 4), "feed_forward_length") == 96
    with pytest.raises(FormatError, match="3 entries for 4 layers"):
        read_n_ff(file_of(feed_forward_length=[96] * 3), "feed_forward_length")


def test_optional_tensors_are_seen():
    plain = read_attention(file_of())
    assert not any((plain.qkv_bias, plain.out_bias, plain.fused_qkv))
    tensors = layer_tensor(MODEL_TENSOR.ATTN_Q, BIAS) | layer_tensor(MODEL_TENSOR.ATTN_OUT, BIAS)
    biased = read_attention(file_of(tensors))
    assert biased.qkv_bias
    assert biased.out_bias
    assert read_attention(file_of(layer_tensor(MODEL_TENSOR.ATTN_QKV, shape=(8, 8)))).fused_qkv
    normed = file_of(layer_tensor(MODEL_TENSOR.ATTN_Q_NORM))
    assert read_qk_norm(normed, QKNorm.WEIGHTED) is QKNorm.WEIGHTED
    assert read_qk_norm(file_of(), QKNorm.WEIGHTED) is QKNorm.NONE
    assert not read_experts(file_of(), 32, Router()).fused_gate_up
    tensors = layer_tensor(MODEL_TENSOR.FFN_GATE_UP_EXP, shape=(8, 64, 64))
    assert read_experts(file_of(tensors), 32, Router()).fused_gate_up


@pytest.mark.parametrize("suffix", [BARE, BIAS])
def test_a_selection_bias_is_known_by_either_name(suffix):
    file = file_of(layer_tensor(MODEL_TENSOR.FFN_EXP_PROBS_B, suffix))
    router = read_router(file, Router())
    assert router.selection_bias
    declared = Experts(8, 2, 32, router).tensors(64, 0)
    (bias,) = (t for t in declared if t.kind is MODEL_TENSOR.FFN_EXP_PROBS_B)
    assert bias.name in file.tensors


def test_a_soft_cap_of_0_is_none():
    assert read_soft_cap(file_of(final_logit_softcapping=0.0)) is None
    assert read_soft_cap(file_of(final_logit_softcapping=30.0)) == 30
    with pytest.raises(FormatError, match="must not be negative"):
        read_soft_cap(file_of(final_logit_softcapping=-1.0))


def test_blocks_of_multi_token_prediction_are_no_layers():
    name = tensor_name(MODEL_TENSOR.NEXTN_EH_PROJ, 3)
    tensors = {name: (64, 128)}
    file = file_of(tensors, nextn_predict_layers=1)
    config = read_config(file)
    assert n_layers(file) == len(config.layers) == 3
    assert not any(tensor.layer == 3 for tensor in config.tensors.values())
    check_all_declared(file, config)
    with pytest.raises(UnsupportedError, match="does not know what to do"):
        check_all_declared(file_of(tensors), read_config(file_of()))
    with pytest.raises(FormatError, match="nextn_predict_layers is 4"):
        read_config(file_of(nextn_predict_layers=4))
