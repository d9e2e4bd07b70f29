"""What is written to a terminal, and what to a pipe."""

import io
import time

from q4run.terminal import (
    AnswerWriter,
    Patience,
    Waiting,
    note,
    one_line,
    printable,
    quiet_line,
    warn,
)


class Screen(io.StringIO):
    """A stream that says it is a terminal; 80 columns, since it has no file descriptor."""

    def isatty(self) -> bool:
        return True


def shown(*pieces: str, stream: io.StringIO | None = None, new_line: bool = False) -> str:
    stream = stream or Screen()
    writer = AnswerWriter(stream)
    for piece in pieces:
        writer.write(piece)
    writer.end(new_line=new_line)
    return stream.getvalue()


STEERING = "a\x1b[2Jb\x07c\x9b31md\x00e\x7ff\r\ng\th\x85"


def test_a_terminal_gets_no_control_characters():
    assert shown(STEERING) == "a�[2Jb�c�31md�e�f\ng\th�"
    assert printable(STEERING) == "a�[2Jb�c�31md�e�f\ng\th�"
    assert one_line("two\nlines\x1b ") == "two lines�"


def test_a_pipe_gets_the_text_as_it_is():
    assert shown(STEERING, stream=io.StringIO()) == STEERING
    assert shown("word " * 100, stream=io.StringIO()) == "word " * 100


def test_words_go_whole_onto_the_next_line():
    text = " ".join(f"word{number}" for number in range(60))
    lines = shown(text).split("\n")
    assert max(map(len, lines)) <= 80
    assert " ".join(lines) == text
    assert shown(*text) == shown(text)


def test_what_is_short_enough_stays_as_it_is():
    text = "  indented\n\n\tand so on   with spaces\n" + "x" * 80 + "\n" + "[bold]y[/bold] :smile:"
    assert shown(text) == text


def test_words_longer_than_a_line_and_wide_characters_break_anywhere():
    assert shown("x" * 200).replace("\n", "") == "x" * 200
    lines = shown("字" * 100).split("\n")
    assert lines == ["字" * 40, "字" * 40, "字" * 20]


def test_lines_of_code_are_left_to_the_terminal():
    code = "```python\n" + "call(argument) + " * 10 + "0\n```\n"
    assert shown(code) == code
    assert "\n" in shown(code + "word " * 20).removeprefix(code)


def test_an_answer_ends_its_line_once():
    assert shown("a", new_line=True) == "a\n"
    assert shown("a\n", new_line=True) == "a\n"
    assert shown("", new_line=True) == ""


def test_quiet_lines_break_only_between_facts(monkeypatch, capsys):
    facts = [f"fact number {number}" for number in range(10)]
    quiet_line(facts)
    assert capsys.readouterr().err == " · ".join(facts) + "\n"


def test_remarks_are_no_markup(capsys):
    note("[bold]a[/bold] :smile: \x1b[31m")
    warn("[red]b\nc")
    assert capsys.readouterr().err == "[bold]a[/bold] :smile: �[31m\n[red]b c\n"


def test_waiting_shows_nothing_in_a_pipe(capsys):
    with Waiting("a long time") as waiting:
        waiting.update("still", 1, 2)
        time.sleep(0.7)
    assert capsys.readouterr().err == ""


def test_a_disk_that_does_not_answer_is_told_of_ever_more_rarely(capsys):
    patience = Patience("model.gguf")
    for tenths in range(1, 100):
        patience(tenths / 10)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        f"model.gguf: the disk has not answered for {seconds} s; Ctrl-C stops"
        for seconds in (2, 4, 8)
    ]
    patience(0.1)  # another wait
    assert capsys.readouterr().err == ""
    patience(2.1)
    assert "has not answered for 2 s" in capsys.readouterr().err
