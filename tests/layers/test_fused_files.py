"""Files that hold queries, keys and values in one matrix, or gate and up in one stack."""

import numpy as np
import pytest
from helpers.rewriting import read_arrays, rewrite
from helpers.tiny_tokenizer import VOCAB_SIZE, write_tokenizer
from helpers.transformers_cases import MADE_CASES, make_model

import q4run
from q4run.budget import least_budget
from q4run.convert import convert
from q4run.experts.layout import read_layout
from q4run.gguf_file import open_gguf

IDS = np.random.default_rng(0).integers(0, VOCAB_SIZE, 40).tolist()
# With biases of queries, keys and values, norms of them, biases of experts, a shared expert.
CASES = [case for case in MADE_CASES if case.name in ("qwen2", "glm4moe", "gpt-oss", "minimax-m2")]


def fused(arrays: dict[str, np.ndarray], whole: str, parts: tuple[str, ...], axis: int) -> dict:
    """The same with ``whole`` wherever all ``parts`` are, each a part of a tensor's name."""
    done = dict(arrays)
    for name in arrays:
        names = [name.replace(parts[0], part) for part in parts]
        if parts[0] in name and all(part in arrays for part in names):
            joined = np.concatenate([done.pop(part) for part in names], axis=axis)
            done[name.replace(parts[0], whole)] = joined
    return done


@pytest.mark.reference
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fused_tensors_compute_the_same(case, tmp_path):
    make_model(case).save_pretrained(tmp_path)
    write_tokenizer("llama", tmp_path)
    apart, together = tmp_path / "apart.gguf", tmp_path / "together.gguf"
    convert(tmp_path, apart, type="f32")
    arrays = fused(read_arrays(apart), ".attn_qkv.", (".attn_q.", ".attn_k.", ".attn_v."), 0)
    arrays = fused(arrays, ".ffn_gate_up_exps.", (".ffn_gate_exps.", ".ffn_up_exps."), 1)
    assert any(".attn_qkv." in name for name in arrays)
    rewrite(apart, together, arrays)
    with q4run.load(apart, context=64, kv_type="f32") as model:
        expected = model.logits(IDS)
        config = model.config
    with q4run.load(together, context=64, kv_type="f32") as model:
        assert model.config.layers[0].attention.fused_qkv
        assert all(experts.fused_gate_up for experts in model.config.experts.values())
        assert np.array_equal(model.logits(IDS), expected)
    if config.experts:
        file = open_gguf(together)
        layout = read_layout(file, model.config)
        budget = least_budget(file, model.config, layout, context=64, kv_type="f32")
        with q4run.load(together, context=64, kv_type="f32", ram_budget=budget) as model:
            assert not model.plan.all_resident
            assert np.array_equal(model.logits(IDS), expected)
