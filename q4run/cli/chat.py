"""``q4run chat``: a conversation, in the terminal or line by line through a pipe."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from q4run.cli import options
from q4run.cli.answer import PartWriter
from q4run.cli.chat_commands import COMMANDS, execute
from q4run.cli.live import progress
from q4run.cli.opening import open_model
from q4run.cli.thinking import Thinking
from q4run.errors import Error
from q4run.terminal import note, quiet_line, stderr_console, warn

if TYPE_CHECKING:
    from q4run.generation.completion import Completion
    from q4run.generation.conversation import Conversation
    from q4run.model import Model


def chat(
    *,
    model: options.ModelFile = None,
    system: options.System = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            "--tokens",
            "-n",
            metavar="TOKENS",
            min=1,
            help="Tokens per answer at most. Not given: up to the end of the context.",
            show_default=False,
        ),
    ] = None,
    json_output: options.Json = False,
    stats: options.Stats = False,
    thinking: Thinking,
    sampling: options.Sampling,
    settings: options.ModelSettings,
) -> None:
    """Talk to a model.

    In a terminal: Enter sends, Alt-Enter begins a new line, Ctrl-C stops an
    answer, Ctrl-D quits; /help lists what else there is. In a pipe, every line
    is a message, and standard output gets the answers alone; a model's reasoning
    goes to standard error.

    [bold]Examples[/]
      q4run chat
      q4run chat model.gguf --ram-budget 8G --system "Answer in one sentence."
      q4run chat model.gguf --ram-budget 50% --stats
      echo "Why is the sky blue?" | q4run chat model.gguf > answer.txt
    """
    with open_model(model, settings) as opened:
        from q4run.generation.conversation import Conversation

        if opened.template is None:
            note(f"{opened.path.name} has no chat template: it may not know how to converse.")
        conversation = Conversation(
            opened,
            sampling,
            system=system,
            max_tokens=tokens,
            variables=thinking.choose_variables(opened),
        )
        _converse(conversation, sys.stderr if json_output else sys.stdout, stats=stats)
        if json_output:
            print(json.dumps({"model": str(opened.path), "messages": conversation.messages}))


def _converse(conversation: Conversation[Model], stream: TextIO, *, stats: bool) -> None:
    """Answers until the input ends or /quit. At a terminal, errors and Ctrl-C end but one turn."""
    from q4run.generation.conversation import MessageTooLongError

    interactive = sys.stdin.isatty() and (sys.stdout.isatty() or sys.stderr.isatty())
    stats_before = conversation.model.stats
    for message in _typed() if interactive else sys.stdin:
        try:
            if message.startswith("/"):
                if not execute(message, conversation, stats_before):
                    break
            elif message.strip():
                _answer(conversation, message.strip(), stream, stats=stats)
        except KeyboardInterrupt:
            if not interactive:
                raise
        except Error as error:
            if not interactive and not isinstance(error, MessageTooLongError):
                raise
            warn(str(error))
    if stats and not stderr_console().is_terminal:
        from q4run.cli.heat_map import show_experts

        execute("/stats", conversation, stats_before)
        show_experts(conversation.model)


def _answer(
    conversation: Conversation[Model], message: str, stream: TextIO, *, stats: bool
) -> None:
    """One turn: its text to ``stream``, what is to be said about it to standard error."""
    writer = PartWriter(stream, trim=True)
    with conversation.ask(message) as turn:
        if turn.n_dropped:
            oldest = "exchange is" if turn.n_dropped == 1 else f"{turn.n_dropped} exchanges are"
            note(f"The context of {turn.context} tokens is full: the oldest {oldest} dropped.")
        try:
            model, completion = conversation.model, turn.completion
            with progress("reading the conversation", model, completion, stats=stats) as shown:
                for part in turn.parts():
                    with shown.writing():
                        writer.write(part)
        finally:
            writer.end(new_line=True)
            quiet_line(_facts(turn.completion))
    if turn.completion.finish == "context":
        note(f"The context of {turn.context} tokens is full: the answer ends here.")


def _facts(completion: Completion) -> Iterator[str]:
    from q4run.sizes import format_size

    if completion.finish == "interrupted" and not completion.text:
        yield "stopped before the answer began; the message is taken back"
        return
    n_tokens = len(completion.tokens)
    yield f"{n_tokens} token" + "s" * (n_tokens != 1)
    if completion.rate:
        yield f"{completion.rate:.1f} tok/s"
    stats = completion.stats
    if stats.hit_rate is not None:
        yield f"hits {100 * stats.hit_rate:.0f} %"
        yield f"{format_size(stats.bytes_read)} read"
    if completion.finish in ("interrupted", "length"):
        yield "stopped" if completion.finish == "interrupted" else "cut short by -n"


def _typed() -> Iterator[str]:
    """The messages that a person types, until Ctrl-D or Ctrl-C on an empty line, twice."""
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import WordCompleter
    from prompt_toolkit.formatted_text import FormattedText
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
    from prompt_toolkit.output import create_output
    from prompt_toolkit.shortcuts import CompleteStyle

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    session: PromptSession[str] = PromptSession(
        FormattedText([("bold ansigreen", "> ")]),
        multiline=True,
        prompt_continuation="  ",
        key_bindings=keys,
        completer=WordCompleter([f"/{name}" for name in COMMANDS], sentence=True),
        complete_while_typing=False,
        # A menu would keep eight lines below the prompt free.
        complete_style=CompleteStyle.READLINE_LIKE,
        output=create_output(always_prefer_tty=True),
    )
    note("Type a message; /help shows what else there is, Ctrl-D quits.")
    about_to_quit = False
    while True:
        try:
            print(file=sys.stderr)
            yield session.prompt()
            about_to_quit = False
        except EOFError:
            return
        except KeyboardInterrupt:
            if about_to_quit and not session.default_buffer.text:
                return
            about_to_quit = True
            note("Ctrl-C once more, or Ctrl-D, quits.")
