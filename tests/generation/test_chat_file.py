"""Saved conversations: what comes back, what is never overwritten, what is refused."""

import json
import os

import pytest

from q4run.errors import Error, FormatError
from q4run.generation.conversation import Exchange
from q4run.generation.conversation_file import load_chat, save_chat

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Ünïcode \u2028 and\nlines"},
    {"role": "assistant", "content": "[bold]yes[/bold]"},
]


def test_a_saved_conversation_comes_back(tmp_path):
    path = tmp_path / "talk.json"
    save_chat(path, MESSAGES, "tiny.gguf")
    assert load_chat(path) == (
        "Be brief.",
        [Exchange("Ünïcode \u2028 and\nlines", "[bold]yes[/bold]")],
    )
    save_chat(path, MESSAGES[:1], "tiny.gguf")
    assert load_chat(path) == ("Be brief.", [])
    assert os.listdir(tmp_path) == ["talk.json"]


def test_a_plain_list_of_messages_is_a_conversation_too(tmp_path):
    path = tmp_path / "list.json"
    path.write_text(json.dumps(MESSAGES[1:] * 2))
    system, exchanges = load_chat(path)
    assert system is None
    assert len(exchanges) == 2


@pytest.mark.parametrize("content", ["", "notes", '{"messages": []}', "[]", "[" * 100_000])
def test_saving_never_overwrites_something_else(tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_text(content)
    with pytest.raises(Error, match="no saved conversation"):
        save_chat(path, MESSAGES, "tiny.gguf")
    assert path.read_text() == content
    assert os.listdir(tmp_path) == ["notes.txt"]


def test_saving_where_nothing_can_be_written_is_an_error(tmp_path):
    with pytest.raises(Error, match=r"no/talk.json: cannot be written: No such file"):
        save_chat(tmp_path / "no" / "talk.json", MESSAGES, "tiny.gguf")
    (tmp_path / "folder").mkdir()
    with pytest.raises(Error, match="no saved conversation"):
        save_chat(tmp_path / "folder", MESSAGES, "tiny.gguf")
    assert os.listdir(tmp_path) == ["folder"]


HOSTILE = {
    "nothing": b"",
    "binary": bytes(range(256)),
    "deep": b"[" * 100_000,
    "digits": b"[" + b"9" * 100_000 + b"]",
    "number": b"17",
    "text": b'"messages"',
    "no messages": b'{"messages": null}',
    "messages as text": b'{"messages": "user"}',
    "numbers": b"[1, 2]",
    "no content": b'[{"role": "user"}]',
    "role no text": b'[{"role": ["user"], "content": "x"}]',
    "content no text": b'[{"role": "user", "content": [{"type": "text", "text": "x"}]}]',
    "unknown role": b'[{"role": "tool", "content": "x"}]',
    "only user": b'[{"role": "user", "content": "x"}]',
    "wrong order": b'[{"role": "assistant", "content": "x"}, {"role": "user", "content": "x"}]',
    "late system": b'[{"role": "user", "content": "x"}, {"role": "system", "content": "x"}]',
}


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused_in_one_line(tmp_path, content):
    path = tmp_path / "talk.json"
    path.write_bytes(content)
    with pytest.raises(FormatError) as caught:
        load_chat(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


def test_half_surrogates_in_a_file_do_no_harm(tmp_path):
    path = tmp_path / "talk.json"
    path.write_text(
        '[{"role": "user", "content": "\\ud800"}, {"role": "assistant", "content": ""}]'
    )
    _, exchanges = load_chat(path)
    assert exchanges == [Exchange("�", "")]


def test_what_is_no_regular_file_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "."):
        with pytest.raises(Error, match="not a regular file"):
            load_chat(tmp_path / name)
    with pytest.raises(Error, match="cannot be read: No such file"):
        load_chat(tmp_path / "absent")


def test_a_file_too_large_is_not_read(tmp_path):
    path = tmp_path / "large.json"
    with open(path, "wb") as file:
        file.truncate(16_000_001)
    with pytest.raises(FormatError, match="too large"):
        load_chat(path)
