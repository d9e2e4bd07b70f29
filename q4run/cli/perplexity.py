"""``q4run perplexity``: how well a model predicts a text, and how far it is from another."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from q4run.cli import options
from q4run.cli.opening import open_model
from q4run.errors import Error
from q4run.settings import Settings
from q4run.terminal import Waiting, quiet_line
from q4run.text import DEFAULT_WINDOW
from q4run.text.files import read_text

if TYPE_CHECKING:
    from q4run.generation.perplexity import Losses, Mean, Report
    from q4run.model import Model


def perplexity(
    *,
    file: Annotated[
        Path,
        typer.Option("--file", "-f", metavar="TEXT", help="The text to predict, in UTF-8."),
    ],
    model: options.ModelFile = None,
    base: Annotated[
        Path | None,
        typer.Option(
            "--base",
            metavar="MODEL",
            help="Also tell how far the model is from this one, of which it is a smaller form: KL"
            " divergence, and how often both hold the same token for the likeliest.",
            show_default=False,
        ),
    ] = None,
    context: Annotated[
        int,
        typer.Option("--context", metavar="N", min=4, help="Tokens per window."),
    ] = DEFAULT_WINDOW,
    chunks: options.Chunks = None,
    special: Annotated[
        bool,
        typer.Option(
            "--special/--plain",
            help="Whether control tokens written out in the text, such as <|eot|>, count as such.",
        ),
    ] = True,
    json_output: options.Json = False,
    settings: Annotated[
        Settings,
        options.settings_options("ram_budget", "threads", "io", "cache", "prefetch", "kv_type"),
    ],
) -> None:
    """Measure how well a model predicts a text.

    Windows and counting are those of llama-perplexity: the tokens of each
    window's second half count. With --base, both models are loaded, and share
    --ram-budget by their sizes.

    [bold]Examples[/]
      q4run perplexity model.gguf -f wiki.test.raw
      q4run perplexity model.gguf -f chats.txt --base model-f16.gguf
      q4run perplexity model.gguf -f wiki.test.raw --chunks 20 --json
    """
    text = read_text(file)
    settings = replace(settings, context=context)
    shares = _share(settings, [path for path in (model, base) if path])
    with ExitStack() as stack:
        opened = stack.enter_context(open_model(model, shares[0]))
        other = stack.enter_context(open_model(base, shares[-1])) if base else None
        from q4run.generation.perplexity import measure
        from q4run.text.windows import cut_windows

        if other:
            _check_same_vocabulary(opened, other)
        ids = opened.tokenize(text, special=special)
        windows = cut_windows(opened.tokenizer, ids, context, chunks, name=str(file))
        with Waiting("measuring") as waiting:

            def tell(losses: Losses, done: int) -> None:
                waiting.update(f"perplexity {losses.perplexity:.4f}", done, len(windows))

            report = measure(opened.session, windows, other.session if other else None, tell)
    if json_output:
        print(json.dumps(_figures(opened, other, context, len(windows), report)))
    else:
        for line in _lines(report):
            print(line)
    quiet_line([f"{report.tokens} tokens counted, {len(windows)} windows of {context}"])


def _share(settings: Settings, paths: list[Path]) -> list[Settings]:
    """Returns the settings of each model: they share the budget by the files' sizes."""
    budget = settings.budget_bytes
    if budget is None or len(paths) < 2:
        return [settings]
    from q4run.gguf_file import open_gguf

    sizes = [sum(part.stat().st_size for part in open_gguf(path).parts) for path in paths]
    return [replace(settings, ram_budget=budget * size // sum(sizes)) for size in sizes]


def _check_same_vocabulary(model: Model, base: Model) -> None:
    same = model.config.n_vocab == base.config.n_vocab
    probe = "The quick brown fox, 3.14 naïve 中文"
    if not same or model.tokenize(probe) != base.tokenize(probe):
        raise Error(
            f"{base.path} has another vocabulary than {model.path}: --base must be the same model"
            " in another type"
        )


def _figures(
    model: Model, base: Model | None, context: int, n_windows: int, report: Report
) -> dict[str, Any]:
    """The one JSON object."""

    def both(name: str, mean: Mean | None) -> dict[str, float | None]:
        stderr = f"{name.removesuffix('_mean')}_stderr"
        return (
            {name: None, stderr: None} if mean is None else {name: mean.value, stderr: mean.stderr}
        )

    return {
        "model": str(model.path),
        "base": base and str(base.path),
        "context": context,
        "chunks": n_windows,
        "tokens": report.tokens,
        **both("ppl", report.perplexity),
        **both("base_ppl", report.base_perplexity),
        **both("ppl_ratio", report.ratio),
        **both("kl_mean", report.kl),
        "kl_p99": report.kl_p99,
        **both("top1_agreement", report.top1_agreement),
    }


def _lines(report: Report) -> list[str]:
    def shown(mean: Mean, digits: int, factor: int = 1, unit: str = "") -> str:
        value, stderr = factor * mean.value, factor * mean.stderr
        return f"{value:.{digits}f}{unit} ± {stderr:.{digits}f}{unit}"

    lines = [f"perplexity           {shown(report.perplexity, 4)}"]
    if report.base_perplexity and report.ratio and report.kl and report.top1_agreement:
        lines += [
            f"of the base model    {shown(report.base_perplexity, 4)}",
            f"ratio                {shown(report.ratio, 5)}",
            f"KL divergence        {shown(report.kl, 6)} (99th percentile {report.kl_p99:.5f})",
            f"same likeliest token {shown(report.top1_agreement, 2, 100, ' %')}",
        ]
    return lines
