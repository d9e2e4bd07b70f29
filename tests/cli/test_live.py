"""`--stats` in a terminal: what it shows while an answer comes, and how it leaves the terminal."""

import os
import pty
import re
import signal
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pyte
import pytest
from helpers.chat_models import make_chat_model
from helpers.commands import COMMAND, ESCAPE, command, greedy

from q4run import box

TRACE = re.compile("^(── |RAM [█░])", re.MULTILINE)  # of a panel
FRAME_END = "\x1b[?2026l"
SIZES = [(80, 24), (120, 40), (40, 10)]
BOX = [str(box.MODEL), "--ram-budget", "12M", "--context", "1024", "--temp", "0"]


class Screen(pyte.HistoryScreen):
    """What a person sees of what was written, and what has scrolled off."""

    def __init__(self, columns: int, lines: int) -> None:
        super().__init__(columns, lines, history=10_000)
        self._stream = pyte.Stream(self)

    def show(self, written: str) -> None:
        self._stream.feed(written)

    @property
    def rows(self) -> list[str]:
        return [row.rstrip() for row in self.display]

    @property
    def all_rows(self) -> list[str]:
        """The scrollback too."""
        above = ["".join(row[x].data for x in range(self.columns)) for row in self.history.top]
        return [row.rstrip() for row in above] + self.rows

    @property
    def panel(self) -> list[str] | None:
        """The rows below the scroll region; None where that is the whole screen."""
        return self.rows[self.margins.bottom + 1 :] if self.margins else None


class Session:
    """A command in a terminal of its own.

    What it writes is read at once and shown only when somebody looks: Ctrl-C drops what a slow
    reader has not taken yet.
    """

    def __init__(self, *arguments: object, size: tuple[int, int] = (80, 24), **variables: str):
        columns, lines = size
        self.written = ""
        self._screen = Screen(columns, lines)
        self._n_shown = 0
        ours = {name: value for name, value in os.environ.items() if name != "NO_COLOR"}
        terminal = {"TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"}
        self.child = pexpect.spawn(
            sys.executable,
            [*COMMAND[1:], *map(str, arguments), "--threads", "1"],
            env=ours | terminal | variables,
            dimensions=(lines, columns),
            encoding="utf-8",
            codec_errors="replace",
            timeout=120,
        )

    @property
    def screen(self) -> Screen:
        self._screen.show(self.written[self._n_shown :])
        self._n_shown = len(self.written)
        return self._screen

    def read(self) -> bool:
        """Takes what comes next; False at the end."""
        try:
            self.written += self.child.read_nonblocking(1 << 16, timeout=120)
        except pexpect.EOF:
            return False
        return True

    def until(self, text: str, after: int = 0) -> int:
        """Reads until the text is written after a place; returns the place after it."""
        while (found := self.written.find(text, after)) < 0:
            assert self.read(), self.screen.rows
        return found + len(text)

    def interrupt_amid_answer(self, after: int = 0) -> None:
        self.until("tok/s now", after)
        self.child.sendintr()

    def resize(self, columns: int, lines: int) -> None:
        screen = self.screen
        self.child.setwinsize(lines, columns)
        screen.resize(lines, columns)

    def end(self) -> None:
        while self.read():
            pass
        self.child.close()

    def assert_in_order(self) -> None:
        """There is no trace of a panel, and the terminal is as it was."""
        assert self.screen.margins is None
        assert not self.screen.cursor.hidden
        assert not TRACE.search("\n".join(self.screen.all_rows))


def frames(written: str, size: tuple[int, int]) -> Iterator[Screen]:
    """The screen after each frame that was written with a panel on it."""
    screen = Screen(*size)
    for part in written.split(FRAME_END):
        screen.show(part + FRAME_END)
        if screen.margins:
            yield screen


def assert_panels_are_whole(written: str, size: tuple[int, int]) -> int:
    """Whether in every frame there is a panel in its place, and none of it above; returns how many
    frames there are."""
    columns, lines = size
    n_frames = 0
    for screen in frames(written, size):
        n_frames += 1
        assert len(screen.panel) <= lines // 3
        assert screen.panel[0].startswith("── ")
        assert columns < 80 or screen.panel[0].endswith("─")
        assert screen.panel[2].startswith("RAM ")
        assert all(len(row) < columns for row in screen.panel)
        assert (len(screen.panel) > 3) == (lines >= 24)
        if len(screen.panel) > 3:
            assert "in RAM" in screen.panel[-1]
        assert screen.cursor.hidden
        assert screen.cursor.y <= screen.margins.bottom
        above = "\n".join(screen.all_rows[: -len(screen.panel)])
        assert not TRACE.search(above)
    return n_frames


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> Path:
    """A model that babbles without end."""
    return make_chat_model(tmp_path_factory.mktemp("live"))


def one_line(text: str) -> str:
    return " ".join(text.split())


PANEL_LINES = 3 + 5 + 1  # figures, the layers of ``model_path``, the legend
ENDLESS = ["-p", "in the end", "-n", "50000", "--context", "60000", "--stats"]
PROMPT = "\x1b[?2004h"  # what prompt_toolkit writes as it begins to read keys


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_run_in_a_terminal(size):
    session = Session("run", *BOX, "-p", "The Fox and", "--raw", "-n", 300, "--stats", size=size)
    session.end()
    assert session.child.exitstatus == 0
    session.assert_in_order()
    assert assert_panels_are_whole(session.written, size) >= 1
    shown = "\n".join(session.screen.all_rows)
    assert one_line(greedy(box.MODEL, None, "The Fox and", 300)) in one_line(shown)
    # The figures, then the last state of the map.
    figures = re.search(r"^prompt \d+ tokens", shown, re.MULTILINE)
    assert "in RAM" in shown[figures.start() :]


@pytest.mark.parametrize("size", [(80, 24), (40, 10)], ids=["80x24", "40x10"])
def test_a_long_answer_scrolls_above_the_panel(model_path, size):
    n_tokens = size[0] * size[1]
    arguments = ["-p", "in the end", "-n", n_tokens, "--temp", "0", "--context", 5000]
    session = Session("run", model_path, *arguments, "--stats", size=size)
    session.end()
    session.assert_in_order()
    assert assert_panels_are_whole(session.written, size) >= 1
    assert session.screen.history.top
    text = greedy(model_path, "in the end", None, n_tokens, context=5000)
    # Words longer than a line are cut.
    assert "".join(text.split()) in "".join("".join(session.screen.all_rows).split())


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
def test_chat_in_a_terminal(size):
    session = Session("chat", *BOX, "-n", 200, "--stats", size=size)
    place = session.until(PROMPT)
    for _ in range(2):
        session.child.send("Tell me a fable about a fox.\r")
        place = session.until(PROMPT, session.until(FRAME_END, place))
        session.assert_in_order()
    assert assert_panels_are_whole(session.written, size) >= 2
    session.child.send("/quit\r")
    session.end()
    assert session.child.exitstatus == 0
    session.assert_in_order()


def test_ctrl_c_in_run_leaves_the_terminal_in_order(model_path):
    session = Session("run", model_path, *ENDLESS)
    session.interrupt_amid_answer()
    session.end()
    assert session.child.exitstatus == 130
    session.assert_in_order()


def test_ctrl_c_in_chat_ends_the_panel_with_the_answer(model_path):
    session = Session("chat", model_path, "--context", 60000, "--stats")
    place = session.until(PROMPT)
    for _ in range(2):
        session.child.send("in the end\r")
        session.interrupt_amid_answer(place)
        place = session.until(PROMPT, place)
        session.assert_in_order()
    session.child.send("\x04")
    session.end()
    assert session.child.exitstatus == 0
    session.assert_in_order()


def test_sigterm_leaves_the_terminal_in_order(model_path):
    session = Session("run", model_path, *ENDLESS)
    session.until("tok/s now")
    session.child.kill(signal.SIGTERM)
    session.end()
    assert session.child.signalstatus == signal.SIGTERM
    session.assert_in_order()


def test_a_panel_follows_the_terminals_size(model_path):
    session = Session("run", model_path, *ENDLESS)
    place = session.until("tok/s now")
    for columns, lines in ((120, 40), (60, 40), (60, 50)):
        session.resize(columns, lines)
        # A screen that has been resized has no region until the panel is drawn anew.
        place = session.until(f"\x1b[1;{lines - PANEL_LINES}r", place)
        place = session.until(FRAME_END, place)
        assert session.screen.panel[0].startswith("── ")
        assert all(len(row) < columns for row in session.screen.panel)
    session.child.sendintr()
    session.end()
    assert session.child.exitstatus == 130
    session.assert_in_order()


def test_no_color_is_respected(model_path):
    arguments = ["run", model_path, "-p", "in the end", "-n", 300, "--stats"]
    session = Session(*arguments, NO_COLOR="1")
    session.end()
    assert assert_panels_are_whole(session.written, (80, 24)) >= 1
    assert not re.search(r"\x1b\[[\d;]*\b(3\d|9\d)[\d;]*m", session.written)


@pytest.mark.parametrize("variables", [{"TERM": "dumb"}, {"PYTHONIOENCODING": "ascii"}])
def test_terminals_that_cannot_show_a_panel_get_the_map_at_the_end(model_path, variables):
    session = Session("run", model_path, "-p", "in the end", "-n", 8, "--stats", **variables)
    session.end()
    assert session.child.exitstatus == 0
    assert FRAME_END not in session.written
    assert "layer experts 0 to 15" in session.written


def test_an_answer_into_a_pipe_is_plain_and_the_panel_is_in_the_terminal(model_path):
    ours, theirs = pty.openpty()
    arguments = ["run", str(model_path), "-p", "in the end", "-n", "300", "--context", "512"]
    termios.tcsetwinsize(theirs, (24, 80))
    process = subprocess.Popen(
        [*COMMAND, *arguments, "--temp", "0", "--threads", "1", "--stats"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm-256color"},
    )
    os.close(theirs)
    written = b""
    try:
        while some := os.read(ours, 4096):
            written += some
    except OSError:
        pass  # how Linux says that nobody writes there any more
    os.close(ours)
    text = process.stdout.read().decode()
    assert process.wait() == 0
    assert text == greedy(model_path, "in the end", None, 300)
    screen = Screen(80, 24)
    screen.show(written.decode())
    assert screen.margins is None
    assert not screen.cursor.hidden
    assert assert_panels_are_whole(written.decode(), (80, 24)) >= 1
    assert text[:20] not in "\n".join(screen.all_rows)


def test_pipes_get_no_escape_codes(model_path):
    options = ["-n", "8", "--temp", "0", "--context", "512", "--stats"]
    done = command("chat", model_path, *options, input="in the end\n/quit\n")
    assert done.returncode == 0
    assert ESCAPE not in done.stdout + done.stderr
    assert done.stdout.strip() == greedy(model_path, "in the end", None, 8).strip()
    line, _, figures = done.stderr.partition("8 tokens · ")[2].partition("\n")
    assert "tok/s" in line
    assert "experts    " in figures
    assert "layer experts 0 to 15\n" in figures
