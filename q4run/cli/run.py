"""``q4run run``: one completion to standard output."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from q4run.cli import options
from q4run.cli.answer import PartWriter
from q4run.cli.live import progress
from q4run.cli.opening import open_model
from q4run.cli.thinking import Thinking
from q4run.errors import Error
from q4run.terminal import note, quiet_line
from q4run.text.files import decode_text, read_text

if TYPE_CHECKING:
    from q4run.generation.completion import Completion
    from q4run.model import Model


@dataclass(frozen=True)
class Prompt:
    """What is put to the model, and how."""

    prompt: Annotated[
        str | None,
        typer.Option(
            "--prompt",
            "-p",
            metavar="PROMPT",
            help="What to answer or, with --raw, to continue; - reads it from standard input.",
            show_default=False,
        ),
    ] = None
    file: Annotated[
        Path | None,
        typer.Option(
            "--file", "-f", metavar="FILE", help="Read the prompt from a file.", show_default=False
        ),
    ] = None
    tokens: Annotated[
        int, typer.Option("--tokens", "-n", metavar="TOKENS", min=1, help="Tokens at most.")
    ] = 256
    system: options.System = None
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as it stands: no chat template.")
    ] = False

    def read(self) -> str:
        """Returns the text of -p or -f. Raises typer.BadParameter unless it is one of them, and
        Error for a text that says nothing or, from a file, is not UTF-8."""
        if self.raw and self.system is not None:
            raise typer.BadParameter("--system goes into the chat template, which --raw leaves out")
        if (self.prompt is None) == (self.file is None):
            raise typer.BadParameter("give the prompt with either -p PROMPT or -f FILE")
        text = self._given()
        if not self.raw and not text.strip():
            raise Error("the prompt is empty: write something to answer")
        return text

    def _given(self) -> str:
        if self.file:
            return read_text(self.file)
        if self.prompt == "-":
            return decode_text(sys.stdin.buffer.read(), "standard input")
        return str(self.prompt)


def run(
    *,
    model: options.ModelFile = None,
    prompt: Prompt,
    json_output: options.Json = False,
    stats: options.Stats = False,
    thinking: Thinking,
    sampling: options.Sampling,
    settings: options.ModelSettings,
) -> None:
    """Complete one prompt: the text goes to standard output, figures to standard error.

    The prompt is put to the model as a user's message, in the chat template
    that its file brings along; --raw continues the prompt as it stands. A
    model's reasoning goes to standard error.

    [bold]Examples[/]
      q4run run -p "I am looking for a restaurant in San Jose."
      q4run run model.gguf -p "Why is the sky blue?"
      q4run run model.gguf -p "Once upon a time" --raw -n 64 --temp 0
      q4run run model.gguf -f question.txt --ram-budget 8G > answer.txt
      git diff | q4run run model.gguf -p - --system "Sum this change up."
    """
    text = prompt.read()
    if prompt.raw:
        thinking.refuse("--raw leaves out the chat template, which would read it")
    with open_model(model, settings) as opened:
        from q4run.generation.completion import Completion
        from q4run.generation.sampler import Sampler

        ids = _tokenize(opened, text, prompt, thinking)
        completion = Completion(
            opened.session,
            opened.tokenizer,
            ids,
            Sampler(sampling),
            prompt.tokens,
            marks=opened.template.marks if opened.template and not prompt.raw else None,
        )
        # A pipe gets the completion and nothing else, not even a line feed.
        writer = PartWriter(sys.stderr if json_output else sys.stdout)
        try:
            with progress("reading the prompt", opened, completion, stats=stats) as shown:
                for part in completion.parts():
                    with shown.writing():
                        writer.write(part)
        finally:
            writer.end(new_line=json_output or sys.stdout.isatty())
        if json_output:
            print(json.dumps(_figures(opened, completion, stats)))
        quiet_line(_facts(completion))
        if stats:
            from q4run.cli.heat_map import show_experts

            show_experts(opened)
        if completion.finish == "context":
            note(f"The context of {opened.session.context} tokens is full; --context gives more.")


def _tokenize(model: Model, text: str, prompt: Prompt, thinking: Thinking) -> list[int]:
    if prompt.raw:
        return model.tokenize(text, special=True)
    variables = thinking.choose_variables(model)
    if model.template is None:
        also = "" if prompt.system is None else ", and --system is left out"
        note(f"{model.path.name} has no chat template: the prompt is continued as by --raw{also}.")
        return model.tokenize(text, special=True)
    messages = [{"role": "system", "content": prompt.system}] if prompt.system else []
    messages.append({"role": "user", "content": text})
    return model.tokenize(model.template.render(messages, **variables), special=True)


def _facts(completion: Completion) -> list[str]:
    from q4run.sizes import format_size

    stats, n_tokens = completion.stats, len(completion.tokens)
    facts = [f"prompt {stats.prompt_tokens} tokens"]
    if completion.prompt_rate:
        facts[-1] += f" at {completion.prompt_rate:.1f}/s"
    facts.append(f"answer {n_tokens} token" + "s" * (n_tokens != 1))
    if completion.rate:
        facts[-1] += f" at {completion.rate:.1f}/s"
    if stats.hit_rate is not None:
        facts.append(f"hits {100 * stats.hit_rate:.0f} %")
        read = f"{format_size(stats.bytes_read)} read"
        if stats.requests:
            read += f" in {stats.requests} requests"
        facts.append(f"{read}, {stats.wait_s:.2f} s waited")
    return facts


def _figures(model: Model, completion: Completion, with_layers: bool) -> dict[str, Any]:
    """The one JSON object: the keys of ``bench`` where they mean the same."""
    stats = completion.stats
    figures: dict[str, Any] = {
        "model": str(model.path),
        "text": completion.text,
        "reasoning": completion.reasoning,
        "finish": completion.finish,
        "threads": model.threads,
        "io": model.io,
        "ram_budget": model.plan.budget,
        "prefill": {"tokens": stats.prompt_tokens, "tok_s": completion.prompt_rate},
        "decode": {"tokens": len(completion.tokens), "tok_s": completion.rate},
        "load_s": model.load_s,
        "first_token_s": completion.first_token_s,
        "peak_rss": model.stats.peak_rss,
        "experts": {
            "hit_rate": stats.hit_rate,
            "bytes_read": stats.bytes_read,
            "requests": stats.requests,
            "wait_s": stats.wait_s,
        },
    }
    if with_layers:
        figures["experts"]["layers"] = [
            {"layer": layer, "uses": uses, "in_ram": (model.store.addresses(layer) != 0).tolist()}
            for layer, uses in model.store.uses.items()
        ]
    return figures
