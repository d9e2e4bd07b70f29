"""Converted files in llama.cpp: every type loads there and continues as q4run does.

Needs llama-cpp-python, which the [bench] extra brings along.
"""

import pytest
from helpers.tiny_checkpoints import make_checkpoint

import q4run
from q4run.convert import convert

llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

TYPES = ["f32", "f16", "bf16", "q8_0", "q4_0", "tq1_0", "tq2_0"]
QUESTION = "What is the weather going to be like in Berkeley tomorrow?"
PROMPT = (
    "<|begin_of_text|><|header_start|>user<|header_end|>\n\n"
    f"{QUESTION}<|eot|><|header_start|>assistant<|header_end|>\n\n"
)


def continue_in_llama_cpp(path, prompt: str, n_tokens: int) -> str:
    model = llama_cpp.Llama(str(path), n_ctx=256, verbose=False)
    try:
        ids = model.tokenize(prompt.encode(), add_bos=False, special=True)
        answer = model.create_completion(ids, max_tokens=n_tokens, temperature=0.0)
        return answer["choices"][0]["text"]
    finally:
        model.close()


@pytest.mark.parametrize("type_name", TYPES)
def test_the_trained_model_answers(type_name, shared_data, tmp_path):
    path = tmp_path / "tiny.gguf"
    convert(shared_data / "weights" / "tiny-llama4", path, type=type_name)
    text = continue_in_llama_cpp(path, PROMPT, 40)
    assert "chance of rain" in text
    if type_name.startswith("tq"):
        return  # llama.cpp rounds the activations of ternary matrices more coarsely than q4run
    with q4run.load(path, context=256) as model:
        ids = model.tokenize(PROMPT, special=True)
        ours = "".join(model.generate(ids, max_tokens=40, temperature=0.0))
    assert ours.strip() == text.strip()


def test_a_chat_stops_at_the_end_of_the_turn(shared_data, tmp_path):
    path = tmp_path / "tiny.gguf"
    folder = shared_data / "weights" / "tiny-llama4"
    convert(folder, path, type="q8_0", expert_type="q4_0")
    model = llama_cpp.Llama(str(path), n_ctx=256, verbose=False)
    answer = model.create_chat_completion(
        [{"role": "user", "content": QUESTION}], temperature=0.0, max_tokens=80
    )
    model.close()
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert "chance of rain" in answer["choices"][0]["message"]["content"]


@pytest.mark.parametrize(
    ("case", "type_name"),
    [("llama_quantisable", name) for name in TYPES]
    + [("mixtral_quantisable", name) for name in TYPES]
    + [("llama4_scout", "f32"), ("llama_rope_scaling", "f32"), ("llama_mha_odd", "q4_0")],
)
def test_every_family_and_type_loads_and_runs(case, type_name, tmp_path):
    folder = make_checkpoint(case, tmp_path / "checkpoint")
    convert(folder, tmp_path / "model.gguf", type=type_name)
    continue_in_llama_cpp(tmp_path / "model.gguf", "hello", 4)


def test_split_files_load(shared_data, tmp_path):
    folder = shared_data / "weights" / "tiny-llama4"
    summary = convert(folder, tmp_path / "tiny.gguf", type="q8_0", split_max_size=10**7)
    assert len(summary.outputs) > 2
    assert "chance of rain" in continue_in_llama_cpp(summary.outputs[0], PROMPT, 40)
