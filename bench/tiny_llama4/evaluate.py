"""A trained model on held-out text: python -m q4run.bench.tiny_llama4.evaluate FOLDER --data DIR

FOLDER is what `export` wrote. Prints perplexity on dialogues and on a book that were not trained
on, and for each layer how its experts are used: how many, how evenly, how often a token goes where
the one before it went, and how often the next layer's router, applied to this layer's state, names
the expert that the next layer will use. `--json FILE` writes the same figures, `--texts DIR` the
held-out texts, for `q4run perplexity -f DIR/dialogues.txt`.
"""

from __future__ import annotations

import argparse
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer
from torch import Tensor

from q4run.bench.tiny_llama4 import ops
from q4run.bench.tiny_llama4.corpus import read_corpus
from q4run.bench.tiny_llama4.documents import Batch, held_out_documents, pack
from q4run.bench.tiny_llama4.export import read_folder
from q4run.bench.tiny_llama4.model import ModelConfig, Pass, forward, router_logits
from q4run.bench.tiny_llama4.ops import Weight
from q4run.bench.tiny_llama4.tokenizer import ChatEncoder

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Perplexity:
    """Of `tokens` predicted; `text` leaves out what the chat format alone decides.

    `bits_per_byte` is of the text's bytes, which does not depend on the vocabulary.
    """

    tokens: int
    perplexity: float
    text_perplexity: float
    bits_per_byte: float


@dataclass
class LayerUse:
    """Over all held-out tokens; rates are of tokens, -1 where there is no such token or layer.

    An expert counts as used when at least one token in a thousand goes to it. `entropy` is in bits.
    """

    used: int
    entropy: float
    largest_share: float
    reuse: float
    predicted: float = -1.0
    predicted_by_two: float = -1.0
    predicted_after_layer: float = -1.0


@torch.no_grad()
def run_batch(
    config: ModelConfig, weights: dict[str, Weight], batch: Batch, keep_states: bool = False
) -> tuple[Tensor, Tensor, Pass]:
    """(targets, their cross-entropies in nats, the forward pass), both (tokens,)."""
    ids, targets = (torch.from_numpy(array) for array in batch.inputs_and_targets())
    done = forward(config, weights, ids, list(batch.lengths), keep_states)
    return targets, ops.cross_entropies(done.hidden, weights["embedding"].value, targets), done


def mean_loss(config: ModelConfig, weights: dict[str, Weight], documents: list[list[int]]) -> float:
    """In nats per token."""
    losses = [run_batch(config, weights, batch)[1] for batch in pack(documents, BATCH_TOKENS)]
    return float(torch.cat(losses).double().mean())


def perplexity(
    config: ModelConfig,
    weights: dict[str, Weight],
    encoder: ChatEncoder,
    documents: list[list[int]],
) -> Perplexity:
    """Of whole documents, each from its second token on."""
    total = text_total = 0.0
    n_tokens = n_text = n_bytes = 0
    for batch in pack(documents, BATCH_TOKENS):
        targets, losses, _ = run_batch(config, weights, batch)
        is_text = torch.tensor(encoder.is_text(targets.tolist()))
        total += float(losses.double().sum())
        text_total += float(losses[is_text].double().sum())
        n_tokens += len(targets)
        n_text += int(is_text.sum())
        text = encoder.tokenizer.decode(targets[is_text].tolist(), skip_special_tokens=False)
        n_bytes += len(text.encode())
    return Perplexity(
        n_tokens,
        math.exp(total / n_tokens),
        math.exp(text_total / n_text),
        total / math.log(2) / n_bytes,
    )


def expert_use(
    config: ModelConfig, weights: dict[str, Weight], documents: list[list[int]]
) -> list[LayerUse]:
    """One for each layer."""
    n_layer = config.n_layer
    counts = torch.zeros(n_layer, config.n_expert)
    reused, predicted, by_two, after = torch.zeros(4, n_layer)
    n_tokens = n_following = 0
    for batch in pack(documents, BATCH_TOKENS):
        done = run_batch(config, weights, batch, keep_states=True)[2]
        n_tokens += batch.n_tokens
        n_following += batch.n_tokens - len(batch.lengths)
        for layer, experts in enumerate(done.experts):
            counts[layer] += torch.bincount(experts, minlength=config.n_expert)
            for document in experts.split(list(batch.lengths)):
                reused[layer] += (document[1:] == document[:-1]).sum()
            if layer + 1 < n_layer:
                actual = done.experts[layer + 1][:, None]
                logits = _next_logits(config, weights, layer, done.after_attention[layer])
                hits = logits.topk(2).indices == actual
                predicted[layer] += hits[:, 0].sum()
                by_two[layer] += hits.sum()
                logits = _next_logits(config, weights, layer, done.after_layer[layer])
                after[layer] += (logits.argmax(1) == actual[:, 0]).sum()
    result = []
    for layer in range(n_layer):
        share = counts[layer] / n_tokens
        use = LayerUse(
            used=int((share >= 1e-3).sum()),
            entropy=float(-(share * share.clamp(min=1e-12).log2()).sum()),
            largest_share=float(share.max()),
            reuse=float(reused[layer] / n_following),
        )
        if layer + 1 < n_layer:
            rates = (float(hits[layer] / n_tokens) for hits in (predicted, by_two, after))
            use.predicted, use.predicted_by_two, use.predicted_after_layer = rates
        result.append(use)
    return result


def _next_logits(
    config: ModelConfig, weights: dict[str, Weight], layer: int, state: Tensor
) -> Tensor:
    """The next layer's router on a residual stream (tokens, n_embd) from within `layer`."""
    norm, router = weights[f"{layer + 1}.ffn_norm"], weights[f"{layer + 1}.router"]
    return router_logits(router, ops.rms_norm(state, norm, config.rms_eps, torch.float32))


def print_report(perplexities: dict[str, Perplexity], uses: list[LayerUse]) -> None:
    """Both tables."""
    console = Console()
    table = Table("held out", "tokens", "perplexity", "of the text alone", "bits per byte")
    for kind, one in perplexities.items():
        figures = (one.perplexity, one.text_perplexity, one.bits_per_byte)
        table.add_row(kind, str(one.tokens), *(f"{figure:.3f}" for figure in figures))
    console.print(table)
    table = Table("layer", "experts used", "entropy, bits", "largest share", "as the token before")
    for title in ("next layer's named", "by its two best", "after the layer"):
        table.add_column(title)
    for layer, use in enumerate(uses):
        rates = (use.largest_share, use.reuse, use.predicted, use.predicted_by_two)
        shown = [f"{rate:.1%}" if rate >= 0 else "" for rate in (*rates, use.predicted_after_layer)]
        table.add_row(str(layer), str(use.used), f"{use.entropy:.2f}", *shown)
    console.print(table)


def main() -> None:
    """Parses the command line, computes, prints."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--texts", type=Path, metavar="DIR")
    arguments = parser.parse_args()
    parameters = read_folder(arguments.folder)
    weights = parameters.weights(torch.zeros_like(parameters.trained))
    tokenizer = Tokenizer.from_file(str(arguments.folder / "tokenizer.json"))
    encoder = ChatEncoder(tokenizer)
    documents = held_out_documents(encoder, read_corpus(arguments.data)[1])
    config = parameters.config
    perplexities = {
        kind: perplexity(config, weights, encoder, some) for kind, some in documents.items()
    }
    uses = expert_use(config, weights, [one for some in documents.values() for one in some])
    print_report(perplexities, uses)
    if arguments.json:
        content = {
            "perplexity": {kind: asdict(one) for kind, one in perplexities.items()},
            "layers": [asdict(use) for use in uses],
        }
        arguments.json.write_text(json.dumps(content, indent=1) + "\n")
    if arguments.texts:
        arguments.texts.mkdir(parents=True, exist_ok=True)
        for kind, some in documents.items():
            texts = tokenizer.decode_batch(some, skip_special_tokens=False)
            (arguments.texts / f"{kind}.txt").write_text("".join(texts), encoding="utf-8")


if __name__ == "__main__":
    main()
