"""The training of the model in the box: against transformers, the packers and itself."""

import json
import os
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.converting import read_gguf, values_of

pytestmark = pytest.mark.reference
for name in ("torch", "transformers"):
    pytest.importorskip(name, reason=f"{name} comes with the [reference] extra")

import torch  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402

from q4run.bench.tiny_llama4 import export, train  # noqa: E402
from q4run.bench.tiny_llama4.checkpoint import TrainingState, load_checkpoint  # noqa: E402
from q4run.bench.tiny_llama4.corpus import HELD_OUT_BOOK, read_corpus  # noqa: E402
from q4run.bench.tiny_llama4.documents import (  # noqa: E402
    MAX_TOKENS,
    TrainingStream,
    held_out_documents,
    pack,
)
from q4run.bench.tiny_llama4.model import ModelConfig, forward  # noqa: E402
from q4run.bench.tiny_llama4.ops import cross_entropies, head_loss  # noqa: E402
from q4run.bench.tiny_llama4.optimizer import OptimizerConfig, orthogonalised  # noqa: E402
from q4run.bench.tiny_llama4.parameters import Parameters  # noqa: E402
from q4run.bench.tiny_llama4.ternary import ternarize  # noqa: E402
from q4run.bench.tiny_llama4.tokenizer import (  # noqa: E402
    CHAT_TEMPLATE,
    ChatEncoder,
    train_tokenizer,
)
from q4run.convert import convert  # noqa: E402

# Chunks, temperatures and layers without RoPE all come into play within 21 tokens.
TINY = ModelConfig(
    n_vocab=320,
    n_embd=256,
    n_layer=4,
    n_head=4,
    n_head_kv=2,
    head_dim=16,
    n_ff_expert=256,
    n_expert=4,
    chunk_size=8,
    floor_scale=4,
)
LENGTHS = [21, 5, 9]
WORDS = ["fox", "crow", "cheese", "voice", "branch", "sing", "saw", "said", "the", "fine", "so"]


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A little data folder: 120 dialogues, a book of fables and the held-out book."""
    folder = tmp_path_factory.mktemp("data")
    chance = random.Random(0)

    def sentence() -> str:
        return " ".join(chance.choices(WORDS, k=9)).capitalize() + "."

    dialogues = [
        "\n".join(f"{('User', 'Assistant')[turn % 2]}: {sentence()}" for turn in range(6))
        for _ in range(120)
    ]
    (folder / "sgd_dialogues.txt").write_text("\n\n".join(dialogues) + "\n")
    (folder / "fables").mkdir()
    for name in ("se_aesop_fables_v-s-vernon-jones.txt", HELD_OUT_BOOK):
        stories = [
            f"The {word.capitalize()} and the Crow\n\n" + " ".join(sentence() for _ in range(8))
            for word in WORDS[:4]
        ]
        (folder / "fables" / name).write_text("\n\n".join(stories) + "\n")
    return folder


@pytest.fixture(scope="module")
def tokenizer(corpus_folder: Path) -> Tokenizer:
    texts = [content for one in read_corpus(corpus_folder)[0].dialogues for _, content in one]
    return train_tokenizer(texts, vocab_size=TINY.n_vocab)


@pytest.fixture(scope="module")
def parameters() -> Parameters:
    """Random, with strong attention and routing, computed with in float32."""
    result = Parameters.random(TINY, torch.float32, seed=3)
    generator = torch.Generator().manual_seed(4)
    for name, values in result.views(result.trained).items():
        if name.endswith("norm"):
            values.normal_(1.0, 0.2, generator=generator)
        elif name.endswith((".q", ".k", ".router")):
            values.normal_(0.0, 2 * values.shape[-1] ** -0.5, generator=generator)
        elif name == "embedding":
            values.normal_(0.0, 0.2, generator=generator)
        else:
            values.normal_(0.0, 1.5 * values.shape[-1] ** -0.5, generator=generator)
    result.refresh()
    return result


@pytest.fixture(scope="module")
def folder(
    parameters: Parameters, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The random model as a Hugging Face folder."""
    path = tmp_path_factory.mktemp("exported")
    export.write_folder(parameters, tokenizer, path)
    return path


def random_ids() -> torch.Tensor:
    return torch.randint(
        0, TINY.n_vocab, (sum(LENGTHS),), generator=torch.Generator().manual_seed(5)
    )


def test_logits_and_gradients_are_those_of_transformers(
    parameters: Parameters, folder: Path
) -> None:
    from reference import transformers_forward

    grads = torch.zeros_like(parameters.trained)
    weights = parameters.weights(grads)
    ids, targets = random_ids(), random_ids().flip(0)
    done = forward(TINY, weights, ids, LENGTHS)
    ours = done.hidden @ weights["embedding"].value.T
    loss = head_loss(done.hidden, weights["embedding"], targets, 1.0)
    loss.backward()
    assert len(torch.stack(done.experts).unique()) == TINY.n_expert

    model = transformers_forward.load_model(folder)
    theirs = torch.cat(
        [model(part[None], use_cache=False).logits[0] for part in ids.split(LENGTHS)]
    )
    their_loss = torch.nn.functional.cross_entropy(theirs, targets, reduction="sum")
    their_loss.backward()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5 * theirs.abs().max().item())
    assert loss.item() == pytest.approx(their_loss.item(), rel=1e-6)

    their_grads = {name: one.grad for name, one in model.named_parameters()}
    as_theirs = Parameters(TINY, grads, grads)
    for name, ours in export.to_transformers(as_theirs).items():
        expected = their_grads.pop(name)
        assert expected.abs().max() > 0, name
        error = (ours - expected).abs().max() / expected.abs().max()
        assert error < 2e-5, name
    assert not their_grads.keys() - {"lm_head.weight"}


def test_batches_and_documents_do_not_see_each_other(parameters: Parameters) -> None:
    weights = parameters.weights(torch.zeros_like(parameters.trained))
    ids = random_ids()
    together = forward(TINY, weights, ids, LENGTHS).hidden
    alone = [forward(TINY, weights, part, [len(part)]).hidden for part in ids.split(LENGTHS)]
    torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-5)


def test_losses_without_gradients_are_those_with(parameters: Parameters) -> None:
    weights = parameters.weights(torch.zeros_like(parameters.trained))
    hidden = torch.randn(1030, TINY.n_embd)
    targets = torch.randint(0, TINY.n_vocab, (1030,))
    losses = cross_entropies(hidden, weights["embedding"].value, targets)
    total = head_loss(hidden, weights["embedding"], targets, 0.5)
    assert float(losses.sum()) / 2 == pytest.approx(total.item(), rel=1e-5)


def test_a_ternary_block_has_three_values_and_an_f16_scale() -> None:
    weights = torch.randn(3, 7, 512) * torch.logspace(-9, 4, 21).view(3, 7, 1)
    weights[1, 2] = 0.0
    weights[2, 3, :256] = 0.0
    out = torch.empty_like(weights)
    ternarize(weights, out)
    scales = out.view(-1, 256).abs().amax(1, keepdim=True)
    assert torch.equal(scales.half().float(), scales)
    assert torch.equal(out.bfloat16().float(), out)
    codes = out.view(-1, 256) / scales.clamp(min=1e-30)
    assert set(codes.unique().tolist()) == {-1.0, 0.0, 1.0}
    mean = weights.view(-1, 256).abs().mean(1, keepdim=True)
    is_large = (mean > 2.0**-13).expand_as(codes)
    expected = (weights.view(-1, 256) / mean).round().clamp(-1, 1)
    # The scale is rounded, which moves the thresholds a little.
    assert (codes == expected)[is_large].float().mean() > 0.99


@pytest.mark.parametrize("expert_type", ["tq2_0", "tq1_0"])
def test_converted_experts_are_the_trained_ones_exactly(
    parameters: Parameters, folder: Path, tmp_path: Path, expert_type: str
) -> None:
    convert(folder, tmp_path / "out.gguf", type="q8_0", expert_type=expert_type)
    metadata, tensors = read_gguf(tmp_path / "out.gguf")
    assert metadata["tokenizer.chat_template"] == CHAT_TEMPLATE
    computed = parameters.views(parameters.computed)
    for layer in range(TINY.n_layer):
        gate, up = computed[f"{layer}.experts.gate_up"].chunk(2, 1)
        down = computed[f"{layer}.experts.down"]
        for name, expected in (("gate", gate), ("up", up), ("down", down)):
            tensor = tensors[f"blk.{layer}.ffn_{name}_exps.weight"]
            assert tensor.tensor_type.name.lower() == expert_type
            np.testing.assert_array_equal(values_of(tensor), expected.numpy())


def test_a_folder_is_read_back_as_it_was_written(parameters: Parameters, folder: Path) -> None:
    again = export.read_folder(folder)
    assert again.config == TINY
    expected = parameters.weights(parameters.trained)
    for name, weight in again.weights(again.trained).items():
        assert torch.equal(weight.value, expected[name].value), name


def test_dialogues_are_encoded_as_the_template_renders_them(
    corpus_folder: Path, tokenizer: Tokenizer, folder: Path
) -> None:
    from transformers import AutoTokenizer

    encoder = ChatEncoder(tokenizer)
    dialogue = [("user", "Hello <|eot|> fox"), ("assistant", " Sing, please.\nNow. ")]
    theirs = AutoTokenizer.from_pretrained(folder)
    plain = [("user", "Hello fox"), ("assistant", " Sing, please.\nNow. ")]
    messages = [{"role": role, "content": content} for role, content in plain]
    expected = theirs.apply_chat_template(messages, return_dict=False)
    (ids,) = encoder.encode_dialogues([plain])
    assert ids == expected
    eot = encoder.id_of("<|eot|>")
    (ids,) = encoder.encode_dialogues([dialogue])
    assert ids.count(eot) == 2
    text = [token for token, is_text in zip(ids, encoder.is_text(ids), strict=True) if is_text]
    assert tokenizer.decode(text) == "Hello <|eot|> foxSing, please.\nNow."


def test_every_document_is_in_one_batch_and_none_is_held_out(
    corpus_folder: Path, tokenizer: Tokenizer
) -> None:
    trained_on, held = read_corpus(corpus_folder)
    assert (len(trained_on.dialogues), len(held.dialogues)) == (119, 1)
    assert (len(trained_on.stories), len(held.stories)) == (4, 4)
    encoder = ChatEncoder(tokenizer)
    stream = TrainingStream(encoder, trained_on, seed=1)
    documents = stream.epoch(0)
    assert documents == TrainingStream(encoder, trained_on, seed=1).epoch(0)
    assert documents != stream.epoch(1)
    batches = list(pack(documents, 512))
    assert all(batch.n_tokens <= 512 or len(batch.lengths) == 1 for batch in batches)
    again = [
        ids.tolist()
        for batch in batches
        for ids in np.split(batch.ids, np.cumsum(np.array(batch.lengths) + 1)[:-1])
    ]
    assert sorted(again) == sorted(documents)
    assert max(map(len, documents)) <= MAX_TOKENS + 1
    for batch in batches:
        inputs, targets = batch.inputs_and_targets()
        assert len(inputs) == len(targets) == batch.n_tokens
        starts = np.cumsum([0, *batch.lengths[:-1]])
        assert (inputs[starts] == encoder.bos).all()
        inside = np.setdiff1d(np.arange(1, batch.n_tokens), starts)
        np.testing.assert_array_equal(inputs[inside], targets[inside - 1])
    held_ids = {tuple(ids) for some in held_out_documents(encoder, held).values() for ids in some}
    assert held_ids
    assert not held_ids & {tuple(ids) for ids in documents}


def test_muons_steps_are_nearly_orthogonal() -> None:
    matrices = torch.randn(3, 64, 256, generator=torch.Generator().manual_seed(1))
    singular = torch.linalg.svdvals(orthogonalised(matrices, 5))
    assert singular.min() > 0.5
    assert singular.max() < 1.3


def test_training_goes_on_from_a_checkpoint_bit_for_bit(
    corpus_folder: Path,
    tokenizer: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trained_on, held = read_corpus(corpus_folder)
    encoder = ChatEncoder(tokenizer)
    config = train.TrainingConfig(
        n_steps=4,
        step_batches=2,
        batch_tokens=512,
        n_warmup=2,
        n_processes=2,
        checkpoint_steps=2,
        eval_steps=4,
    )
    model = replace(TINY, n_layer=2, nope_interval=2)

    def train_on(state: TrainingState, out: Path) -> None:
        out.mkdir()
        stream = TrainingStream(encoder, trained_on, config.seed)
        documents = held_out_documents(encoder, held)
        run = train.Run(config, OptimizerConfig(), state, stream, documents, out)
        train.run_processes(run)

    started = TrainingState.new(model, torch.bfloat16, config.seed)
    before = started.parameters.trained.clone()
    train_on(started, tmp_path / "whole")
    whole, _ = load_checkpoint(tmp_path / "whole" / "checkpoint.pt", torch.bfloat16)
    lines = [json.loads(line) for line in (tmp_path / "whole" / "log.jsonl").open()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert not torch.equal(whole.parameters.trained, before)

    class Killed(train.Run):
        def _report(self, *arguments: Any) -> None:
            super()._report(*arguments)
            if self.state.step == 3:
                os._exit(9)

    monkeypatch.setattr(train, "Run", Killed)
    with pytest.raises(SystemExit, match="9"):
        train_on(TrainingState.new(model, torch.bfloat16, config.seed), tmp_path / "killed")
    monkeypatch.undo()
    half, _ = load_checkpoint(tmp_path / "killed" / "checkpoint.pt", torch.bfloat16)
    assert half.step == 2
    train_on(half, tmp_path / "resumed")
    resumed, _ = load_checkpoint(tmp_path / "resumed" / "checkpoint.pt", torch.bfloat16)
    assert resumed.step == 4
    for name in ("trained", "computed"):
        ours, theirs = getattr(resumed.parameters, name), getattr(whole.parameters, name)
        assert torch.equal(ours, theirs), name
    assert torch.equal(resumed.first, whole.first)
    assert torch.equal(resumed.second, whole.second)
