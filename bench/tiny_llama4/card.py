"""The card of the model in the box: python -m q4run.bench.tiny_llama4.card --log LOG --evaluation
JSON --dialogues JSON --stories JSON

LOG is the training's `log.jsonl`; the evaluation is what `evaluate --json` wrote, the other two are
what `q4run perplexity --json` printed for the held-out texts. Writes MODEL_CARD.md beside the model
and the training curve, `bench/results/tiny-llama4-training.json`, below the current folder: a page
is made of that by `python -m q4run.bench.pages.report`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from q4run.bench.tiny_llama4.curve import curve_of
from q4run.box import MODEL
from q4run.gguf_file import open_gguf
from q4run.inspection.model import summarize

CURVE = Path("bench/results/tiny-llama4-training.json")

_CARD = """\
# tiny-llama4, the model in the box

What `q4run chat` talks to when no model is named: a Mixture-of-Experts model with Llama 4's text
architecture, small enough to ship and trained, so that everything q4run does has something real to
do. **It is a demonstration.** It converses about restaurants, hotels, flights, films, music and the
weather in the way of task dialogues, and tells short fables. It looks nothing up: every name, price
and time in its answers is invented.

| | |
|---|---|
| file | `tiny-llama4.gguf`, {megabytes} MB |
| parameters | {parameters} M, {active} M active per token |
| shape | {n_layer} layers of width {n_embd}, {n_expert} experts (one per token and a shared one), \
4,096-token vocabulary |
| types | {types} |
| trained on | {n_tokens} M tokens in {n_steps} steps, on the CPU |

The routed experts are ternary: they were trained with weights of -1, 0 and +1 times a scale
(BitNet b1.58's absolute mean, one f16 scale for 256 values), so that TQ2_0 holds them without loss.
The rest was trained in bfloat16 and is stored as Q8_0.

## How well it predicts what it was not trained on

One in a hundred dialogues and one book (The Story of Doctor Dolittle) were held out.

| held out | tokens | perplexity | of the text alone | bits per byte |
|---|---:|---:|---:|---:|
{perplexities}

That is over whole dialogues and pieces of the book, from the second token on, with the checkpoint
in float32; "of the text alone" leaves out what the chat format decides. The shipped file itself, in
`q4run perplexity` (windows of 512, second halves): dialogues {dialogues}, book {stories}.

## How its experts are used

On the held-out texts. An expert counts as used from one token in a thousand on; 16 experts used
evenly would have an entropy of 4 bits.

| layer | experts used | entropy, bits | largest share | same as the token before | \
next layer's guessed | by two guesses |
|---:|---:|---:|---:|---:|---:|---:|
{layers}

A guess is the next layer's router applied to this layer's state after attention: what q4run reads
ahead by.

## What it cannot do

It knows no facts, follows few instructions, forgets constraints within a dialogue, and its stories
lose their thread after some sentences. It speaks English only.

## Data and licences

- [Schema-Guided Dialogue](https://github.com/google-research-datasets/dstc8-schema-guided-dialogue)
  (Google; Rastogi et al., arXiv:1909.05855), train split, CC BY-SA 4.0.
- Fables, fairy tales and children's stories in the public domain (Aesop, Andersen, Lofting and
  others).

The weights are offered under CC BY-SA 4.0, as the dialogues are; q4run itself is Apache-2.0.

## Making it again

The seed is fixed; `--data` holds `sgd_dialogues.txt` and `fables/*.txt`.

```bash
python -m q4run.bench.tiny_llama4.train --data DATA --out RUN
python -m q4run.bench.tiny_llama4.export RUN tiny-llama4
q4run convert tiny-llama4 tiny-llama4.gguf --type q8_0 --expert-type tq2_0
python -m q4run.bench.tiny_llama4.evaluate tiny-llama4 --data DATA --json evaluation.json --texts T
q4run perplexity tiny-llama4.gguf -f T/dialogues.txt --json > dialogues.json
q4run perplexity tiny-llama4.gguf -f T/stories.txt --json > stories.json
python -m q4run.bench.tiny_llama4.card --log RUN/log.jsonl --evaluation evaluation.json \\
    --dialogues dialogues.json --stories stories.json
```
"""


def read_log(path: Path) -> list[dict[str, Any]]:
    """The steps in order; of one that ran again after an interruption, the last."""
    lines = (json.loads(line) for line in path.read_text().splitlines())
    return [line for _, line in sorted({line["step"]: line for line in lines}.items())]


def card(
    log: list[dict[str, Any]], evaluation: dict[str, Any], windowed: dict[str, dict[str, Any]]
) -> str:
    summary = summarize(open_gguf(MODEL))
    types = ", ".join(
        f"{label} {'/'.join(figures['types'])}" for label, figures in summary["classes"].items()
    )
    return _CARD.format(
        megabytes=f"{MODEL.stat().st_size / 1e6:.2f}",
        parameters=f"{summary['parameters'] / 1e6:.1f}",
        active=f"{summary['active_parameters'] / 1e6:.1f}",
        n_layer=summary["block_count"],
        n_embd=summary["embedding_length"],
        n_expert=summary["experts"]["count"],
        types=types,
        n_tokens=f"{sum(line['tokens'] for line in log) / 1e6:.1f}",
        n_steps=log[-1]["step"],
        perplexities="\n".join(
            f"| {kind} | {one['tokens']:,} | {one['perplexity']:.2f} |"
            f" {one['text_perplexity']:.2f} | {one['bits_per_byte']:.3f} |"
            for kind, one in evaluation["perplexity"].items()
        ),
        layers="\n".join(_layer_row(i, use) for i, use in enumerate(evaluation["layers"])),
        **{kind: f"{one['ppl']:.2f} ± {one['ppl_stderr']:.2f}" for kind, one in windowed.items()},
    )


def _layer_row(layer: int, use: dict[str, float]) -> str:
    rates = (use[key] for key in ("largest_share", "reuse", "predicted", "predicted_by_two"))
    shown = [f"{rate:.0%}" if rate >= 0 else "" for rate in rates]
    return f"| {layer} | {use['used']} | {use['entropy']:.2f} | {' | '.join(shown)} |"


def main() -> None:
    """Parses the command line, writes the two files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name in ("log", "evaluation", "dialogues", "stories"):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="FILE")
    arguments = parser.parse_args()
    log = read_log(arguments.log)
    evaluation = json.loads(arguments.evaluation.read_text())
    windowed = {
        kind: json.loads(getattr(arguments, kind).read_text()) for kind in ("dialogues", "stories")
    }
    (MODEL.parent / "MODEL_CARD.md").write_text(card(log, evaluation, windowed), encoding="utf-8")
    CURVE.write_text(json.dumps(curve_of(log), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
