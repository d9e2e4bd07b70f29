"""Conversations in files: JSON with the messages, checked as what strangers send."""

import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from q4run.errors import Error, FormatError
from q4run.generation.conversation import Exchange

_KIND = "q4run conversation"
_MOST_BYTES = 16_000_000


def save_chat(path: Path, messages: list[dict[str, str]], model: str) -> None:
    """Writes messages as JSON: complete, or not at all.

    Raises Error where the path holds something else than a saved conversation, or cannot be
    written.
    """
    if path.exists() or path.is_symlink():
        try:
            is_ours = _read_json(path).get("kind") == _KIND
        except (Error, AttributeError):
            is_ours = False
        if not is_ours:
            raise Error(f"{path}: is there already and is no saved conversation; give another name")
    content = {"kind": _KIND, "model": model, "messages": messages}
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    try:
        _write_whole(path, text.encode("utf-8", "replace"))
    except OSError as error:
        raise Error(f"{path}: cannot be written: {error.strerror or error}") from error


def load_chat(path: Path) -> tuple[str | None, list[Exchange]]:
    """The system message and the exchanges in a file of ``save_chat``, or in any JSON list of
    messages with ``role`` and ``content``.

    Raises FormatError for all else, Error where the file cannot be read.
    """
    content = _read_json(path)
    messages = content.get("messages") if isinstance(content, dict) else content
    if not isinstance(messages, list):
        raise FormatError(f"{path}: not a conversation: there is no list of messages in it")
    said = [_checked(path, message, i) for i, message in enumerate(messages)]
    system = said.pop(0).content if said and said[0].role == "system" else None
    roles = [message.role for message in said]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise FormatError(
            f"{path}: the messages are not a system message, if any, and then by turns of user and"
            " assistant"
        )
    return system, [
        Exchange(user.content, assistant.content, assistant.reasoning)
        for user, assistant in zip(said[::2], said[1::2], strict=True)
    ]


def _write_whole(path: Path, data: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:64]}.")
    try:
        with open(handle, "wb") as file:
            file.write(data)
        os.replace(temporary, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


class _Message(NamedTuple):
    role: str
    content: str
    reasoning: str


def _checked(path: Path, message: Any, i: int) -> _Message:
    given = message if isinstance(message, dict) else {}
    role, content = given.get("role"), given.get("content")
    reasoning = given.get("reasoning_content")
    if role not in ("system", "user", "assistant") or not isinstance(content, str):
        raise FormatError(
            f"{path}: message {i + 1} has not a role (system, user or assistant) and a text as"
            " content"
        )
    return _Message(role, _valid(content), _valid(reasoning) if isinstance(reasoning, str) else "")


def _valid(text: str) -> str:
    """``text`` without lone surrogates, which JSON may hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _read_json(path: Path) -> Any:
    try:
        # A pipe or a device might never end.
        if not path.is_file():
            path.stat()
            raise Error(f"{path}: not a regular file; give a saved conversation")
        if path.stat().st_size > _MOST_BYTES:
            raise FormatError(f"{path}: too large for a conversation (over 16 MB)")
        data = path.read_bytes()
    except OSError as error:
        raise Error(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise FormatError(f"{path}: not a saved conversation: it is no JSON") from None
