"""The commands inside a chat: what begins with a slash."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rich.table import Table
from rich.text import Text

from q4run.terminal import note, printable, stderr_console, warn

if TYPE_CHECKING:
    from q4run.generation.conversation import Conversation
    from q4run.generation.stats import Stats
    from q4run.model import Model


class Command(NamedTuple):
    """``action`` gets the conversation, what follows the command's name, and the first stats."""

    argument: str
    does: str
    action: Callable[[Conversation[Model], str, Stats], None]


def execute(line: str, conversation: Conversation[Model], stats_before: Stats) -> bool:
    """Does what a line that begins with a slash says; False where the chat is over.

    Raises Error for files that cannot be read or written.
    """
    name, _, argument = line[1:].strip().partition(" ")
    if name == "quit":
        return False
    if name in COMMANDS:
        COMMANDS[name].action(conversation, argument.strip(), stats_before)
    else:
        warn(f"There is no command /{name}; /help shows those there are.")
    return True


def _help(conversation: Conversation[Model], argument: str, stats_before: Stats) -> None:
    rows = [(f"/{name} {command.argument}", command.does) for name, command in COMMANDS.items()]
    rows += [
        ("Enter", "send; Alt-Enter begins a new line"),
        ("Ctrl-C", "stop the answer; at the prompt, clear the line"),
        ("Ctrl-D", "quit"),
    ]
    _print_table(rows)


def _reset(conversation: Conversation[Model], argument: str, stats_before: Stats) -> None:
    conversation.start_anew(conversation.system)
    kept = "; the system message stays" if conversation.system else ""
    note(f"The conversation begins anew{kept}.")


def _system(conversation: Conversation[Model], argument: str, stats_before: Stats) -> None:
    if not argument:
        note(f"System message: {conversation.system or 'none'}")
    elif argument in ('""', "''"):
        conversation.system = None
        note("There is no system message any more.")
    else:
        conversation.system = argument
        note("The system message is set, from the next message on.")


def _save(conversation: Conversation[Model], argument: str, stats_before: Stats) -> None:
    from q4run.generation.conversation_file import save_chat

    if not argument:
        warn("/save wants a file: /save FILE")
        return
    path = Path(os.path.expanduser(argument))
    save_chat(path, conversation.messages, conversation.model.path.name)
    note(f"Saved {_exchanges(conversation)} to {path}.")


def _load(conversation: Conversation[Model], argument: str, stats_before: Stats) -> None:
    from q4run.generation.conversation_file import load_chat

    if not argument:
        warn("/load wants a file: /load FILE")
        return
    path = Path(os.path.expanduser(argument))
    conversation.start_anew(*load_chat(path))
    system = " and its system message" if conversation.system else ""
    note(f"Loaded {_exchanges(conversation)}{system} from {path}.")


def _exchanges(conversation: Conversation[Model]) -> str:
    count = len(conversation.exchanges)
    return f"{count} exchange" + "s" * (count != 1)


def _stats(conversation: Conversation[Model], argument: str, stats_before: Stats) -> None:
    from q4run.sizes import format_size

    model = conversation.model
    stats, plan = model.stats - stats_before, model.plan
    rows = [
        ("context", f"{len(model.session.tokens)} of {conversation.context} tokens"),
        ("prompts", _amount(stats.prompt_tokens, stats.prompt_s)),
        ("answers", _amount(stats.tokens, stats.decode_s)),
    ]
    if stats.hit_rate is not None:
        rows += [
            ("experts", f"{100 * stats.hit_rate:.0f} % of those wanted were in RAM"),
            ("in RAM", f"{plan.n_slots} of {plan.n_experts} experts"),
            ("disk", f"{format_size(stats.bytes_read)} read, {stats.wait_s:.2f} s waited"),
        ]
    rows += [
        (
            "memory",
            f"{format_size(plan.total)} planned, {format_size(stats.peak_rss)} at most held",
        ),
        ("loading", f"{model.load_s:.1f} s"),
    ]
    _print_table(rows)


def _amount(n_tokens: int, seconds: float) -> str:
    rate = f", {n_tokens / seconds:.1f} tok/s" if seconds else ""
    return f"{n_tokens} tokens{rate}"


def _print_table(rows: list[tuple[str, str]]) -> None:
    table = Table.grid(padding=(0, 3, 0, 0))
    for left, right in rows:
        table.add_row(Text(printable(left), style="bold"), Text(printable(right)))
    stderr_console().print(table)


def _quit(conversation: Conversation[Model], argument: str, stats_before: Stats) -> None:
    """In the list for /help; ``execute`` ends the chat."""


COMMANDS = {
    "help": Command("", "this list", _help),
    "reset": Command("", "begin anew; the system message stays", _reset),
    "system": Command("[TEXT]", 'set the system message ("" for none), or show it', _system),
    "save": Command("FILE", "write the conversation to a file", _save),
    "load": Command("FILE", "go on with a saved conversation", _load),
    "stats": Command("", "figures since the model was loaded", _stats),
    "quit": Command("", "end the conversation", _quit),
}
