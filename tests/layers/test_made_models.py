"""Logits of tiny random models of each family against transformers, all in float32."""

from itertools import chain

import numpy as np
import pytest
from helpers.tiny_tokenizer import write_tokenizer
from helpers.transformers_cases import MADE_CASES, N_TOKENS

import q4run
from q4run.convert import convert
from q4run.gguf_file import open_gguf

TOLERANCE = 1e-4  # largest error over largest logit


@pytest.mark.reference
@pytest.mark.parametrize("case", MADE_CASES, ids=lambda case: case.name)
def test_logits_match_transformers(case, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(1)
    config = getattr(transformers, case.config_class)(**case.settings)
    model = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", dtype=torch.float32
    ).eval()
    # All 1 or 0 where nobody trained them: a missing one would not be seen.
    for name, values in chain(model.named_parameters(), model.named_buffers()):
        if "norm" in name:
            values.data = 1 + 0.3 * torch.randn_like(values)
        elif name.endswith(("bias", "sinks")):
            values.data = 0.3 * torch.randn_like(values)
    model.save_pretrained(tmp_path)
    write_tokenizer("llama", tmp_path)
    ids = np.random.default_rng(0).integers(0, config.vocab_size, N_TOKENS).tolist()
    with torch.no_grad():
        reference = model(torch.tensor([ids])).logits[0].numpy()
    path = tmp_path / "model.gguf"
    convert(tmp_path, path, type="f32")
    assert open_gguf(path).architecture == case.architecture
    with q4run.load(path, context=64, kv_type="f32") as loaded:
        together = loaded.logits(ids)
        loaded.session.clear()
        loaded.session.feed(ids[:1])
        alone = np.array([loaded.session.step(token) for token in ids[1:]])
    assert np.abs(together - reference).max() < TOLERANCE * np.abs(reference).max()
    assert np.array_equal(together[1:], alone)
